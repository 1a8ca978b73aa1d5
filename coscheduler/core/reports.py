"""What engines report, taken into the books: one method for each event about an engine.

An out-of-memory is a step down a ladder. The option had its reservation and everything that was
free, and that was not enough: from now on it is taken to need more than both. So the next attempt
makes more room or takes a smaller option; where no option is left, the guess is dropped and the
failure counts as any other. After a crash the next attempt takes a safe option, where the engine
has one; a crash with that one is the end of the job.
"""

from coscheduler.core import events as ev
from coscheduler.core.actions import Actions
from coscheduler.core.books import Books
from coscheduler.core.engine_state import EngineState, Phase
from coscheduler.core.ledger import Part, ReservationState
from coscheduler.core.model import (
    Failure,
    JobState,
    Line,
    LineBytes,
    StageState,
)
from coscheduler.core.refusals import failure_of, misfit
from coscheduler.core.sizes import run_lines
from coscheduler.errors import LedgerRefusal

OUT_OF_MEMORY = "OUT_OF_MEMORY"
CRASHED = "ENGINE_CRASHED"


class Reports:
    """The state that it changes is the scheduler's own."""

    def __init__(self, books: Books, actions: Actions) -> None:
        self._books, self._ledger, self._jobs = books, books.ledger, books.jobs
        self._engines, self._limits = books.engines, books.limits
        self._actions = actions

    # ---- loads -------------------------------------------------------------------------------

    def on_loaded(self, event: ev.Loaded) -> None:
        """In memory: leased to the job that it was loaded for, whose run stays reserved."""
        state = self._engines[event.engine]
        assert state.option is not None
        state.phase, state.since_ms = Phase.LOADED, self._jobs.now_ms
        job, state.job = state.job, ""
        state.wish, state.note = (state.wish, state.note) if job else (None, "")
        state.learned.note_load(state.option.name, event.load_ms)
        if job in self._jobs:
            stage = self._jobs[job].stage
            load_ms = stage.load_ms + event.load_ms
            self._jobs.set_current(job, state=StageState.PENDING, load_ms=load_ms)
        run = self._ledger.entries()[state.name, Part.RUN].lines
        self._ledger.drop(event.engine, Part.RUN)
        try:
            self._commit_load(state, event)
        except LedgerRefusal as refusal:
            self._undo_load(state, event, job, refusal)
            return
        if job in self._jobs and self._jobs[job].state is not JobState.CANCELLING:
            self._lease(state, job, run)

    def _lease(self, state: EngineState, job: str, lines: tuple[LineBytes, ...]) -> None:
        """Keep the bytes of the first run, unless loading took them: then they are asked anew."""
        if sum(entry.bytes for entry in lines) <= self._ledger.free_bytes:
            self._ledger.reserve((state.name, Part.RUN), lines)
            state.leased_to, state.used_by = job, self._jobs[job].priority

    def _undo_load(
        self, state: EngineState, event: ev.Loaded, job: str, refusal: LedgerRefusal
    ) -> None:
        if state.option is not None:
            predicted = self._ledger.bytes_of(state.name, Part.RESIDENT)
            extra = state.learned.resident_bytes.get(state.option.name, 0)
            extra += max(0, event.resident_bytes - predicted)
            state.learned.resident_bytes[state.option.name] = extra
        self._actions.stop(state, f"loading took more than predicted: {refusal.message}")
        if job in self._jobs:
            self._jobs.fail_attempt(job, failure_of(refusal), retryable=True, count=True)

    def _commit_load(self, state: EngineState, event: ev.Loaded) -> None:
        """Charge what was measured: the context as it is, the rest at least as predicted."""
        self._commit_context(state, event.context_bytes)
        self._ledger.commit((state.name, Part.RESIDENT))
        excess = event.resident_bytes - self._ledger.bytes_of(state.name, Part.RESIDENT)
        if excess > 0:
            self._ledger.reserve((state.name, Part.SLACK), (LineBytes(Line.SLACK, excess),))
            self._ledger.commit((state.name, Part.SLACK))

    def _commit_context(self, state: EngineState, context_bytes: int) -> None:
        key = (state.name, Part.CONTEXT)
        state.context_bytes = context_bytes
        self._ledger.resize(key, (LineBytes(Line.CONTEXT, context_bytes),))
        if self._ledger.entries()[key].state is ReservationState.RESERVED:
            self._ledger.commit(key)

    def on_load_failed(self, event: ev.LoadFailed) -> None:
        """Nothing is loaded; the process may be left."""
        state = self._engines[event.engine]
        job, lacking = state.job, self._note_shortage(state, state.job, event.failure)
        if event.context_bytes == 0:
            self._actions.forget_process(state)
        else:
            self._ledger.drop(event.engine, Part.RESIDENT, Part.RUN)
            state.phase, state.job, state.option = Phase.STARTED, "", None
            state.since_ms = self._jobs.now_ms
            self._keep_context(state, event.context_bytes)
        if job in self._jobs:
            self._fail_attempt(job, event.failure, event.retryable, lacking, count=True)
        elif not job:
            self._give_up_wish(state, event.failure)

    def _keep_context(self, state: EngineState, context_bytes: int) -> None:
        try:
            self._commit_context(state, context_bytes)
        except LedgerRefusal as refusal:
            self._actions.stop(state, f"its context took more than expected: {refusal.message}")

    def _give_up_wish(self, state: EngineState, failure: Failure) -> None:
        state.wish = None
        state.note = f"the load that was asked for failed: {failure.reason}: {failure.message}"
        self._actions.decide(f"{state.name}: {state.note}")

    # ---- runs --------------------------------------------------------------------------------

    def on_stage_done(self, event: ev.StageDone) -> None:
        """The stage's results are kept: hand them on."""
        state = self._engines[event.engine]
        self._actions.end_run(state)
        self._learn(state, event)
        self._jobs.set_current(
            event.job,
            state=StageState.SUCCEEDED,
            outputs=event.outputs,
            notes=(*self._jobs[event.job].stage.notes, *event.notes),
            numbers=event.numbers,
            measured_peak_bytes=event.measured_peak_bytes,
        )
        self._jobs.hand_on(event.job, event.outputs)
        job = self._jobs[event.job]
        if job.stage.state is StageState.SUCCEEDED:
            self._jobs.succeed(job.name)
        elif job.state is JobState.CANCELLING:
            self._jobs.stop(job.name)

    def _learn(self, state: EngineState, event: ev.StageDone) -> None:
        """How long it took, and bytes above the prediction; these never so many that the option
        would not fit alone any more: it has just shown that it does.
        """
        option, stage = state.loaded_option(), self._jobs[event.job].stage
        if option is None or state.is_mixed:
            return  # it says nothing of any one option
        is_timed = self._jobs[event.job].is_durable  # a conversation lasts as long as it lasts
        if is_timed and stage.attempt_count == 1:  # else it holds times of earlier attempts too
            state.learned.note_run(option.name, stage.duration_ms, stage.run_ms)
        predicted = option.peak_bytes(stage.duration_ms)
        most = self._ledger.capacity_bytes - state.context_bytes - predicted
        excess = min(event.measured_peak_bytes - predicted, most)
        if excess > self._limits.peak_tolerance_bytes:
            known = state.learned.run_bytes.get(option.name, 0)
            state.learned.run_bytes[option.name] = known + excess
            self._actions.decide(f"{state.name} '{option.name}' takes {excess} bytes more to run")

    def on_stage_failed(self, event: ev.StageFailed) -> None:
        """The engine is still loaded; the stage may be tried again."""
        state = self._engines[event.engine]
        lacking = self._note_shortage(state, event.job, event.failure)
        self._actions.end_run(state)
        self._jobs.set_current(event.job, measured_peak_bytes=event.measured_peak_bytes)
        self._fail_attempt(event.job, event.failure, event.retryable, lacking, count=False)

    def on_stage_stopped(self, event: ev.StageStopped) -> None:
        """Stopped because of a cancel, or to give way: then it goes back into the queue."""
        self._actions.end_run(self._engines[event.engine])
        if self._jobs[event.job].state is JobState.CANCELLING:
            self._jobs.stop(event.job)
        else:
            self._jobs.requeue(event.job)

    def on_paused(self, event: ev.Paused) -> None:
        """Halted between two slices."""
        state = self._engines[event.engine]
        self._actions.count_run_time(state)
        state.phase, state.asked = Phase.PAUSED, ""
        self._jobs.set_current(event.job, state=StageState.PAUSED)

    # ---- becoming another --------------------------------------------------------------------

    def on_resized(self, event: ev.Resized) -> None:
        """As asked; or it could not get more, is as it was, and is left so for a while."""
        state = self._engines[event.engine]
        option, state.target = state.target, None
        assert option is not None and state.option is not None
        if event.option == option.name:
            state.option = option
            self._ledger.take_back(event.engine, run_lines(self._books, state, option))
            return
        self._ledger.resize((event.engine, Part.RESIDENT), state.option.resident)
        state.grow_after_ms = self._jobs.now_ms + self._limits.oom_memory_ms
        self._actions.decide(f"{event.engine} stays '{state.option.name}': no room to grow")

    # ---- the ladder --------------------------------------------------------------------------

    def _note_shortage(self, state: EngineState, job: str, failure: Failure) -> str:
        """While all is charged as it was: an option that ran out of memory is taken to need more
        than it had. Its name; "" where it was something else, or no option would be left.
        """
        option, record = state.loaded_option(), self._jobs.get(job)
        if failure.reason != OUT_OF_MEMORY or option is None or record is None:
            return ""
        until_ms = self._jobs.now_ms + self._limits.oom_memory_ms
        state.learned.guess(option.name, self._ledger.free_bytes + 1, until_ms)
        duration_ms, capacity = record.stage.duration_ms, self._ledger.capacity_bytes
        if misfit(state, duration_ms, record.quality_min, capacity) is None:
            return option.name
        state.learned.forget_guess(option.name)
        return ""

    def _fail_attempt(
        self, job: str, failure: Failure, retryable: bool, lacking: str, count: bool
    ) -> None:
        """`lacking` is the option that ran out of memory, if one did."""
        if not lacking:
            self._jobs.fail_attempt(job, failure, retryable, count)
            return
        self._jobs.step_down(job, failure, self._limits.oom_steps_max, count)
        if job in self._jobs:
            step = self._jobs[job].stage.oom_count
            self._jobs.note_wait(job, f"step {step} down: '{lacking}' ran out of memory")

    # ---- ends --------------------------------------------------------------------------------

    def on_unloaded(self, event: ev.Unloaded) -> None:
        """The model's bytes are back."""
        state = self._engines[event.engine]
        self._ledger.drop(event.engine, Part.RESIDENT, Part.SLACK)
        state.phase, state.option, state.since_ms = Phase.STARTED, None, self._jobs.now_ms

    def on_stopped(self, event: ev.Stopped) -> None:
        """The process has ended, as asked."""
        self._actions.forget_process(self._engines[event.engine])

    def on_engine_died(self, event: ev.EngineDied) -> None:
        """The process has ended without being asked: its stage may be tried again."""
        state = self._engines[event.engine]
        job, was_loading = state.job, state.phase is Phase.LOADING
        was_safe = self._distrust(state, event.failure) if job else False
        self._actions.forget_process(state)
        if job in self._jobs:
            self._jobs.fail_attempt(job, event.failure, retryable=not was_safe, count=was_loading)
        elif was_loading and not job:
            self._give_up_wish(state, event.failure)

    def _distrust(self, state: EngineState, failure: Failure) -> bool:
        """After a crash the next attempt takes a safe option; True where this was one."""
        option, safe = state.option, [option for option in state.options() if option.is_safe]
        if failure.reason != CRASHED or option is None or not safe:
            return False
        until_ms = self._jobs.now_ms + self._limits.oom_memory_ms
        state.learned.distrusted_until_ms[option.name] = until_ms
        self._actions.decide(f"{state.name} ended with '{option.name}': safe options for a while")
        return option.is_safe
