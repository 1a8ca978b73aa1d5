"""How all engines share the device while one of them runs a stage. Exact, pure, without any state.

`planner.py` serves the running daemon, which finds engines as they are. This is for whoever plans a
machine: one option for each engine, of all combinations the best.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from coscheduler.core.model import EngineName, Option, total_bytes


@dataclass(frozen=True)
class Choice:
    """An option in a joint plan. Options of one `family` are of one quality tier and become each
    other by adding or dropping bytes (resident layers); between families everything is loaded anew.
    `traffic_bytes` go over the link in each pass, hidden behind the computation or not.
    """

    option: Option
    family: str
    traffic_bytes: int = 0


@dataclass(frozen=True)
class Member:
    """An engine in a joint plan: the choices for it to be there, and what its process costs."""

    engine: EngineName
    choices: Sequence[Choice]
    context_bytes: int


@dataclass(frozen=True)
class Share:
    """What an engine has of the device while a stage runs. Without a choice its process is ended.

    `return_ms` is what it takes until it can run again as it does in its own stage.
    """

    engine: EngineName
    choice: Choice | None
    bytes: int
    return_ms: int


@dataclass(frozen=True)
class Together:
    """One share for each engine, in the order of the members; `run_ms` is the stage's own time."""

    shares: tuple[Share, ...]
    quality_tier: int
    run_ms: int

    @property
    def bytes(self) -> int:
        """All shares."""
        return sum(share.bytes for share in self.shares)

    @property
    def return_ms(self) -> int:
        """What brings the other engines back."""
        return sum(share.return_ms for share in self.shares)


@dataclass(frozen=True)
class Budget:
    """What a joint plan may use, and for how long a recording it is made."""

    capacity_bytes: int
    processes_max: int
    duration_ms: int


def plan_together(members: Sequence[Member], runs: EngineName, budget: Budget) -> Together | None:
    """The best choice for the engine that runs, and what the others keep beside it.

    The least (quality tier, time of the stage, time to bring the others back), in this order, over
    all combinations; of equals the fastest to the millisecond, then what needs the link least, then
    the smallest. What the others keep is of the family that they will run in: anything else would
    save them nothing. None: the stage never fits.
    """
    wanted = {member.engine: own_choice(member, budget) for member in members}
    if wanted[runs] is None:
        return None
    offered = [_shares(member, wanted[member.engine], runs, budget) for member in members]
    fitting = (shares for shares in product(*offered) if _fits(shares, budget))
    plans = (_together(shares, runs, budget.duration_ms) for shares in fitting)
    return min(plans, key=lambda plan: _rank(plan, runs, budget.duration_ms))


def own_choice(member: Member, budget: Budget) -> Choice | None:
    """How the engine runs when it alone is to be served: of the best tier the fastest, of equally
    fast ones the smallest. None when nothing fits.
    """
    fitting = (
        choice
        for choice in member.choices
        if _running_bytes(member, choice, budget.duration_ms) <= budget.capacity_bytes
    )
    return min(
        fitting,
        key=lambda choice: (
            choice.option.quality_tier,
            run_ms(choice.option, budget.duration_ms),
            choice.option.peak_bytes(budget.duration_ms),
        ),
        default=None,
    )


def run_ms(option: Option, duration_ms: int) -> int:
    """The option's predicted time, rounded up to two digits: no prediction is better than that."""
    exact_ms = option.run_ms(duration_ms)
    unit_ms: int = 10 ** max(0, len(str(exact_ms)) - 2)
    return -(-exact_ms // unit_ms) * unit_ms


def _running_bytes(member: Member, choice: Choice, duration_ms: int) -> int:
    return member.context_bytes + choice.option.peak_bytes(duration_ms)


def _shares(
    member: Member, wanted: Choice | None, runs: EngineName, budget: Budget
) -> tuple[Share, ...]:
    """All that the engine may have: as it runs, or what it may keep while another one runs."""
    if wanted is None:
        return (Share(member.engine, None, 0, 0),)
    if member.engine == runs:
        tier = wanted.option.quality_tier
        same = [choice for choice in member.choices if choice.option.quality_tier == tier]
        return tuple(
            Share(runs, choice, _running_bytes(member, choice, budget.duration_ms), 0)
            for choice in same
        )
    out = Share(member.engine, None, 0, wanted.option.load_ms)
    related = [choice for choice in member.choices if choice.family == wanted.family]
    return (out, *(_kept(member, choice, wanted) for choice in related))


def _kept(member: Member, choice: Choice, wanted: Choice) -> Share:
    size = member.context_bytes + total_bytes(choice.option.resident)
    return_ms = max(0, wanted.option.load_ms - choice.option.load_ms)
    return Share(member.engine, choice, size, return_ms)


def _fits(shares: Iterable[Share], budget: Budget) -> bool:
    present = [share.bytes for share in shares if share.choice is not None]
    return sum(present) <= budget.capacity_bytes and len(present) <= budget.processes_max


def _together(shares: tuple[Share, ...], runs: EngineName, duration_ms: int) -> Together:
    option = _choice_of(shares, runs).option
    return Together(shares, option.quality_tier, run_ms(option, duration_ms))


def _choice_of(shares: Iterable[Share], runs: EngineName) -> Choice:
    return next(share.choice for share in shares if share.engine == runs and share.choice)


def _rank(plan: Together, runs: EngineName, duration_ms: int) -> tuple[int, ...]:
    chosen = _choice_of(plan.shares, runs)
    exact_ms = chosen.option.run_ms(duration_ms)
    traffic_bytes = chosen.traffic_bytes
    return plan.run_ms, plan.return_ms, exact_ms, traffic_bytes, plan.bytes
