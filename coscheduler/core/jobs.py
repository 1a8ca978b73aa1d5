"""The unfinished jobs and every change to them; the table of `lifecycle.py` guards each state.

The book remembers which records changed, so that the loop can store them before anything is done.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from coscheduler.core.lifecycle import JobEvent, advance
from coscheduler.core.model import (
    EngineName,
    Failure,
    InputRef,
    Job,
    JobState,
    Output,
    Stage,
    StageState,
)
from coscheduler.core.policy import RankKey, rank_key, served_ms

DONE = (StageState.SUCCEEDED, StageState.FAILED, StageState.CANCELLED)
WAITED_FOR_MAX = 16  # different reasons kept for a stage
CHANGES_MAX = 16  # of an engine's size, kept for the stage that ran meanwhile


def waits_in_line(stage: Stage) -> str:
    """What a stage waits for that is not considered at all, for others come first."""
    if not stage.input.artifact:
        return f"the {stage.input.role} of {stage.input.job}"
    return f"{stage.engine} is wanted by a job that comes first"


class JobBook:
    """Unfinished jobs by name, kept in rank order: a rank changes only while its job is at work.

    `now_ms` is set by the owner before each event.
    """

    def __init__(self, attempts_max: int, ageing_ms: int) -> None:
        self.now_ms = 0
        self._attempts_max = attempts_max
        self._ageing_ms = ageing_ms
        self._jobs: dict[str, Job] = {}
        self._order: list[RankKey] = []
        self._keys: dict[str, RankKey] = {}
        self._changed: dict[str, Job] = {}
        self._waiting_for: dict[str, str] = {}
        # By job, those that read its outputs (itself among them), in order of arrival.
        self._readers: dict[str, dict[str, None]] = {}
        self._wanted: Counter[EngineName] = Counter()  # jobs whose current stage needs the engine
        self._ahead: Counter[EngineName] = Counter()  # stages that are not done

    def __contains__(self, name: str) -> bool:
        return name in self._jobs

    def __len__(self) -> int:
        return len(self._jobs)

    def __getitem__(self, name: str) -> Job:
        return self._jobs[name]

    def get(self, name: str) -> Job | None:
        """An unfinished job, or None."""
        return self._jobs.get(name)

    def all(self) -> tuple[Job, ...]:
        """Every unfinished job, in the order of arrival in the book."""
        return tuple(self._jobs.values())

    def ranked(self) -> Iterator[str]:
        """The names of every unfinished job in the order in which they may choose; those that come
        or go meanwhile do not change it.
        """
        return (name for _, _, name in tuple(self._order))

    def key_of(self, name: str) -> RankKey:
        """The rank of an unfinished job: smaller goes first."""
        return self._keys[name]

    def rerank(self, job: Job, served_ms: int) -> None:
        """The place of a job whose current stage has run for so long by now."""
        if self._keys[job.name] != rank_key(job, served_ms, self._ageing_ms):
            self._remove(job.name)
            self._insert(job, served_ms)

    def _insert(self, job: Job, served_ms: int) -> None:
        key = self._keys[job.name] = rank_key(job, served_ms, self._ageing_ms)
        insort(self._order, key)

    def _remove(self, name: str) -> None:
        self._order.pop(bisect_left(self._order, self._keys.pop(name)))

    def wanted_engines(self) -> frozenset[EngineName]:
        """The engines of all current stages."""
        return frozenset(engine for engine, count in self._wanted.items() if count)

    def ahead(self, engine: EngineName) -> int:
        """How many stages of unfinished jobs the engine has still to do."""
        return self._ahead[engine]

    def restore(self, jobs: tuple[Job, ...]) -> None:
        """Fill an empty book with unfinished jobs, as they are."""
        for job in jobs:
            self.put(job)
        self._changed.clear()

    def is_pending(self, name: str) -> bool:
        """Whether the job is unfinished and its current stage waits to be started."""
        job = self._jobs.get(name)
        return job is not None and job.stage.state is StageState.PENDING

    def take_changed(self) -> tuple[Job, ...]:
        """The records that changed since the last call, each in its newest form."""
        changed, self._changed = tuple(self._changed.values()), {}
        return changed

    # ---- records -----------------------------------------------------------------------------

    def put(self, job: Job) -> Job:
        """Keep a new record, or a record's new form."""
        old = self._jobs.get(job.name)
        if old is None:
            self._insert(job, served_ms(job))
            for source in {stage.input.job for stage in job.stages} - {""}:
                self._readers.setdefault(source, {})[job.name] = None
        else:
            self._count(old, -1)
            if job.stage.state is not StageState.RUNNING:
                self.rerank(job, served_ms(job))
        self._count(job, 1)
        self._jobs[job.name] = job
        self._changed[job.name] = job
        return job

    def _count(self, job: Job, step: int) -> None:
        self._wanted[job.engine] += step
        for stage in job.stages:
            if stage.state not in DONE:
                self._ahead[stage.engine] += step

    def set_stage(self, name: str, index: int, **changes: Any) -> None:
        """Change fields of one stage."""
        job = self._jobs[name]
        stages = list(job.stages)
        stages[index] = replace(stages[index], **changes)
        self.put(replace(job, stages=tuple(stages)))

    def set_current(self, name: str, **changes: Any) -> None:
        """Change fields of the stage that is at work or next."""
        self.set_stage(name, self._jobs[name].current_index, **changes)

    # ---- states ------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Something is being done for the job: QUEUED becomes RUNNING."""
        job = self._jobs[name]
        if job.state is JobState.QUEUED:
            self.put(replace(job, state=advance(job.state, JobEvent.START)))

    def succeed(self, name: str) -> None:
        """Its last stage is done."""
        job = self._jobs[name]
        self._finish(replace(job, state=advance(job.state, JobEvent.SUCCEED)))

    def cancel(self, name: str) -> bool:
        """Ask for the end; True when a stage is running that must be stopped first."""
        job = self._jobs[name]
        job = self.put(replace(job, state=advance(job.state, JobEvent.CANCEL)))
        if job.state is JobState.CANCELLED:
            self._finish(job)
            return False
        if job.stage.state in (StageState.RUNNING, StageState.PAUSED):
            return True
        self.stop(name)
        return False

    def stop(self, name: str) -> None:
        """Nothing of a job that is being cancelled runs any more."""
        job = self._jobs[name]
        self._finish(replace(job, state=advance(job.state, JobEvent.STOP)))

    def requeue(self, name: str) -> None:
        """The current stage gave way: it waits again, in its old place."""
        count = self._jobs[name].stage.preempt_count + 1
        self.set_current(name, state=StageState.PENDING, preempt_count=count)

    def step_down(self, name: str, failure: Failure, steps_max: int, count: bool) -> None:
        """The current stage ran out of memory: try again, a bounded number of times, with what is
        known now. `count` as in `fail_attempt`.
        """
        stage = self._jobs[name].stage
        if self._jobs[name].state is JobState.CANCELLING:
            self.stop(name)
        elif stage.oom_count >= steps_max:
            self.fail(name, failure)
        else:
            attempts, steps = stage.attempt_count + int(count), stage.oom_count + 1
            self.set_current(
                name, state=StageState.PENDING, attempt_count=attempts, oom_count=steps
            )

    def fail(self, name: str, failure: Failure) -> None:
        """The job cannot be done."""
        self.set_current(name, state=StageState.FAILED, failure=failure)
        job = self._jobs[name]
        self._finish(replace(job, state=advance(job.state, JobEvent.FAIL), failure=failure))

    def fail_attempt(
        self, name: str, failure: Failure, retryable: bool, count: bool = False
    ) -> None:
        """An attempt at the current stage went wrong: try again within the bound, or fail the job.

        `count` is for failures before Run, whose attempts nobody has counted yet.
        """
        stage = self._jobs[name].stage
        if self._jobs[name].state is JobState.CANCELLING:
            self.stop(name)
            return
        attempts = stage.attempt_count + int(count)
        self.set_current(name, state=StageState.PENDING, attempt_count=attempts)
        failures = attempts - stage.preempt_count - stage.oom_count
        if retryable and failures < self._attempts_max:
            self.note_wait(name, f"attempt {attempts} failed: {failure.reason}: {failure.message}")
        else:
            self.fail(name, failure)

    def _finish(self, job: Job) -> None:
        """Take a final job out and fail those who wait for an output that will never come."""
        if job.state is JobState.CANCELLED:
            stages = tuple(
                stage
                if stage.state is StageState.SUCCEEDED
                else replace(stage, state=StageState.CANCELLED)
                for stage in job.stages
            )
            job = replace(job, stages=stages)
        self.put(replace(job, finished_ms=self.now_ms))
        del self._jobs[job.name]
        self._count(job, -1)
        self._remove(job.name)
        for other in self._readers.pop(job.name, {}):
            reader = self._jobs.get(other)
            if reader is not None and any(s.input.job == job.name for s in reader.stages):
                self.fail(other, _input_lost(job))

    def hand_on(self, name: str, outputs: tuple[Output, ...]) -> None:
        """Give the outputs of a stage to every stage, of any job, that waits for them."""
        artifacts = {output.role: output.artifact for output in outputs}
        for reader in self._readers.get(name, ()):
            stages = self._jobs[reader].stages if reader in self._jobs else ()
            for index, stage in enumerate(stages):
                if stage.input.job == name and stage.input.role in artifacts:
                    ref = InputRef(artifact=artifacts[stage.input.role])
                    self.set_stage(reader, index, input=ref, ready_ms=self.now_ms)
        job = self._jobs[name]
        if job.stage.input.artifact:
            self.set_current(name, ready_ms=self.now_ms)

    # ---- explaining --------------------------------------------------------------------------

    def forget_waits(self) -> None:
        """A new round of decisions begins."""
        self._waiting_for.clear()

    def waiting_for(self, name: str) -> str:
        """Why the job's current stage does not run, or ""."""
        job = self._jobs.get(name)
        if name in self._waiting_for or job is None or job.state is JobState.CANCELLING:
            return self._waiting_for.get(name, "")
        return waits_in_line(job.stage) if self.is_pending(name) else ""

    def note_wait(self, name: str, reason: str) -> None:
        """Say why the current stage waits, now and in its record."""
        self._waiting_for[name] = reason
        stage = self._jobs[name].stage
        if reason not in stage.waited_for and len(stage.waited_for) < WAITED_FOR_MAX:
            self.set_current(name, waited_for=(*stage.waited_for, reason))

    def note_change(self, name: str, what: str) -> None:
        """Record what changed for the current stage while it ran."""
        stage = self._jobs[name].stage
        if len(stage.notes) < CHANGES_MAX:
            self.set_current(name, notes=(*stage.notes, what))

    def note_eviction(self, name: str, what: str) -> None:
        """Record what was evicted for the current stage."""
        if name in self._jobs:
            self.set_current(name, evicted=(*self._jobs[name].stage.evicted, what))


def _input_lost(job: Job) -> Failure:
    return Failure(
        "INPUT_JOB_FAILED",
        f"{job.name}, whose output this job needs, ended as {job.state}",
        (("job", job.name), ("state", str(job.state))),
    )
