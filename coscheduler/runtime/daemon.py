"""The daemon without its wire: what can be asked of it; `opening.py` puts it together."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from coscheduler.chat import ChatEvent, ChatParameters
from coscheduler.config import Settings
from coscheduler.core import events as ev
from coscheduler.core.dry_run import plan_job
from coscheduler.core.engine_state import Phase
from coscheduler.core.lifecycle import recover
from coscheduler.core.model import EngineName, Failure, Job, JobPlan, JobState, Priority
from coscheduler.core.refusals import failure_of
from coscheduler.errors import CoschedulerError, Refused, Unavailable
from coscheduler.runtime import intake, joining, pages
from coscheduler.runtime.api import Artifact, GpuSnapshot, JobRequest, JobSnapshot, TranscriptPart
from coscheduler.runtime.artifacts import Artifacts, Incoming
from coscheduler.runtime.chats import Chats, forget_sessions
from coscheduler.runtime.children import Children
from coscheduler.runtime.clock import Clock
from coscheduler.runtime.device import Device
from coscheduler.runtime.loop import Loop
from coscheduler.runtime.meter import Meter
from coscheduler.runtime.store import Store
from coscheduler.runtime.supervisor import Supervisor
from coscheduler.runtime.watchers import Watchers

log = logging.getLogger(__name__)

EXIT_SOFTWARE = 70  # sysexits.h: an internal error


@dataclass
class Parts:
    """What a daemon is made of, opened."""

    settings: Settings
    clock: Clock
    store: Store
    artifacts: Artifacts
    children: Children
    meter: Meter
    watchers: Watchers
    loop: Loop
    supervisor: Supervisor


class Daemon:
    """Implements `api.DaemonApi`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._settings = parts.settings
        self._store = parts.store
        self._artifacts = parts.artifacts
        self._loop = parts.loop
        self._scheduler = parts.loop.scheduler
        self._device = Device(
            parts.settings, parts.clock, parts.meter, parts.loop, parts.supervisor
        )
        self._chats = Chats(
            parts.settings, parts.loop, parts.supervisor, parts.watchers, parts.clock
        )
        parts.supervisor.attach(self._chats)
        self._creating = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._draining = False

    async def start(self) -> None:
        """Run the loop, take up unfinished jobs, ask the engines what they are."""
        loop = asyncio.create_task(self._loop.run(), name="loop")
        loop.add_done_callback(_end_with_the_loop)
        self._tasks.append(loop)
        self._tasks.append(asyncio.create_task(self._device.watch_capacity(), name="capacity"))
        for job in await self._store.unfinished_jobs():
            await self._take_up(job)
        for engine in self._scheduler.engines:
            survey_bytes = _survey_bytes(self._parts.settings, engine)
            await self._loop.deliver(ev.EngineAdded(engine, survey_bytes))

    async def _take_up(self, job: Job) -> None:
        """A job that an earlier daemon did not finish."""
        recovered = recover(job)
        try:
            recovered = await intake.resolve_after_restart(recovered, self._store)
        except CoschedulerError as error:
            recovered = _failed(recovered, failure_of(error), self._parts.clock.now_ms())
        await self._store.put_jobs([recovered])
        if not recovered.state.is_final:
            log.info("taking up %s again", job.name, extra={"job": job.name})
            await self._loop.deliver(ev.Submitted(recovered))

    async def close(self, drain_ms: int = 0) -> None:
        """Let running stages end for up to `drain_ms`, then stop; unfinished jobs stay stored."""
        self._draining = True
        self._device.close()
        await self._loop.deliver(ev.DrainRequested())
        await self._loop.wait_for(lambda: self._scheduler.is_quiet, drain_ms)
        self._chats.close()
        for task in self._tasks:
            task.cancel()
        await self._parts.supervisor.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._loop.close()
        forget_sessions(self._settings)
        await self._store.close()

    # ---- jobs --------------------------------------------------------------------------------

    async def create_job(self, request: JobRequest) -> JobSnapshot:
        """See `api.DaemonApi`."""
        self._check_open()
        if known := await self._store.job_by_request(request.request_id):
            return self._loop.snapshot(known)
        job = await self._make_job(request)
        await self._wait_for_descriptions(job.engines)
        async with self._creating:
            self._check_open()
            self._scheduler.admit(job)
            stored = await self._store.add_job(job)
            if stored.name == job.name:
                await self._loop.deliver(ev.Submitted(job))
        return self._loop.snapshot(stored)

    async def plan_job(self, request: JobRequest) -> JobPlan:
        """See `api.DaemonApi`."""
        job = await self._make_job(request)
        await self._wait_for_descriptions(job.engines)
        state = replace(self._scheduler.state(), now_ms=self._parts.clock.now_ms())
        return await asyncio.to_thread(plan_job, state, job)

    async def _make_job(self, request: JobRequest) -> Job:
        now_ms, transcription = self._parts.clock.now_ms(), self._settings.transcription
        return await intake.make_job(request, self._store, now_ms, transcription)

    async def get_job(self, name: str) -> JobSnapshot:
        """See `api.DaemonApi`."""
        return self._loop.snapshot(await self._store.get_job(name))

    async def list_jobs(self, page_size: int, page_token: str) -> tuple[list[JobSnapshot], str]:
        """See `api.DaemonApi`."""
        count = pages.size(page_size)
        jobs = await self._store.list_jobs(count, pages.decode(page_token))
        token = pages.encode(jobs[-1].arrival_ms, jobs[-1].name) if len(jobs) == count else ""
        return [self._loop.snapshot(job) for job in jobs], token

    def watch_job(self, name: str) -> AsyncIterator[JobSnapshot]:
        """See `api.DaemonApi`."""
        return self._parts.watchers.watch(name, lambda: self.get_job(name))

    async def cancel_job(self, name: str) -> JobSnapshot:
        """See `api.DaemonApi`."""
        await self._store.get_job(name)
        await self._loop.deliver(ev.CancelRequested(name))
        return await self.get_job(name)

    async def delete_job(self, name: str) -> None:
        """See `api.DaemonApi`."""
        job = await self._store.get_job(name)
        if not job.state.is_final:
            raise Refused(
                "JOB_NOT_FINAL",
                f"{name} is {job.state}; cancel it first",
                job=name,
                state=job.state,
            )
        outputs = [output.artifact for stage in job.stages for output in stage.outputs]
        for artifact in outputs:
            self._check_unused(artifact)
        await self._store.delete_job(name)
        for artifact in outputs:
            await self._artifacts.delete(artifact)

    # ---- conversations -----------------------------------------------------------------------

    async def chat(
        self, parameters: ChatParameters, priority: int = int(Priority.INTERACTIVE)
    ) -> AsyncGenerator[ChatEvent, None]:
        """See `api.DaemonApi`."""
        self._check_open()
        of_class = intake.priority_of(priority)
        await self._wait_for_descriptions([EngineName.ANALYSIS])
        async with aclosing(self._chats.generate(parameters, of_class)) as events:
            async for event in events:
                yield event

    # ---- artifacts ---------------------------------------------------------------------------

    async def begin_artifact(self, kind: str, media_type: str, filename: str) -> Incoming:
        """See `api.DaemonApi`."""
        self._check_open()
        return await self._artifacts.begin(kind, media_type, filename)

    async def get_artifact(self, name: str) -> Artifact:
        """See `api.DaemonApi`."""
        return await self._store.get_artifact(name)

    async def list_artifacts(
        self, page_size: int, page_token: str, job: str
    ) -> tuple[list[Artifact], str]:
        """See `api.DaemonApi`."""
        count = pages.size(page_size)
        found = await self._store.list_artifacts(count, pages.decode(page_token), job)
        token = pages.encode(found[-1].created_ms, found[-1].name) if len(found) == count else ""
        return found, token

    async def delete_artifact(self, name: str) -> None:
        """See `api.DaemonApi`."""
        await self._store.get_artifact(name)
        self._check_unused(name)
        await self._artifacts.delete(name)

    async def join_transcripts(self, parts: Sequence[TranscriptPart]) -> Artifact:
        """See `api.DaemonApi`."""
        self._check_open()
        return await joining.join(parts, self._artifacts, self._store.get_artifact)

    async def read_artifact(self, name: str, offset: int) -> AsyncIterator[bytes]:
        """See `api.DaemonApi`."""
        artifact = await self._store.get_artifact(name)
        chunk_bytes = self._settings.server.chunk_bytes
        async for chunk in self._artifacts.read(artifact, offset, chunk_bytes):
            yield chunk

    # ---- the device --------------------------------------------------------------------------

    async def gpu(self) -> GpuSnapshot:
        """See `api.DaemonApi`."""
        return self._device.snapshot()

    def watch_gpu(self) -> AsyncIterator[GpuSnapshot]:
        """See `api.DaemonApi`."""
        return self._device.watch()

    async def set_budget(self, budget_bytes: int) -> GpuSnapshot:
        """See `api.DaemonApi`."""
        await self._device.set_budget(budget_bytes)
        return self._device.snapshot()

    async def load_engine(self, engine: EngineName, option: str) -> GpuSnapshot:
        """See `api.DaemonApi`."""
        self._check_open()
        await self._wait_for_descriptions([engine])
        self._scheduler.controls.check_load(engine, option)
        return await self._control(ev.LoadRequested(engine, option))

    async def unload_engine(self, engine: EngineName) -> GpuSnapshot:
        """See `api.DaemonApi`."""
        self._scheduler.controls.check_unload(engine)
        return await self._control(ev.UnloadRequested(engine))

    async def pin_engine(self, engine: EngineName, is_pinned: bool) -> GpuSnapshot:
        """See `api.DaemonApi`."""
        self._scheduler.controls.usable(engine)
        return await self._control(ev.PinRequested(engine, is_pinned))

    async def drain(self, is_draining: bool) -> GpuSnapshot:
        """See `api.DaemonApi`."""
        self._check_open()
        return await self._control(ev.DrainRequested() if is_draining else ev.DrainEnded())

    async def _control(self, event: ev.Event) -> GpuSnapshot:
        await self._loop.deliver(event)
        return self._device.snapshot()

    # ---- checks ------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._draining:
            raise Unavailable("DRAINING", "the daemon is stopping and takes nothing new")

    async def _wait_for_descriptions(self, names: Iterable[EngineName]) -> None:
        """Engines that were just asked what they are get a moment to answer."""
        engines = [self._scheduler.engines.get(name) for name in names]
        await self._loop.wait_for(
            lambda: all(e is None or e.phase is not Phase.UNDESCRIBED for e in engines),
            self._settings.scheduling.start_ms_max,
        )

    def _check_unused(self, artifact: str) -> None:
        for job in self._scheduler.jobs:
            if any(intake.reads(stage, artifact) for stage in job.stages):
                raise Refused(
                    "ARTIFACT_IN_USE",
                    f"{job.name} still needs {artifact}; cancel it or wait",
                    artifact=artifact,
                    job=job.name,
                )


def _survey_bytes(settings: Settings, engine: EngineName) -> int:
    """What finding out about an engine may take of the device. A card is hidden from it."""
    if settings.engines == "fake" or settings.device.device != "cpu":
        return 0
    if engine is not EngineName.ANALYSIS or settings.analysis is None:
        return 0  # they read file headers
    return int(settings.analysis.survey_bytes_max)


def _end_with_the_loop(loop: "asyncio.Task[None]") -> None:
    """A bug in the scheduler must not leave a daemon that answers and does nothing: end at once, as
    in any crash, from which the next start recovers.
    """
    if not loop.cancelled() and (error := loop.exception()) is not None:
        log.critical("the loop failed; ending", exc_info=error)
        logging.shutdown()
        os._exit(EXIT_SOFTWARE)


def _failed(job: Job, failure: Failure, now_ms: int) -> Job:
    if job.state.is_final:
        return job
    return replace(job, state=JobState.FAILED, failure=failure, finished_ms=now_ms)
