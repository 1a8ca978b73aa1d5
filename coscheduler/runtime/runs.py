"""A stage on an engine, from the task to the outputs that are kept: one event comes of it."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from coscheduler.chat import Broken, Ended, Question, Reply, Said
from coscheduler.core import events as ev
from coscheduler.core.commands import Run
from coscheduler.core.model import EngineName, Failure, Job, Option, Stage, StageKind
from coscheduler.engines import messages as msg
from coscheduler.engines.base import Task
from coscheduler.errors import CoschedulerError
from coscheduler.runtime.api import Progress
from coscheduler.runtime.artifacts import Artifacts
from coscheduler.runtime.conversation import Conversation, RequestFailed
from coscheduler.runtime.meter import Meter, Peak
from coscheduler.stages import named_artifacts

OnProgress = Callable[[str, Progress], None]  # of a job


class Desk(Protocol):
    """Where the requests of conversations are kept until they are answered (`Chats`)."""

    def begin(self, job: str) -> tuple[Question, ...]:
        """A run begins: the requests that it is to answer. Others are sent by `write`."""
        ...

    def hear(self, reply: Reply) -> None:
        """The engine says something to a request."""
        ...

    def end(self, job: str) -> None:
        """The run is over; what is not answered waits for the next one."""
        ...


class Runs:
    """What runs on each engine. `desk` must be there before the first conversation."""

    def __init__(
        self, meter: Meter, artifacts: Artifacts, on_progress: OnProgress, silence_ms_max: int
    ) -> None:
        self.desk: Desk | None = None
        self.foresee: Callable[[StageKind], tuple[Job, int] | None] = lambda _: None
        self._meter = meter
        self._artifacts = artifacts
        self._tell = on_progress
        self._silence_ms_max = silence_ms_max
        self._on_progress: dict[EngineName, Callable[[msg.TaskProgress], None]] = {}
        self._jobs: dict[EngineName, str] = {}

    def job_on(self, engine: EngineName) -> str:
        """The job that runs there, or ran last."""
        return self._jobs[engine]

    def hear(self, engine: EngineName, answer: msg.Answer) -> None:
        """What an engine says while it runs a stage."""
        if isinstance(answer, msg.TaskProgress):
            if on_progress := self._on_progress.get(engine):
                on_progress(answer)
        elif isinstance(answer, Said | Ended | Broken) and self.desk is not None:
            self.desk.hear(answer)

    async def run(
        self, talk: Conversation, command: Run, job: Job, option: Option | None
    ) -> ev.Event:
        """Run the command's stage, as `option` where one is named. Raises ChildEnded."""
        peak = Peak(lambda: self._held(talk))
        try:
            if job.is_durable:
                return await self._run_stage(talk, command, job, option, peak)
            return await self._run_chats(talk, command, job, option, peak)
        except RequestFailed as failed:
            return ev.StageFailed(
                command.engine, job.name, failed.failure, failed.is_retryable, peak.bytes
            )

    def _held(self, talk: Conversation) -> int:
        child = talk.child
        used = self._meter.used_bytes(child.pid, child.baseline_bytes)
        return max(0, used - child.context_bytes)

    def _note(self, talk: Conversation, peak: Peak, answer: msg.TaskReport) -> None:
        """Take in what the child has read of itself."""
        child = talk.child
        held = self._meter.reported_bytes(answer.anonymous_bytes, child.baseline_bytes)
        peak.note(held - child.context_bytes)

    # ---- stages ------------------------------------------------------------------------------

    async def _run_stage(
        self, talk: Conversation, command: Run, job: Job, option: Option | None, peak: Peak
    ) -> ev.Event:
        def on_slice(slice_: msg.TaskProgress) -> None:
            self._note(talk, peak, slice_)
            progress = Progress(command.stage_index, slice_.done, slice_.total, slice_.note)
            self._tell(job.name, progress)

        try:
            task = self._task(job, command.stage_index)
        except OSError as error:  # a disk that is full fails the stage, not the engine
            failure = Failure("WORK_DIR_FAILED", f"making a folder for the results failed: {error}")
            return ev.StageFailed(command.engine, job.name, failure, True, 0)
        self._on_progress[command.engine] = on_slice
        self._jobs[command.engine] = job.name
        try:
            async with peak:
                request = msg.RunTask(task, option, ahead=self._ahead(task.stage))
                answer = await talk.ask(request, self._silence_ms_max)
            if isinstance(answer, msg.TaskDone):
                self._note(talk, peak, answer)
            return await self._finished(command, task, answer, peak.bytes)
        finally:
            del self._on_progress[command.engine]
            await asyncio.to_thread(shutil.rmtree, task.output_dir, True)

    def _ahead(self, kind: StageKind) -> Task | None:
        """What a transcription may begin with beside itself; its results go nowhere yet."""
        found = self.foresee(kind) if kind is StageKind.TRANSCRIBE else None
        if found is None:
            return None
        job, index = found
        resume_dir = self._artifacts.make_resume_dir(job.name, index)
        return self._task_in(job, index, resume_dir, resume_dir)

    def _task(self, job: Job, stage_index: int) -> Task:
        work_dir = self._artifacts.make_work_dir(job.name, stage_index)
        resume_dir = self._artifacts.make_resume_dir(job.name, stage_index)
        return self._task_in(job, stage_index, work_dir, resume_dir)

    def _task_in(self, job: Job, stage_index: int, output_dir: Path, resume_dir: Path) -> Task:
        stage: Stage = job.stages[stage_index]
        parameters = json.loads(stage.parameters_json)
        return Task(
            job=job.name,
            stage=stage.kind,
            parameters=parameters,
            input_path=self._artifacts.path(stage.input.artifact),
            output_dir=output_dir,
            duration_ms=stage.duration_ms,
            resume_dir=resume_dir,
            artifact_paths={
                name: self._artifacts.path(name) for name in named_artifacts(parameters)
            },
        )

    async def _finished(
        self, command: Run, task: Task, answer: msg.Answer, peak_bytes: int
    ) -> ev.Event:
        """Keep the results; a disk that fails here fails the stage, not the engine."""
        if isinstance(answer, msg.TaskStopped):
            return ev.StageStopped(command.engine, command.job)
        assert isinstance(answer, msg.TaskDone)
        try:
            outputs = await self._artifacts.adopt(
                command.job, task.output_dir, answer.result, task.duration_ms
            )
        except (OSError, CoschedulerError) as error:
            failure = Failure("RESULT_NOT_STORED", f"keeping the results failed: {error}")
            return ev.StageFailed(command.engine, command.job, failure, True, peak_bytes)
        notes, numbers = answer.result.notes, tuple(sorted(answer.result.numbers.items()))
        return ev.StageDone(command.engine, command.job, outputs, notes, peak_bytes, numbers)

    # ---- conversations -----------------------------------------------------------------------

    async def _run_chats(
        self, talk: Conversation, command: Run, job: Job, option: Option | None, peak: Peak
    ) -> ev.Event:
        """Hold the conversations of a job; their answers go to the desk."""
        assert self.desk is not None
        questions = self.desk.begin(job.name)
        stage = job.stages[command.stage_index]
        task = Task(job.name, stage.kind, {}, Path(), Path(), stage.duration_ms)
        request = msg.RunTask(task, option, len(questions))
        self._on_progress[command.engine] = lambda slice_: self._note(talk, peak, slice_)
        self._jobs[command.engine] = job.name
        try:
            async with peak:
                answer = await talk.ask(request, self._silence_ms_max, questions)
            if isinstance(answer, msg.TaskStopped):
                return ev.StageStopped(command.engine, job.name)
            assert isinstance(answer, msg.TaskDone)
            self._note(talk, peak, answer)
            numbers = tuple(sorted(answer.result.numbers.items()))
            return ev.StageDone(command.engine, job.name, (), (), peak.bytes, numbers)
        finally:
            self.desk.end(job.name)
            del self._on_progress[command.engine]
