"""Joint plans: by hand, and against trying every combination."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from coscheduler.core import together
from coscheduler.core.model import EngineName, total_bytes
from coscheduler.core.together import Budget, Choice, Member, Together, plan_together
from tests.core.build import A, S, T, option

DURATION_MS = 1000


def member(engine: EngineName, *choices: Choice, context: int = 10) -> Member:
    return Member(engine, choices, context)


def choice(
    name: str, weights: int, run: int = 20, tier: int = 0, speed: int = 10, family: str = "f"
) -> Choice:
    return Choice(option(name, weights, run, tier, speed), family)


def plan(
    members: Sequence[Member], runs: EngineName, capacity: int, processes: int = 3
) -> Together | None:
    return plan_together(members, runs, Budget(capacity, processes, DURATION_MS))


def kept(found: Together | None) -> dict[str, str]:
    assert found is not None
    return {s.engine.value: s.choice.option.name if s.choice else "out" for s in found.shares}


HALF, FULL = choice("half", 50, speed=20), choice("full", 100, speed=10)
COARSE = choice("coarse", 10, tier=1, speed=1, family="coarse")
LAYERS = (choice("none", 0, speed=3), choice("few", 30, speed=2), choice("all", 60, speed=1))


def test_quality_goes_before_speed() -> None:
    assert kept(plan([member(S, COARSE, HALF)], S, 80)) == {"separation": "half"}
    assert kept(plan([member(S, COARSE, HALF)], S, 79)) == {"separation": "coarse"}
    assert plan([member(S, COARSE, HALF)], S, 39) is None


def test_the_stage_is_as_fast_as_it_can_be_and_others_keep_what_is_left() -> None:
    members = [member(S, HALF, FULL), member(T, *LAYERS)]
    assert kept(plan(members, S, 130)) == {"separation": "full", "transcription": "out"}
    assert kept(plan(members, S, 169)) == {"separation": "full", "transcription": "out"}
    assert kept(plan(members, S, 170)) == {"separation": "full", "transcription": "few"}
    assert kept(plan(members, S, 199)) == {"separation": "full", "transcription": "few"}
    assert kept(plan(members, S, 200)) == {"separation": "full", "transcription": "all"}


def test_equal_speed_leaves_more_to_the_others() -> None:
    streams = [choice("streamed", 20, speed=1010), choice("resident", 90, speed=1005)]
    members = [member(S, *streams), member(T, choice("all", 60, speed=1))]
    assert kept(plan(members, S, 130))["separation"] == "streamed"  # both take 1100
    assert kept(plan(members, S, 190)) == {"separation": "resident", "transcription": "all"}


def test_what_nobody_wants_saves_traffic() -> None:
    streams = [Choice(option(weights=size), "f", traffic) for size, traffic in ((20, 9), (90, 1))]
    members = [member(S, *streams)]
    for capacity, traffic in ((50, 9), (119, 9), (120, 1)):
        found = plan(members, S, capacity)
        assert found is not None and found.shares[0].choice is not None
        assert found.shares[0].choice.traffic_bytes == traffic


def test_what_must_be_loaded_anew_is_not_worth_keeping_in_part() -> None:
    """The language model cannot grow: a part of it saves nothing, layers of the other do."""
    anew = [
        choice("10 layers", 40, speed=9, family="10"), choice("20 layers", 80, speed=5, family="20")
    ]  # fmt: skip
    one = [member(S, choice("all", 10)), member(A, *anew)]
    assert kept(plan(one, S, 129))["analysis"] == "out"
    assert kept(plan(one, S, 130))["analysis"] == "20 layers"
    members = [member(S, choice("all", 10)), member(T, *LAYERS), member(A, *anew)]
    assert kept(plan(members, S, 120)) == {
        "separation": "all", "transcription": "all", "analysis": "out"
    }  # fmt: skip


def test_the_number_of_processes_is_a_bound_of_its_own() -> None:
    members = [member(S, HALF), member(T, *LAYERS)]
    assert kept(plan(members, S, 1000, processes=1))["transcription"] == "out"


def test_times_are_told_in_two_digits() -> None:
    told = {speed: together.run_ms(option(speed=speed), DURATION_MS) for speed in (0, 99, 101, 996)}
    assert told == {0: 0, 99: 99, 101: 110, 996: 1000}


CHOICES = st.builds(
    lambda weights, run, tier, speed, kind: choice(
        "any", weights, run, tier, speed, family=f"{tier}{kind}"
    ),
    st.integers(0, 60),
    st.integers(0, 20),
    st.integers(0, 1),
    st.integers(0, 300),
    st.sampled_from("fg"),
)
MEMBERS = st.lists(st.lists(CHOICES, min_size=1, max_size=4), min_size=1, max_size=3)


@dataclass(frozen=True)
class Tried:
    """One combination, judged without the planner's own functions."""

    members: list[Member]
    chosen: tuple[Choice | None, ...]
    runs: int

    @property
    def bytes(self) -> int:
        held = [
            10 + total_bytes(found.option.resident) for found in self.chosen if found is not None
        ]
        runner = self.chosen[self.runs]
        assert runner is not None
        return sum(held) + total_bytes(runner.option.run_lines(DURATION_MS))

    def rank(self, wanted: list[Choice | None]) -> tuple[int, int, int]:
        runner = self.chosen[self.runs]
        assert runner is not None
        back = 0
        for index, (found, want) in enumerate(zip(self.chosen, wanted, strict=True)):
            if index == self.runs or want is None:
                continue
            load_ms = want.option.load_ms
            if found is not None and found.family == want.family:
                load_ms = max(0, load_ms - found.option.load_ms)
            back += load_ms
        exact = runner.option.run_ms_per_second
        digits = exact if exact < 100 else -(-exact // 10) * 10
        return runner.option.quality_tier, digits, back


@given(MEMBERS, st.integers(0, 300))
def test_no_combination_is_better(lists: list[list[Choice]], capacity: int) -> None:
    members = [member(engine, *found) for engine, found in zip((S, T, A), lists, strict=False)]
    found = plan(members, S, capacity)
    budget = Budget(capacity, 3, DURATION_MS)
    wanted = [together.own_choice(entry, budget) for entry in members]
    possible = [
        Tried(members, chosen, 0)
        for chosen in product(
            members[0].choices, *([None, *entry.choices] for entry in members[1:])
        )
    ]
    ranks = [tried.rank(wanted) for tried in possible if tried.bytes <= capacity]
    assert (found is None) == (not ranks)
    if found is not None:
        assert found.bytes <= capacity
        assert (found.quality_tier, found.run_ms, found.return_ms) == min(ranks)


@given(MEMBERS, st.integers(0, 300), st.integers(0, 100))
def test_more_budget_is_never_slower_within_a_tier(
    lists: list[list[Choice]], capacity: int, more: int
) -> None:
    members = [member(engine, *found) for engine, found in zip((S, T, A), lists, strict=False)]
    less_found, more_found = plan(members, S, capacity), plan(members, S, capacity + more)
    if less_found is None:
        return
    assert more_found is not None and more_found.quality_tier <= less_found.quality_tier
    if more_found.quality_tier == less_found.quality_tier:
        assert more_found.run_ms <= less_found.run_ms
