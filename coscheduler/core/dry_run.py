"""What would become of a job: a copy of the scheduler, played forward with expected times.

The copy is the real scheduler, so the plan names the same options, evictions and waits that the job
would meet if every load and run took as long as expected, nothing failed and nobody else came.
"""

from coscheduler.core import commands as cmd
from coscheduler.core import events as ev
from coscheduler.core.engine_state import EngineState, Phase
from coscheduler.core.model import (
    EngineName,
    Job,
    JobPlan,
    Output,
    StageKind,
    total_bytes,
)
from coscheduler.core.refusals import failure_of
from coscheduler.core.scheduler import Scheduler, State
from coscheduler.errors import CoschedulerError

RELEASE_MS = 500  # how long memory is taken to need to come back
STEPS_MAX = 20_000
ROLES = {
    StageKind.SEPARATE: ("target", "residual"),
    StageKind.TRANSCRIBE: ("transcript",),
    StageKind.ANALYZE: ("analysis",),
}


def plan_job(state: State, job: Job) -> JobPlan:
    """Play `job` forward from `state`; the state is not changed."""
    future = _Future(Scheduler.from_state(state))
    try:
        future.scheduler.admit(job)
    except CoschedulerError as error:
        return JobPlan(job, None, (), failure_of(error))
    return future.play(job)


class _Future:
    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._now_ms = scheduler.state().now_ms
        self._answers: dict[str, tuple[int, ev.Event]] = {}  # by engine, and by its resize
        self._rest_ms: dict[EngineName, int] = {}  # of paused runs
        self._seen: dict[str, Job] = {}
        self._decisions: list[str] = []
        for engine in scheduler.engines.values():
            self._expect(engine)
            self._expect_size(engine)

    def play(self, job: Job) -> JobPlan:
        """Until the job is final, or nothing moves any more."""
        self._happen(ev.Submitted(job))
        for _ in range(STEPS_MAX):
            if self.scheduler.job(job.name) is None or not self._step():
                break
        end = self._seen.get(job.name, job)
        said = tuple(text for text in self._decisions if job.name in text)
        return JobPlan(end, end.finished_ms if end.state.is_final else None, said, end.failure)

    def _step(self) -> bool:
        """The next thing that happens; False when nothing will."""
        engine = min(self._answers, key=lambda name: self._answers[name][0], default=None)
        wakeup_ms = self.scheduler.next_wakeup_ms
        if engine is not None and (wakeup_ms is None or self._answers[engine][0] <= wakeup_ms):
            at_ms, event = self._answers.pop(engine)
            self._now_ms = max(self._now_ms, at_ms)
            self._happen(event)
        elif wakeup_ms is not None:
            self._now_ms = wakeup_ms
            self._happen(ev.Ticked())
        return engine is not None or wakeup_ms is not None

    def _happen(self, event: ev.Event) -> None:
        outcome = self.scheduler.handle(event, self._now_ms)
        self._seen |= {job.name: job for job in outcome.changed}
        self._decisions += outcome.decisions
        for command in outcome.commands:
            self._obey(command)

    def _obey(self, command: cmd.Command) -> None:
        engine = self.scheduler.engines[command.engine]
        match command:
            case cmd.Load() | cmd.Run() | cmd.Unload() | cmd.Stop():
                self._expect(engine)
            case cmd.Resize():
                self._expect_size(engine)
            case cmd.Cancel() | cmd.Preempt():
                self._answer(engine, _slice_ms(engine), ev.StageStopped(engine.name, engine.job))
            case cmd.Describe():
                pass  # what an engine is that has not said so cannot be foreseen
            case cmd.Pause():
                self._pause(engine)
            case cmd.Resume():
                rest_ms = self._rest_ms.pop(engine.name, 0)
                self._answer(engine, rest_ms, self._done(engine))

    def _pause(self, engine: EngineState) -> None:
        at_ms, _ = self._answers[engine.name]
        rest_ms = at_ms - self._now_ms - _slice_ms(engine)
        if rest_ms > 0:
            self._rest_ms[engine.name] = rest_ms
            self._answer(engine, _slice_ms(engine), ev.Paused(engine.name, engine.job))

    def _answer(self, engine: EngineState, after_ms: int, event: ev.Event) -> None:
        self._answers[engine.name] = (self._now_ms + after_ms, event)

    def _expect(self, engine: EngineState) -> None:
        """What the engine will report next, from what it is doing."""
        option = engine.option
        if engine.phase is Phase.LOADING and option is not None:
            load_ms = engine.learned.expected_load_ms(option)
            resident = total_bytes(option.resident)
            loaded = ev.Loaded(engine.name, engine.context_bytes, resident, load_ms)
            self._answer(engine, load_ms, loaded)
        elif engine.phase is Phase.RUNNING:
            self._answer(engine, max(0, self._run_ms(engine)), self._done(engine))
        elif engine.phase is Phase.PAUSED:
            self._rest_ms[engine.name] = max(0, self._run_ms(engine))
        elif engine.phase is Phase.UNLOADING:
            self._answer(engine, RELEASE_MS, ev.Unloaded(engine.name))
        elif engine.phase is Phase.STOPPING:
            self._answer(engine, RELEASE_MS, ev.Stopped(engine.name))

    def _expect_size(self, engine: EngineState) -> None:
        """The end of a resize, beside whatever else the engine does."""
        if engine.target is not None:
            at_ms = self._now_ms + _slice_ms(engine) + RELEASE_MS
            resized = ev.Resized(engine.name, engine.target.name)
            self._answers[f"{engine.name} resized"] = (at_ms, resized)

    def _run_ms(self, engine: EngineState) -> int:
        """What is left of the run there, as far as can be expected."""
        job = self.scheduler.job(engine.job)
        assert job is not None and engine.option is not None
        stage = job.stage
        whole_ms = engine.learned.expected_run_ms(engine.option, stage.duration_ms)
        return whole_ms - engine.ran_ms(stage, self._now_ms)

    def _done(self, engine: EngineState) -> ev.StageDone:
        job = self.scheduler.job(engine.job)
        assert job is not None
        stage = job.stage
        made = tuple(Output(role, f"artifacts/of-{job.name}", role) for role in ROLES[stage.kind])
        return ev.StageDone(engine.name, job.name, made, (), stage.predicted_peak_bytes)


def _slice_ms(engine: EngineState) -> int:
    return engine.option.slice_ms_max if engine.option is not None else 0
