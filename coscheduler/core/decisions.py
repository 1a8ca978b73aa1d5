"""What one waiting job may do now. Reads the scheduler's state, changes nothing, returns an intent.

A turn, in this order (the numbers are repeated in the code):

    1. its input is not there, or a job before it wants the engine   -> Wait
    2. the engine is not configured or unusable                      -> GiveUp
    3. the engine is busy                                            -> Wait; preempt a lower class
    4. nothing ever fits (the budget shrank)                         -> GiveUp
    5. the engine is loaded at another quality                       -> Wait; unload it
    6. no compute slot is free                                       -> Wait; pause a lower class
    7. it is loaded as needed and the bytes of the run are there     -> Go, else make room
    8. there is a plan that evicts nobody                            -> Bring
    9. there is a plan that evicts idle engines                      -> Wait; evict them
    10. there is one if jobs of a lower class stop                   -> Wait; preempt them
    11. there is none: busy engines hold the bytes                   -> Wait

A job gives way only to one of a higher class that also ranks before it: ageing protects it in the
end, and so does `preempts_max`, since stopping (not pausing) may cost work.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from coscheduler.core import planner
from coscheduler.core.engine_state import BUSY, EngineState, Limits, Phase
from coscheduler.core.jobs import JobBook, current_index
from coscheduler.core.ledger import Ledger, Part
from coscheduler.core.model import (
    ENGINE_OF,
    EngineName,
    Failure,
    Job,
    LineBytes,
    Option,
    Stage,
    StageState,
)
from coscheduler.core.policy import rank_key

RESTART_MS = 1000  # what stopping a process costs beside the reload


@dataclass(frozen=True)
class Go:
    """Run on the loaded engine, with these lines charged."""

    lines: tuple[LineBytes, ...]


@dataclass(frozen=True)
class GoOn:
    """Resume the paused stage."""


@dataclass(frozen=True)
class Bring:
    """Load the engine with this option."""

    option: Option


@dataclass(frozen=True)
class GiveUp:
    """The job can never run."""

    failure: Failure


@dataclass(frozen=True)
class Wait:
    """Not now, for `reason`; `needed_bytes` > 0 when it is memory. The rest sets things in motion:
    engines to unload, to stop, whose stage to pause, whose stage to end and put back.
    """

    reason: str
    needed_bytes: int = 0
    unload: tuple[EngineName, ...] = ()
    stop: tuple[EngineName, ...] = ()
    pause: tuple[EngineName, ...] = ()
    preempt: tuple[EngineName, ...] = ()


Intent = Go | GoOn | Bring | GiveUp | Wait


@dataclass(frozen=True)
class Turn:
    """A job's turn: the engines that those before it want, and the bytes that a waiting head
    leaves over (None: there is no such head).
    """

    job: Job
    claimed: frozenset[EngineName]
    spare_bytes: int | None

    @property
    def stage(self) -> Stage:
        """The stage that is at work or next."""
        return self.job.stages[current_index(self.job)]

    @property
    def engine(self) -> EngineName:
        """The engine of that stage."""
        return ENGINE_OF[self.stage.kind]


class Decider:
    """Considers one turn at a time; the state it reads is the scheduler's own."""

    def __init__(
        self,
        ledger: Ledger,
        engines: Mapping[EngineName, EngineState],
        jobs: JobBook,
        limits: Limits,
    ) -> None:
        self._ledger = ledger
        self._engines = engines
        self._jobs = jobs
        self._limits = limits

    def consider(self, turn: Turn) -> Intent:
        """The intent of the job whose turn it is."""
        stage, engine = turn.stage, turn.engine
        if stage.state is StageState.PAUSED:
            return self._consider_paused(turn)
        if not stage.input.artifact:  # 1
            return Wait(f"the {stage.input.role} of {stage.input.job}")
        if engine in turn.claimed:
            return Wait(f"{engine} is wanted by a job that comes first")
        state = self._engines.get(engine)
        if state is None:  # 2
            return GiveUp(not_configured(stage))
        if state.failure is not None:
            return GiveUp(state.failure)
        if state.description is None:
            return Wait(f"{engine} is starting")
        if state.phase in BUSY or state.phase is Phase.PAUSED:  # 3
            preempt = (engine,) if self._may_preempt(turn.job, state) else ()
            return Wait(f"{engine} is {state.phase} {state.job}".rstrip(), preempt=preempt)
        return self._consider_memory(turn, state)

    def _consider_paused(self, turn: Turn) -> Intent:
        if self._engines[turn.engine].asked == "preempt":
            return Wait("its engine is wanted by a job of a higher class")
        return self._wait_for_slot(turn) or GoOn()

    def _consider_memory(self, turn: Turn, state: EngineState) -> Intent:
        duration_ms, capacity = turn.stage.duration_ms, self._ledger.capacity_bytes
        tier = planner.best_tier(state.options(), duration_ms, state.context_bytes, capacity)
        if tier is None:  # 4
            return GiveUp(never_fits(state, duration_ms, capacity))
        if state.phase is Phase.LOADED and state.option is not None:
            if state.option.quality_tier != tier:  # 5
                return Wait(f"{state.name} to be loaded at another quality", unload=(state.name,))
            return self._wait_for_slot(turn) or self._run_or_make_room(turn, state)
        return self._load_or_make_room(turn, state, tier)

    def _wait_for_slot(self, turn: Turn) -> Wait | None:  # 6
        running = [s for s in self._engines.values() if s.phase is Phase.RUNNING]
        if len(running) < self._limits.compute_slots:
            return None
        victims = [state for state in running if self._gives_way(turn.job, state)]
        is_on_the_way = any(state.asked == "pause" for state in running)
        last = max(victims, key=lambda state: self._rank_key(state.job), default=None)
        pause = () if last is None or is_on_the_way else (last.name,)
        slots = self._limits.compute_slots
        return Wait(f"a compute slot: {len(running)} of {slots} are busy", pause=pause)

    def _run_or_make_room(self, turn: Turn, state: EngineState) -> Intent:  # 7
        assert state.option is not None
        option, duration_ms = state.option, turn.stage.duration_ms
        lines = option.run_lines(duration_ms)
        needed = sum(entry.bytes for entry in lines)
        free = self._room(turn).free_bytes
        if needed <= free:
            return Go(lines)
        wait = Wait(f"memory: {needed} bytes to run, {free} free", needed)
        run_only = replace(option, resident=(), load_ms=0)
        request = planner.Request((run_only,), duration_ms, 0, needs_process=False)
        moved = self._make_room(turn, request, option.quality_tier, wait)
        if moved is wait and turn.spare_bytes is None and self._can_be_smaller(turn, state):
            return replace(wait, unload=(state.name,))
        return moved

    def _can_be_smaller(self, turn: Turn, state: EngineState) -> bool:
        """Would another option of the same tier fit into what is free plus what this one holds?"""
        assert state.option is not None
        own = self._ledger.bytes_of(state.name, Part.RESIDENT, Part.SLACK)
        return any(
            option.peak_bytes(turn.stage.duration_ms) <= self._ledger.free_bytes + own
            for option in state.options()
            if option.quality_tier == state.option.quality_tier
            if option.name != state.option.name
        )

    def _load_or_make_room(self, turn: Turn, state: EngineState, tier: int) -> Intent:
        is_new = state.phase is Phase.STOPPED
        context_bytes = state.context_bytes if is_new else 0
        duration_ms, options = turn.stage.duration_ms, state.options()
        request = planner.Request(options, duration_ms, context_bytes, needs_process=is_new)
        plan = planner.plan(request, tier, self._room(turn))
        if plan is not None and not plan.unload and not plan.stop:  # 8
            if self._limits.serial_loads and self._is_loading():
                return Wait("another load to end", _needed(request, plan.option))
            return Bring(plan.option)
        of_tier = [option for option in options if option.quality_tier == tier]
        needed = planner.least_bytes(of_tier, duration_ms, context_bytes)
        free = self._ledger.free_bytes
        wait = Wait(f"memory: {needed} bytes needed, {free} free", needed)
        return self._make_room(turn, request, tier, wait)

    def _make_room(
        self, turn: Turn, request: planner.Request, tier: int, wait: Wait
    ) -> Wait:  # 9, 10, 11
        """`wait`, with the evictions or preemptions that would end it; itself without any."""
        if turn.spare_bytes is not None:
            return wait
        plan = planner.plan(request, tier, self._room(turn))
        if plan is not None:
            needed = _needed(request, plan.option)
            who = ", ".join(plan.unload + plan.stop)
            return Wait(f"{who} to give way", needed, unload=plan.unload, stop=plan.stop)
        plan = planner.plan(request, tier, self._room(turn, with_lower_classes=True))
        if plan is None:
            return wait
        victims = (self._engines[name] for name in plan.unload + plan.stop)
        return replace(wait, preempt=tuple(s.name for s in victims if not s.is_idle))

    def _room(self, turn: Turn, with_lower_classes: bool = False) -> planner.Room:
        """What the turn may plan with: behind a waiting head only spare bytes, and no evictions."""
        free = self._ledger.free_bytes
        if turn.spare_bytes is not None:
            free = max(0, min(free, turn.spare_bytes))
        processes = sum(self._ledger.bytes_of(name, Part.CONTEXT) > 0 for name in self._engines)
        tenants = () if turn.spare_bytes is not None else self._tenants(turn, with_lower_classes)
        return planner.Room(free, tenants, self._limits.processes_max - processes)

    def _tenants(self, turn: Turn, with_lower_classes: bool) -> tuple[planner.Tenant, ...]:
        return tuple(
            planner.Tenant(
                other.name,
                self._ledger.bytes_of(other.name, Part.RESIDENT, Part.SLACK, Part.RUN),
                self._ledger.bytes_of(other.name, Part.CONTEXT),
                other.option.load_ms if other.option else 0,
                RESTART_MS,
            )
            for other in self._engines.values()
            if other.name is not turn.engine and not other.is_pinned
            if (other.is_idle and other.name not in turn.claimed)
            or (with_lower_classes and self._may_preempt(turn.job, other))
        )

    def _may_preempt(self, job: Job, state: EngineState) -> bool:
        """May `job` end the stage that runs or is paused there? Its work may be lost: bounded."""
        if state.asked == "preempt" or not self._gives_way(job, state):
            return False
        other = self._jobs[state.job]
        stage = other.stages[current_index(other)]
        return stage.preempt_count < self._limits.preempts_max

    def _gives_way(self, job: Job, state: EngineState) -> bool:
        """Does the job at work there have a lower class than `job`, and rank after it?"""
        if state.phase not in (Phase.RUNNING, Phase.PAUSED) or state.job not in self._jobs:
            return False
        other = self._jobs[state.job]
        return job.priority > other.priority and rank_key(
            job, self._limits.ageing_ms
        ) < self._rank_key(other.name)

    def _rank_key(self, name: str) -> tuple[int, int, str]:
        return rank_key(self._jobs[name], self._limits.ageing_ms)

    def _is_loading(self) -> bool:
        return any(state.phase is Phase.LOADING for state in self._engines.values())


def not_configured(stage: Stage) -> Failure:
    """The config has no section for the stage's engine."""
    engine = ENGINE_OF[stage.kind]
    return Failure(
        "ENGINE_NOT_CONFIGURED",
        f"stage {stage.kind} needs the {engine} engine, which the config does not have; add a "
        f"[{engine}] section",
        (("engine", str(engine)),),
    )


def never_fits(state: EngineState, duration_ms: int, capacity_bytes: int) -> Failure:
    """No option fits into the whole budget: the numbers to tell."""
    required = planner.least_bytes(state.options(), duration_ms, state.context_bytes)
    return Failure(
        "NEVER_FITS",
        f"{state.name} needs at least {required} bytes for this recording and the whole budget is "
        f"{capacity_bytes}; raise memory_cap, or configure a smaller model",
        (("required_bytes", str(required)), ("available_bytes", str(capacity_bytes))),
    )


def _needed(request: planner.Request, option: Option) -> int:
    return request.context_bytes + option.peak_bytes(request.duration_ms)
