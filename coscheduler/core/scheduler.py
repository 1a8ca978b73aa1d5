"""The one mutable object of the core: `handle(event, now_ms)` changes it and says what to do.

After every event it goes through the waiting jobs in rank order and lets each take its turn
(`decisions.py`), one job for each engine. The first job that waits for memory holds a reservation:
those behind it may only take bytes that it does not need, and may not evict. A job that waits holds
nothing, but for the one that an engine was just loaded for.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from coscheduler.core import events as ev
from coscheduler.core.actions import Actions
from coscheduler.core.books import Books
from coscheduler.core.commands import Command
from coscheduler.core.controls import Controls
from coscheduler.core.decisions import Decider
from coscheduler.core.engine_state import EngineState, Limits, Phase
from coscheduler.core.estimates import expected_ends
from coscheduler.core.intents import Bring, GiveUp, Go, GoOn, Turn, Wait
from coscheduler.core.jobs import JobBook
from coscheduler.core.ledger import Key, Ledger, Reservation
from coscheduler.core.model import (
    EngineName,
    Job,
    JobState,
    Priority,
    Stage,
    StageState,
)
from coscheduler.core.refusals import misfit, refused
from coscheduler.core.reports import Reports
from coscheduler.core.surveys import Surveys
from coscheduler.core.upkeep import Upkeep
from coscheduler.core.wishes import Wishes
from coscheduler.errors import Exhausted

ESTIMATE_MS = 1000  # an estimate holds so long, unless a job asks that it lacks


@dataclass(frozen=True)
class Outcome:
    """What one event led to: commands to carry out, jobs to store first, and why, in sentences."""

    commands: tuple[Command, ...]
    changed: tuple[Job, ...]
    decisions: tuple[str, ...]


@dataclass(frozen=True)
class State:
    """All that the scheduler knows between two events, as plain data."""

    capacity_bytes: int
    budget_bytes: int
    limits: Limits
    engines: tuple[EngineState, ...]
    reservations: tuple[tuple[Key, Reservation], ...]
    jobs: tuple[Job, ...]
    is_draining: bool
    now_ms: int


class Scheduler:
    """Decides which stage runs when and which engine is in memory how. Never does any of it."""

    def __init__(
        self, capacity_bytes: int, engines: tuple[EngineName, ...], limits: Limits
    ) -> None:
        self.ledger = Ledger(capacity_bytes)
        self.engines = {name: EngineState(name) for name in engines}
        self.limits = limits
        self._jobs = JobBook(limits.attempts_max, limits.ageing_ms)
        self._ends: dict[str, int] = {}
        self._ends_ms = 0
        books = Books(self.ledger, self.engines, self._jobs, limits)
        self._actions = Actions(books)
        self._decider = Decider(books)
        self._upkeep = Upkeep(books, self._actions)
        self._wishes = Wishes(books, self._actions)
        self._surveys = Surveys(books, self._actions)
        self.controls = Controls(books, self._actions)
        reports = Reports(books, self._actions)
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            ev.Submitted: self._on_submitted,
            ev.CancelRequested: self._on_cancel_requested,
            ev.EngineAdded: self._surveys.on_engine_added,
            ev.Described: self._surveys.on_described,
            ev.DescribeFailed: self._surveys.on_describe_failed,
            ev.Loaded: reports.on_loaded,
            ev.LoadFailed: reports.on_load_failed,
            ev.StageDone: reports.on_stage_done,
            ev.StageFailed: reports.on_stage_failed,
            ev.StageStopped: reports.on_stage_stopped,
            ev.Paused: reports.on_paused,
            ev.Resized: reports.on_resized,
            ev.Unloaded: reports.on_unloaded,
            ev.Stopped: reports.on_stopped,
            ev.EngineDied: reports.on_engine_died,
            ev.CapacityChanged: self._on_capacity_changed,
            ev.Ticked: self._on_ticked,
            ev.DrainRequested: self.controls.on_drain_requested,
            ev.DrainEnded: self.controls.on_drain_ended,
            ev.LoadRequested: self.controls.on_load_requested,
            ev.UnloadRequested: self.controls.on_unload_requested,
            ev.PinRequested: self.controls.on_pin_requested,
        }

    # ---- its state ---------------------------------------------------------------------------

    def state(self) -> State:
        """A copy that later events do not change."""
        return State(
            capacity_bytes=self.ledger.capacity_bytes,
            budget_bytes=self.ledger.budget_bytes,
            limits=self.limits,
            engines=tuple(state.copy() for state in self.engines.values()),
            reservations=tuple(self.ledger.entries().items()),
            jobs=self._jobs.all(),
            is_draining=self.controls.is_draining,
            now_ms=self._jobs.now_ms,
        )

    @classmethod
    def from_state(cls, state: State) -> "Scheduler":
        """One that decides exactly as the one whose state it is."""
        names = tuple(engine.name for engine in state.engines)
        scheduler = cls(state.capacity_bytes, names, state.limits)
        scheduler.ledger.set_capacity(state.capacity_bytes, state.budget_bytes)
        scheduler.ledger.restore(dict(state.reservations))
        scheduler.engines.update({engine.name: engine.copy() for engine in state.engines})
        scheduler._jobs.restore(state.jobs)
        scheduler._jobs.now_ms = state.now_ms
        scheduler.controls.is_draining = state.is_draining
        return scheduler

    # ---- what may be asked -------------------------------------------------------------------

    def handle(self, event: ev.Event, now_ms: int) -> Outcome:
        """Take in one event and decide. The caller stores `changed` before it obeys `commands`."""
        self._jobs.now_ms = now_ms
        self._handlers[type(event)](event)
        self._schedule()
        if isinstance(event, ev.Submitted) and (why := self.waiting_for(event.job.name)):
            self._jobs.note_wait(event.job.name, why)
        commands, decisions = self._actions.take()
        return Outcome(commands, self._jobs.take_changed(), decisions)

    def admit(self, job: Job) -> None:
        """May this job be queued? Changes nothing. Raises Exhausted QUEUE_FULL, or Refused with
        ENGINE_NOT_CONFIGURED, the engine's own reason (MODEL_MISSING ...), NEVER_FITS or
        QUALITY_TOO_LOW.
        """
        if len(self._jobs) >= self.limits.queue_max:
            raise Exhausted(
                "QUEUE_FULL",
                f"{len(self._jobs)} jobs are waiting or running and {self.limits.queue_max} are "
                "allowed; try again when some are done",
                queued_count=len(self._jobs),
                queue_max=self.limits.queue_max,
                retry_ms=1000 * len(self._jobs),
            )
        for stage in job.stages:
            self._admit_stage(stage, job.quality_min)

    def expected_end_ms(self, job_name: str) -> int | None:
        """When an unfinished job may be expected to end, as of the last event or a little earlier;
        None where it cannot be said. See `estimates.py`.
        """
        now_ms = self._jobs.now_ms
        if job_name not in self._ends or now_ms >= self._ends_ms + ESTIMATE_MS:
            engines, capacity = self.engines, self.ledger.capacity_bytes
            slots = self.limits.compute_slots
            self._ends = expected_ends(self.jobs, engines, capacity, slots, now_ms)
            self._ends_ms = now_ms
        return self._ends.get(job_name)

    def waiting_for(self, job_name: str) -> str:
        """Why the job's current stage does not run, or ""."""
        why = self._jobs.waiting_for(job_name)
        return "the drain to end" if why and self.is_draining else why

    def job(self, name: str) -> Job | None:
        """An unfinished job."""
        return self._jobs.get(name)

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All unfinished jobs in rank order."""
        return tuple(self._jobs[name] for name in self._jobs.ranked())

    @property
    def is_draining(self) -> bool:
        """Whether nothing is started."""
        return self.controls.is_draining

    @property
    def is_quiet(self) -> bool:
        """True when no command is unanswered."""
        return not any(
            state.is_busy or state.phase is Phase.PAUSED for state in self.engines.values()
        )

    @property
    def next_wakeup_ms(self) -> int | None:
        """When time alone will change a decision next; None when it will not."""
        times = [time for state in self.engines.values() for time in self._wakeups(state)]
        return min((time for time in times if time > self._jobs.now_ms), default=None)

    def _wakeups(self, state: EngineState) -> Iterable[int]:
        yield from state.learned.until_ms.values()
        yield from state.learned.distrusted_until_ms.values()
        if state.is_idle and not state.is_pinned:
            yield state.since_ms + self.limits.keep_alive_ms
        if state.used_by > Priority.BATCH:
            yield state.kept_until_ms(self.limits)
        if state.held_for:
            yield state.held_since_ms + self.limits.group_ms_max

    # ---- events ------------------------------------------------------------------------------

    def _on_submitted(self, event: ev.Submitted) -> None:
        job = event.job
        if job.name in self._jobs or job.state.is_final:
            return
        self._jobs.put(job)
        index = job.current_index
        if job.stages[index].input.artifact and not job.stages[index].ready_ms:
            self._jobs.set_stage(job.name, index, ready_ms=self._jobs.now_ms)

    def _on_cancel_requested(self, event: ev.CancelRequested) -> None:
        job = self._jobs.get(event.job)
        if job is None or job.state is JobState.CANCELLING:
            return
        engine = job.engine
        if self._jobs.cancel(job.name):
            self._actions.cancel(self.engines[engine])

    def _on_capacity_changed(self, event: ev.CapacityChanged) -> None:
        if event.capacity_bytes != self.ledger.capacity_bytes:
            self._actions.decide(f"the budget is {event.capacity_bytes} bytes now")
        self.ledger.set_capacity(event.capacity_bytes, event.budget_bytes)

    def _on_ticked(self, event: ev.Ticked) -> None:
        """Time is looked at after every event."""

    # ---- deciding ----------------------------------------------------------------------------

    def _schedule(self) -> None:
        self._jobs.forget_waits()
        self._upkeep.rerank()
        self._upkeep.forget_marks()
        self._surveys.start()
        self._upkeep.let_leave()
        self._upkeep.reduce_overdraft()
        claimed, spare_bytes = self._take_turns()
        if not self.is_draining:
            self._wishes.fulfil(claimed, spare_bytes)
            if spare_bytes is None:
                self._upkeep.grow()
        self._upkeep.unload_idle()

    def _take_turns(self) -> tuple[dict[EngineName, str], int | None]:
        """Each engine's first job in rank order has its turn, and so have those that an engine was
        loaded for or is paused for. Returns the engines that are wanted, each with that job, and
        what a waiting head leaves over.
        """
        claimed: dict[EngineName, str] = {}
        held: frozenset[EngineName] = frozenset()
        spare_bytes: int | None = None
        special = self._special()
        for name in self._jobs.ranked():
            if not special and claimed.keys() >= self._jobs.wanted_engines():
                break  # nobody behind has a turn
            job = self._jobs.get(name)
            if job is None:
                continue  # it failed with another one, in this very round
            stage = job.stage
            engine = stage.engine
            if not stage.input.artifact or (engine in claimed and name not in special):
                continue
            special.discard(name)
            if self._may_take_turn(job, stage):
                wait = self._take_turn(Turn(job, claimed, spare_bytes, held))
                if wait is not None and wait.needed_bytes and spare_bytes is None:
                    available = self.ledger.free_bytes + self.ledger.releasing_bytes
                    spare_bytes, held = available - wait.needed_bytes, frozenset(wait.hold)
                if wait is not None and not wait.is_in_the_way:
                    continue
            if name in self._jobs:
                claimed.setdefault(engine, name)
        return claimed, spare_bytes

    def _special(self) -> set[str]:
        """Jobs that have a turn although others come first on their engine."""
        paused = {s.job for s in self.engines.values() if s.phase is Phase.PAUSED}
        return (paused | {s.leased_to for s in self.engines.values()}) - {""}

    def _may_take_turn(self, job: Job, stage: Stage) -> bool:
        """While draining only paused stages go on, so that they can end."""
        if job.state is JobState.CANCELLING:
            return False
        if stage.state is StageState.PAUSED:
            return True
        return stage.state is StageState.PENDING and not self.is_draining

    def _take_turn(self, turn: Turn) -> Wait | None:
        """Let a job do what it may; its Wait, when it has to."""
        intent = self._decider.consider(turn)
        state = self.engines.get(turn.engine)
        match intent:
            case GiveUp(failure):
                self._jobs.fail(turn.job.name, failure)
                self._actions.decide(f"{turn.job.name} failed: {failure.reason}")
            case Go(lines, option):
                assert state is not None
                self._actions.run(turn.job, state, option, lines)
            case GoOn():
                assert state is not None
                self._actions.resume(turn.job, state)
            case Bring(option):
                assert state is not None
                self._actions.load(state, option, turn.job.name, turn.stage.duration_ms)
            case Wait():
                self._jobs.note_wait(turn.job.name, intent.reason)
                self._actions.set_in_motion(intent, f"{turn.job.name} comes first", turn.job.name)
                return intent
        return None

    def _admit_stage(self, stage: Stage, quality_min: int | None) -> None:
        state = self.controls.usable(stage.engine)
        if state.description is not None:
            budget_bytes = self.ledger.budget_bytes
            failure = misfit(state, stage.duration_ms, quality_min, budget_bytes)
            if failure is not None:
                raise refused(failure)
