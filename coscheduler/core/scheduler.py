"""The one mutable object of the core: `handle(event, now_ms)` changes it and says what to do.

After every event it goes through the waiting jobs in rank order and considers, for each engine, the
first job that wants it (`_consider`):

    1. the engine is unknown, unusable or busy       -> wait, or fail with the engine's own reason
    2. nothing ever fits (the budget shrank)         -> fail with the numbers
    3. it is loaded at the right quality             -> run, when slot and bytes are there
    4. it is loaded otherwise                        -> unload it first
    5. there is a plan that evicts nobody            -> load
    6. there is a plan that evicts                   -> unload or stop the victims, and wait
    7. there is none                                 -> wait: busy engines hold the bytes

The first job that waits for memory holds a reservation: those behind it may only take bytes that it
does not need, and may not evict. A job that waits holds nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from coscheduler.core import events as ev
from coscheduler.core import planner, policy
from coscheduler.core.commands import Cancel, Command, Load, Run, Stop, Unload
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


@dataclass(frozen=True)
class _Wait:
    reason: str
    needed_bytes: int = 0  # > 0 when it is memory that the job waits for


class Scheduler:
    """Decides which stage runs when and which engine is in memory how. Never does any of it."""

    def __init__(
        self, capacity_bytes: int, engines: tuple[EngineName, ...], limits: Limits
    ) -> None:
        self.ledger = Ledger(capacity_bytes)
        self.engines = {name: EngineState(name) for name in engines}
        self._limits = limits
        self._jobs = JobBook(limits.attempts_max)
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
        self._end_run(event.engine)
        self._jobs.stop(event.job)

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
        claimed: set[EngineName] = set()
        spare_bytes: int | None = None
        for job in self.jobs:
            stage = job.stages[current_index(job)]
            engine = ENGINE_OF[stage.kind]
            if stage.state is not StageState.PENDING or job.state is JobState.CANCELLING:
                claimed.add(engine)
                continue
            waits = self._consider(job, stage, engine, claimed, spare_bytes)
            if stage.input.artifact:
                claimed.add(engine)
            if waits is not None:
                self._jobs.note_wait(job.name, waits.reason)
                if waits.needed_bytes and spare_bytes is None:
                    available = self.ledger.free_bytes + self.ledger.releasing_bytes
                    spare_bytes = available - waits.needed_bytes

    def _consider(
        self,
        job: Job,
        stage: Stage,
        engine: EngineName,
        claimed: set[EngineName],
        spare_bytes: int | None,
    ) -> _Wait | None:
        """One job's turn; the numbers are those of the module's docstring. None: it goes on."""
        if not stage.input.artifact:
            return _Wait(f"the {stage.input.role} of {stage.input.job}")
        if engine in claimed:
            return _Wait(f"{engine} is wanted by a job that comes first")
        state = self.engines[engine]
        if state.phase is Phase.UNAVAILABLE and state.failure is not None:  # 1
            self._jobs.fail(job.name, state.failure)
            return None
        if state.description is None:
            return _Wait(f"{engine} is starting")
        if state.phase in BUSY:
            return _Wait(f"{engine} is {state.phase} {state.job}".rstrip())
        tier = planner.best_tier(  # 2
            state.options(),
            stage.duration_ms,
            state.context_bytes,
            self.ledger.capacity_bytes,
        )
        if tier is None:
            self._jobs.fail(job.name, self._never_fits(state, stage.duration_ms))
            return None
        room = self._room(engine, claimed, spare_bytes)
        if state.phase is Phase.LOADED and state.option is not None:
            if state.option.quality_tier == tier:  # 3
                return self._run_or_make_room(job, stage, state, room, spare_bytes)
            self._unload_engine(state, f"{job.name} needs quality tier {tier}", job.name)  # 4
            return _Wait(f"{engine} to be loaded at another quality", 0)
        return self._load_or_make_room(job, stage, state, tier, room)  # 5, 6, 7

    def _run_or_make_room(
        self,
        job: Job,
        stage: Stage,
        state: EngineState,
        room: planner.Room,
        spare_bytes: int | None,
    ) -> _Wait | None:
        assert state.option is not None
        running = sum(other.phase is Phase.RUNNING for other in self.engines.values())
        if running >= self._limits.compute_slots:
            return _Wait(f"a compute slot: {running} of {self._limits.compute_slots} are busy")
        lines = state.option.run_lines(stage.duration_ms)
        needed = sum(entry.bytes for entry in lines)
        if needed <= room.free_bytes:
            self._run(job, state, lines)
            return None
        if spare_bytes is None:
            plan = planner.plan(
                planner.Request((_run_only(state.option),), stage.duration_ms, 0, False),
                state.option.quality_tier,
                room,
            )
            if plan is not None:
                self._evict(plan, job.name)
            elif self._can_be_smaller(state, stage):
                self._unload_engine(state, f"{job.name} needs a smaller option", job.name)
        return _Wait(f"memory: {needed} bytes to run, {room.free_bytes} free", needed)

    def _can_be_smaller(self, state: EngineState, stage: Stage) -> bool:
        """Would another option of the same tier fit into what is free plus what this one holds?"""
        assert state.option is not None
        own = self.ledger.bytes_of(state.name, Part.RESIDENT, Part.SLACK)
        return any(
            option.peak_bytes(stage.duration_ms) <= self.ledger.free_bytes + own
            for option in state.options()
            if option.quality_tier == state.option.quality_tier
            if option.name != state.option.name
        )

    def _load_or_make_room(
        self, job: Job, stage: Stage, state: EngineState, tier: int, room: planner.Room
    ) -> _Wait | None:
        options = state.options()
        new_context = state.context_bytes if state.phase is Phase.STOPPED else 0
        needs_process = state.phase is Phase.STOPPED
        request = planner.Request(options, stage.duration_ms, new_context, needs_process)
        plan = planner.plan(request, tier, room)
        if plan is None:
            tier_options = [option for option in options if option.quality_tier == tier]
            needed = planner.least_bytes(tier_options, stage.duration_ms, new_context)
            return _Wait(f"memory: {needed} bytes needed, {room.free_bytes} free", needed)
        needed = new_context + plan.option.peak_bytes(stage.duration_ms)
        if plan.unload or plan.stop:
            self._evict(plan, job.name)
            return _Wait(f"{', '.join(plan.unload + plan.stop)} to give way", needed)
        if self._limits.serial_loads and self._is_loading():
            return _Wait("another load to end", needed)
        self._load(job, stage, state, plan.option)
        return None

    def _room(
        self, engine: EngineName, claimed: set[EngineName], spare_bytes: int | None
    ) -> planner.Room:
        """What `engine` may plan with: behind a waiting head only spare bytes, and no evictions."""
        free = self.ledger.free_bytes
        if spare_bytes is not None:
            free = max(0, min(free, spare_bytes))
        processes = sum(self.ledger.bytes_of(name, Part.CONTEXT) > 0 for name in self.engines)
        return planner.Room(
            free,
            self._tenants(engine, claimed) if spare_bytes is None else (),
            self._limits.processes_max - processes,
        )

    def _tenants(self, engine: EngineName, claimed: set[EngineName]) -> tuple[planner.Tenant, ...]:
        return tuple(
            planner.Tenant(
                other.name,
                self.ledger.bytes_of(other.name, Part.RESIDENT, Part.SLACK),
                self.ledger.bytes_of(other.name, Part.CONTEXT),
                other.option.load_ms if other.option else 0,
                1000,
            )
            for other in self.engines.values()
            if other.name is not engine and other.name not in claimed
            if other.is_idle
        )

    def _reduce_overdraft(self) -> None:
        """After the budget shrank: idle engines leave, the longest idle first."""
        idle = [s for s in self.engines.values() if s.is_idle]
        missing = self.ledger.overdraft_bytes - self.ledger.releasing_bytes
        for state in sorted(idle, key=lambda state: state.since_ms):
            if missing <= 0:
                return
            missing -= self.ledger.bytes_of(state.name)
            self._stop_engine(state, "the budget shrank")

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

    def _evict(self, plan: planner.Plan, job_name: str) -> None:
        for name in plan.unload:
            self._unload_engine(self.engines[name], f"{job_name} comes first", job_name)
        for name in plan.stop:
            self._stop_engine(self.engines[name], f"{job_name} comes first", job_name)

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
        job = self._jobs[state.job]
        stage = job.stages[current_index(job)]
        self._jobs.set_current(job.name, run_ms=stage.run_ms + self._now_ms - state.since_ms)
        state.phase, state.job, state.since_ms = Phase.LOADED, "", self._now_ms

    def _forget_process(self, state: EngineState) -> None:
        self.ledger.drop(state.name)
        state.phase, state.option, state.job = Phase.STOPPED, None, ""
        state.since_ms = self._now_ms

    def _note_eviction(self, state: EngineState, job_name: str) -> None:
        what = f"{state.name}: {state.option.name}" if state.option else str(state.name)
        self._jobs.note_eviction(job_name, what)

    def _decide(self, sentence: str) -> None:
        self._decisions.append(sentence)

    # ---- helpers -----------------------------------------------------------------------------

    def _admit_stage(self, stage: Stage) -> None:
        state = self.engines.get(ENGINE_OF[stage.kind])
        if state is None:
            raise Refused(
                "ENGINE_NOT_CONFIGURED",
                f"stage {stage.kind} needs the {ENGINE_OF[stage.kind]} engine, which the config "
                f"does not have; add a [{ENGINE_OF[stage.kind]}] section",
                engine=ENGINE_OF[stage.kind],
            )
        if state.failure is not None:
            raise Refused(
                state.failure.reason, state.failure.message, **dict(state.failure.numbers)
            )
        if state.description is None:
            return  # checked again when it is described
        capacity = self.ledger.capacity_bytes
        options = state.options()
        tier = planner.best_tier(options, stage.duration_ms, state.context_bytes, capacity)
        if tier is None:
            failure = self._never_fits(state, stage.duration_ms)
            raise Refused(failure.reason, failure.message, **dict(failure.numbers))

    def _never_fits(self, state: EngineState, duration_ms: int) -> Failure:
        required = planner.least_bytes(state.options(), duration_ms, state.context_bytes)
        available = self.ledger.capacity_bytes
        return Failure(
            "NEVER_FITS",
            f"{state.name} needs at least {required} bytes for this recording and the whole budget "
            f"is {available}; raise memory_cap, or configure a smaller model",
            (("required_bytes", str(required)), ("available_bytes", str(available))),
        )

    def _is_loading(self) -> bool:
        return any(state.phase is Phase.LOADING for state in self.engines.values())


def _run_only(option: Option) -> Option:
    """The option as something that only its run lines are still needed of."""
    return replace(option, resident=(), load_ms=0)


def _failure(refusal: LedgerRefusal) -> Failure:
    return Failure(refusal.reason, refusal.message, tuple(refusal.numbers.items()))
