"""The one mutable object of the core: `handle(event, now_ms)` changes it and says what to do.

After every event it goes through the waiting jobs in rank order and lets each take its turn
(`decisions.py`), one job for each engine. The first job that waits for memory holds a reservation:
those behind it may only take bytes that it does not need, and may not evict. A job that waits holds
nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from coscheduler.core import events as ev
from coscheduler.core import planner, policy
from coscheduler.core.commands import (
    Cancel,
    Command,
    Load,
    Pause,
    Preempt,
    Resume,
    Run,
    Stop,
    Unload,
)
from coscheduler.core.decisions import (
    Bring,
    Decider,
    GiveUp,
    Go,
    GoOn,
    Turn,
    Wait,
    never_fits,
    not_configured,
)
from coscheduler.core.engine_state import BUSY, EngineState, Limits, Phase
from coscheduler.core.jobs import JobBook, current_index
from coscheduler.core.ledger import Ledger, Part, ReservationState
from coscheduler.core.model import (
    ENGINE_OF,
    EngineName,
    Failure,
    Job,
    JobState,
    Line,
    LineBytes,
    Option,
    Stage,
    StageState,
)
from coscheduler.errors import Exhausted, LedgerRefusal, Refused


@dataclass(frozen=True)
class Outcome:
    """What one event led to: commands to carry out, jobs to store first, and why, in sentences."""

    commands: tuple[Command, ...]
    changed: tuple[Job, ...]
    decisions: tuple[str, ...]


class Scheduler:
    """Decides which stage runs when and which engine is in memory how. Never does any of it."""

    def __init__(
        self, capacity_bytes: int, engines: tuple[EngineName, ...], limits: Limits
    ) -> None:
        self.ledger = Ledger(capacity_bytes)
        self.engines = {name: EngineState(name) for name in engines}
        self._limits = limits
        self._jobs = JobBook(limits.attempts_max)
        self._decider = Decider(self.ledger, self.engines, self._jobs, limits)
        self._draining = False
        self._now_ms = 0
        self._commands: list[Command] = []
        self._decisions: list[str] = []
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            ev.Submitted: self._on_submitted,
            ev.CancelRequested: self._on_cancel_requested,
            ev.Described: self._on_described,
            ev.DescribeFailed: self._on_describe_failed,
            ev.Loaded: self._on_loaded,
            ev.LoadFailed: self._on_load_failed,
            ev.StageDone: self._on_stage_done,
            ev.StageFailed: self._on_stage_failed,
            ev.StageStopped: self._on_stage_stopped,
            ev.Paused: self._on_paused,
            ev.Unloaded: self._on_unloaded,
            ev.Stopped: self._on_stopped,
            ev.EngineDied: self._on_engine_died,
            ev.CapacityChanged: self._on_capacity_changed,
            ev.Ticked: self._on_ticked,
            ev.DrainRequested: self._on_drain_requested,
        }

    # ---- what may be asked -------------------------------------------------------------------

    def handle(self, event: ev.Event, now_ms: int) -> Outcome:
        """Take in one event and decide. The caller stores `changed` before it obeys `commands`."""
        self._now_ms = self._jobs.now_ms = now_ms
        self._handlers[type(event)](event)
        self._schedule()
        outcome = Outcome(tuple(self._commands), self._jobs.take_changed(), tuple(self._decisions))
        self._commands, self._decisions = [], []
        return outcome

    def admit(self, job: Job) -> None:
        """May this job be queued? Changes nothing. Raises Exhausted QUEUE_FULL, or Refused with
        ENGINE_NOT_CONFIGURED, the engine's own reason (MODEL_MISSING ...) or NEVER_FITS.
        """
        if len(self._jobs) >= self._limits.queue_max:
            raise Exhausted(
                "QUEUE_FULL",
                f"{len(self._jobs)} jobs are waiting or running and {self._limits.queue_max} are "
                "allowed; try again when some are done",
                queued_count=len(self._jobs),
                queue_max=self._limits.queue_max,
                retry_ms=1000 * len(self._jobs),
            )
        for stage in job.stages:
            self._admit_stage(stage)

    def waiting_for(self, job_name: str) -> str:
        """Why the job's current stage does not run, or ""."""
        return self._jobs.waiting_for(job_name)

    def job(self, name: str) -> Job | None:
        """An unfinished job."""
        return self._jobs.get(name)

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All unfinished jobs in rank order."""
        return tuple(policy.rank(self._jobs.all(), self._limits.ageing_ms))

    @property
    def is_quiet(self) -> bool:
        """True when no command is unanswered."""
        return not any(state.phase in BUSY for state in self.engines.values())

    @property
    def next_wakeup_ms(self) -> int | None:
        """When the next keep-alive runs out; None when none is running."""
        times = [
            state.since_ms + self._limits.keep_alive_ms
            for state in self.engines.values()
            if state.is_idle
        ]
        return min(times, default=None)

    # ---- events about jobs -------------------------------------------------------------------

    def _on_submitted(self, event: ev.Submitted) -> None:
        job = event.job
        if job.name in self._jobs or job.state.is_final:
            return
        self._jobs.put(job)
        index = current_index(job)
        if job.stages[index].input.artifact and not job.stages[index].ready_ms:
            self._jobs.set_stage(job.name, index, ready_ms=self._now_ms)

    def _on_cancel_requested(self, event: ev.CancelRequested) -> None:
        job = self._jobs.get(event.job)
        if job is None or job.state is JobState.CANCELLING:
            return
        engine = ENGINE_OF[job.stages[current_index(job)].kind]
        if self._jobs.cancel(job.name):
            self._commands.append(Cancel(engine, job.name))

    def _on_stage_done(self, event: ev.StageDone) -> None:
        self._end_run(event.engine)
        index = self._jobs.set_current(
            event.job,
            state=StageState.SUCCEEDED,
            outputs=event.outputs,
            notes=event.notes,
            measured_peak_bytes=event.measured_peak_bytes,
        )
        self._jobs.hand_on(event.job, event.outputs)
        job = self._jobs[event.job]
        if index + 1 == len(job.stages):
            self._jobs.succeed(job.name)
        elif job.state is JobState.CANCELLING:
            self._jobs.stop(job.name)

    def _on_stage_failed(self, event: ev.StageFailed) -> None:
        self._end_run(event.engine)
        self._jobs.set_current(event.job, measured_peak_bytes=event.measured_peak_bytes)
        self._jobs.fail_attempt(event.job, event.failure, event.retryable)

    def _on_stage_stopped(self, event: ev.StageStopped) -> None:
        """Stopped because of a cancel, or to give way: then it goes back into the queue."""
        self._end_run(event.engine)
        if self._jobs[event.job].state is JobState.CANCELLING:
            self._jobs.stop(event.job)
        else:
            self._jobs.requeue(event.job)

    def _on_paused(self, event: ev.Paused) -> None:
        state = self.engines[event.engine]
        self._count_run_time(state)
        state.phase, state.asked = Phase.PAUSED, ""
        self._jobs.set_current(event.job, state=StageState.PAUSED)

    # ---- events about engines ----------------------------------------------------------------

    def _on_described(self, event: ev.Described) -> None:
        state = self.engines[event.engine]
        state.description = event.description
        state.context_bytes = event.description.context_bytes
        if state.phase in (Phase.UNDESCRIBED, Phase.UNAVAILABLE):
            state.phase, state.failure = Phase.STOPPED, None

    def _on_describe_failed(self, event: ev.DescribeFailed) -> None:
        state = self.engines[event.engine]
        state.phase, state.failure = Phase.UNAVAILABLE, event.failure
        self._decide(f"{event.engine} is unavailable: {event.failure.message}")

    def _on_loaded(self, event: ev.Loaded) -> None:
        state = self.engines[event.engine]
        state.phase, state.since_ms = Phase.LOADED, self._now_ms
        job, state.job = state.job, ""
        if job in self._jobs:
            stage = self._jobs[job].stages[current_index(self._jobs[job])]
            self._jobs.set_current(
                job, state=StageState.PENDING, load_ms=stage.load_ms + event.load_ms
            )
        self.ledger.drop(event.engine, Part.RUN)  # taken again, in rank order, when it runs
        try:
            self._commit_load(state, event)
        except LedgerRefusal as refusal:
            self._learn_overhead(state, event.resident_bytes)
            self._stop_engine(state, f"loading took more than predicted: {refusal.message}")
            if job in self._jobs:
                self._jobs.fail_attempt(job, _failure(refusal), retryable=True, count=True)

    def _commit_load(self, state: EngineState, event: ev.Loaded) -> None:
        """Charge what was measured: the context as it is, the rest at least as predicted."""
        self._commit_context(state, event.context_bytes)
        self.ledger.commit((state.name, Part.RESIDENT))
        excess = event.resident_bytes - self.ledger.bytes_of(state.name, Part.RESIDENT)
        if excess > 0:
            self.ledger.reserve((state.name, Part.SLACK), (LineBytes(Line.SLACK, excess),))
            self.ledger.commit((state.name, Part.SLACK))

    def _commit_context(self, state: EngineState, context_bytes: int) -> None:
        key = (state.name, Part.CONTEXT)
        state.context_bytes = context_bytes
        self.ledger.resize(key, (LineBytes(Line.CONTEXT, context_bytes),))
        if self.ledger.entries()[key].state is ReservationState.RESERVED:
            self.ledger.commit(key)

    def _keep_context(self, state: EngineState, context_bytes: int) -> None:
        try:
            self._commit_context(state, context_bytes)
        except LedgerRefusal as refusal:
            self._stop_engine(state, f"its context took more than expected: {refusal.message}")

    def _learn_overhead(self, state: EngineState, resident_bytes: int) -> None:
        if state.option is not None:
            predicted = self.ledger.bytes_of(state.name, Part.RESIDENT)
            state.overhead_bytes[state.option.name] = max(0, resident_bytes - predicted)

    def _on_load_failed(self, event: ev.LoadFailed) -> None:
        state = self.engines[event.engine]
        job = state.job
        if event.context_bytes == 0:
            self._forget_process(state)
        else:
            self.ledger.drop(event.engine, Part.RESIDENT, Part.RUN)
            state.phase, state.job, state.option = Phase.STARTED, "", None
            state.since_ms = self._now_ms
            self._keep_context(state, event.context_bytes)
        if job in self._jobs:
            self._jobs.fail_attempt(job, event.failure, event.retryable, count=True)

    def _on_unloaded(self, event: ev.Unloaded) -> None:
        state = self.engines[event.engine]
        self.ledger.drop(event.engine, Part.RESIDENT, Part.SLACK)
        state.phase, state.option, state.since_ms = Phase.STARTED, None, self._now_ms

    def _on_stopped(self, event: ev.Stopped) -> None:
        self._forget_process(self.engines[event.engine])

    def _on_engine_died(self, event: ev.EngineDied) -> None:
        state = self.engines[event.engine]
        job, was_loading = state.job, state.phase is Phase.LOADING
        self._forget_process(state)
        if job in self._jobs:
            self._jobs.fail_attempt(job, event.failure, retryable=True, count=was_loading)

    def _on_capacity_changed(self, event: ev.CapacityChanged) -> None:
        if event.capacity_bytes != self.ledger.capacity_bytes:
            self._decide(f"the budget is {event.capacity_bytes} bytes now")
            self.ledger.set_capacity(event.capacity_bytes)

    def _on_ticked(self, event: ev.Ticked) -> None:
        del event
        wanted = {ENGINE_OF[job.stages[current_index(job)].kind] for job in self._jobs.all()}
        for state in self.engines.values():
            idle_ms = self._now_ms - state.since_ms
            if idle_ms < self._limits.keep_alive_ms or state.name in wanted:
                continue
            if state.phase is Phase.LOADED:
                self._unload_engine(state, f"idle for {idle_ms} ms")
            elif state.phase is Phase.STARTED:
                self._stop_engine(state, f"idle for {idle_ms} ms")

    def _on_drain_requested(self, event: ev.DrainRequested) -> None:
        del event
        self._draining = True

    # ---- deciding ----------------------------------------------------------------------------

    def _schedule(self) -> None:
        self._jobs.forget_waits()
        if self._draining:
            return
        self._reduce_overdraft()
        claimed: frozenset[EngineName] = frozenset()
        spare_bytes: int | None = None
        for job in self.jobs:
            stage = job.stages[current_index(job)]
            if job.name not in self._jobs:
                continue  # it failed with another one, in this very round
            if self._is_waiting(job, stage):
                wait = self._take_turn(Turn(job, claimed, spare_bytes))
                if wait is not None and wait.needed_bytes and spare_bytes is None:
                    available = self.ledger.free_bytes + self.ledger.releasing_bytes
                    spare_bytes = available - wait.needed_bytes
            if stage.input.artifact:
                claimed |= {ENGINE_OF[stage.kind]}

    def _is_waiting(self, job: Job, stage: Stage) -> bool:
        waits = stage.state in (StageState.PENDING, StageState.PAUSED)
        return waits and job.state is not JobState.CANCELLING

    def _take_turn(self, turn: Turn) -> Wait | None:
        """Let a job do what it may; its Wait, when it has to."""
        intent = self._decider.consider(turn)
        state = self.engines.get(turn.engine)
        match intent:
            case GiveUp(failure):
                self._jobs.fail(turn.job.name, failure)
                self._decide(f"{turn.job.name} failed: {failure.reason}")
            case Go(lines):
                assert state is not None
                self._run(turn.job, state, lines)
            case GoOn():
                assert state is not None
                self._resume(turn.job, state)
            case Bring(option):
                assert state is not None
                self._load(turn.job, turn.stage, state, option)
            case Wait():
                self._jobs.note_wait(turn.job.name, intent.reason)
                self._set_in_motion(intent, turn.job.name)
                return intent
        return None

    def _set_in_motion(self, wait: Wait, job_name: str) -> None:
        why = f"{job_name} comes first"
        for name in wait.unload:
            self._unload_engine(self.engines[name], why, job_name)
        for name in wait.stop:
            self._stop_engine(self.engines[name], why, job_name)
        for name in wait.pause:
            self._ask(self.engines[name], "pause", why)
        for name in wait.preempt:
            self._ask(self.engines[name], "preempt", why)

    def _reduce_overdraft(self) -> None:
        """After the budget shrank: idle engines leave, the longest idle first; then stages that
        rank last are put back into the queue, to come again as they fit.
        """
        missing = self.ledger.overdraft_bytes - self.ledger.releasing_bytes
        idle = [state for state in self.engines.values() if state.is_idle]
        for state in sorted(idle, key=lambda state: state.since_ms):
            if missing <= 0:
                return
            missing -= self.ledger.bytes_of(state.name)
            self._stop_engine(state, "the budget shrank")
        at_work = {
            state.job: state
            for state in self.engines.values()
            if state.phase in (Phase.RUNNING, Phase.PAUSED)
        }
        for job in reversed(self.jobs):
            if missing > 0 and job.name in at_work:
                missing -= self.ledger.bytes_of(at_work[job.name].name)
                self._ask(at_work[job.name], "preempt", "the budget shrank")

    # ---- doing -------------------------------------------------------------------------------

    def _load(self, job: Job, stage: Stage, state: EngineState, option: Option) -> None:
        if state.phase is Phase.STOPPED:
            context = (LineBytes(Line.CONTEXT, state.context_bytes),)
            self.ledger.reserve((state.name, Part.CONTEXT), context)
        self.ledger.reserve((state.name, Part.RESIDENT), option.resident)
        self.ledger.reserve((state.name, Part.RUN), option.run_lines(stage.duration_ms))
        state.phase, state.option, state.job = Phase.LOADING, option, job.name
        self._jobs.start(job.name)
        self._jobs.set_current(job.name, state=StageState.LOADING)
        self._commands.append(Load(state.name, option.name, job.name))
        self._decide(f"load {state.name} as '{option.name}' for {job.name}")

    def _run(self, job: Job, state: EngineState, lines: tuple[LineBytes, ...]) -> None:
        assert state.option is not None
        self.ledger.reserve((state.name, Part.RUN), lines)
        self.ledger.commit((state.name, Part.RUN))
        state.phase, state.job = Phase.RUNNING, job.name
        self._jobs.start(job.name)
        index = current_index(job)
        stage = self._jobs[job.name].stages[index]
        self._jobs.set_stage(
            job.name,
            index,
            state=StageState.RUNNING,
            attempt_count=stage.attempt_count + 1,
            wait_ms=max(0, self._now_ms - stage.ready_ms - stage.load_ms - stage.run_ms),
            predicted_peak_bytes=state.option.peak_bytes(stage.duration_ms),
            option=state.option.name,
            quality_tier=state.option.quality_tier,
        )
        state.since_ms = self._now_ms  # while it runs: since when
        self._commands.append(Run(state.name, job.name, index))
        self._decide(f"run {stage.kind} of {job.name} on {state.name}")

    def _resume(self, job: Job, state: EngineState) -> None:
        stage = job.stages[current_index(job)]
        waited_ms = max(0, self._now_ms - stage.ready_ms - stage.load_ms - stage.run_ms)
        self._jobs.set_current(job.name, state=StageState.RUNNING, wait_ms=waited_ms)
        state.phase, state.since_ms = Phase.RUNNING, self._now_ms
        self._commands.append(Resume(state.name, job.name))
        self._decide(f"resume {stage.kind} of {job.name}")

    def _ask(self, state: EngineState, what: str, why: str) -> None:
        """Ask the running stage to pause, or to stop and go back into the queue; once."""
        if state.asked in (what, "preempt"):
            return
        state.asked = what
        order = Pause if what == "pause" else Preempt
        self._commands.append(order(state.name, state.job))
        self._decide(f"{what} {state.job}: {why}")

    def _unload_engine(self, state: EngineState, why: str, job_name: str = "") -> None:
        self._note_eviction(state, job_name)
        for part in (Part.RESIDENT, Part.SLACK):
            if (state.name, part) in self.ledger.entries():
                self.ledger.begin_release((state.name, part))
        state.phase = Phase.UNLOADING
        self._commands.append(Unload(state.name))
        self._decide(f"unload {state.name}: {why}")

    def _stop_engine(self, state: EngineState, why: str, job_name: str = "") -> None:
        self._note_eviction(state, job_name)
        for (owner, part), entry in self.ledger.entries().items():
            if owner is state.name and entry.state is ReservationState.COMMITTED:
                self.ledger.begin_release((owner, part))
        state.phase = Phase.STOPPING
        self._commands.append(Stop(state.name))
        self._decide(f"stop {state.name}: {why}")

    def _end_run(self, engine: EngineName) -> None:
        state = self.engines[engine]
        self.ledger.drop(engine, Part.RUN)
        if state.phase is Phase.RUNNING:
            self._count_run_time(state)
        state.phase, state.job, state.asked = Phase.LOADED, "", ""
        state.since_ms = self._now_ms

    def _count_run_time(self, state: EngineState) -> None:
        job = self._jobs[state.job]
        stage = job.stages[current_index(job)]
        self._jobs.set_current(job.name, run_ms=stage.run_ms + self._now_ms - state.since_ms)

    def _forget_process(self, state: EngineState) -> None:
        self.ledger.drop(state.name)
        state.phase, state.option, state.job, state.asked = Phase.STOPPED, None, "", ""
        state.since_ms = self._now_ms

    def _note_eviction(self, state: EngineState, job_name: str) -> None:
        what = f"{state.name}: {state.option.name}" if state.option else str(state.name)
        self._jobs.note_eviction(job_name, what)

    def _decide(self, sentence: str) -> None:
        self._decisions.append(sentence)

    # ---- helpers -----------------------------------------------------------------------------

    def _admit_stage(self, stage: Stage) -> None:
        state = self.engines.get(ENGINE_OF[stage.kind])
        failure = not_configured(stage) if state is None else state.failure
        if failure is None and state is not None and state.description is not None:
            capacity, duration_ms = self.ledger.capacity_bytes, stage.duration_ms
            context_bytes = state.context_bytes
            options = state.options()
            if planner.best_tier(options, duration_ms, context_bytes, capacity) is None:
                failure = never_fits(state, duration_ms, capacity)
        if failure is not None:
            raise Refused(failure.reason, failure.message, **dict(failure.numbers))


def _failure(refusal: LedgerRefusal) -> Failure:
    return Failure(refusal.reason, refusal.message, tuple(refusal.numbers.items()))
