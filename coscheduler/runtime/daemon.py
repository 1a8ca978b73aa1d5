"""The daemon without its wire: opens everything in the right order, answers, closes in reverse.

store (lock) -> leftovers of an earlier daemon ended -> files swept -> fork server -> meter
-> scheduler and loop -> unfinished jobs submitted again -> engines asked what they are
"""

import asyncio
import base64
import binascii
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from coscheduler.config import MIB, Settings
from coscheduler.core import events as ev
from coscheduler.core.engine_state import EngineState, Limits, Phase
from coscheduler.core.lifecycle import recover
from coscheduler.core.model import ENGINE_OF, EngineName, Failure, Job, JobState
from coscheduler.core.scheduler import Scheduler
from coscheduler.errors import CoschedulerError, InvalidInput, Refused, Unavailable
from coscheduler.runtime import intake
from coscheduler.runtime.api import (
    Artifact,
    EngineView,
    GpuSnapshot,
    JobRequest,
    JobSnapshot,
    LedgerLine,
)
from coscheduler.runtime.artifacts import Artifacts, Incoming
from coscheduler.runtime.children import Children, end_leftovers
from coscheduler.runtime.clock import Clock, SystemClock
from coscheduler.runtime.loop import Loop
from coscheduler.runtime.meter import Meter, capacity_bytes, open_meter
from coscheduler.runtime.store import Store
from coscheduler.runtime.supervisor import Supervisor
from coscheduler.runtime.watchers import Watchers

log = logging.getLogger(__name__)

PAGE_SIZE_MAX = 500
EXIT_SOFTWARE = 70  # sysexits.h: an internal error
METER_SECONDS = 1.0
CAPACITY_STEP_BYTES = 64 * MIB  # other programs' noise below this is not worth a decision


@dataclass
class _Parts:
    settings: Settings
    clock: Clock
    store: Store
    artifacts: Artifacts
    children: Children
    meter: Meter
    watchers: Watchers
    loop: Loop
    supervisor: Supervisor


async def open_daemon(settings: Settings) -> "Daemon":
    """Everything running, unfinished jobs queued again. Raises Refused STORE_IN_USE,
    DEVICE_MISSING, StoreFault.
    """
    clock = SystemClock()
    store = await Store.open(settings.data_dir)
    try:
        leftovers = end_leftovers(await store.take_processes())
        if leftovers:
            log.warning("ended %d engine processes of an earlier daemon", leftovers)
        meter = open_meter(settings.device)
        artifacts = Artifacts(settings, store, clock)
        unfinished = {job.name for job in await store.unfinished_jobs()}
        await artifacts.clean(await _outputs_in_use(store), unfinished)
        children = Children(settings)
        await children.start()
    except BaseException:
        await store.close()
        raise
    watchers = Watchers(settings.server.watchers_max)
    loop = Loop(_make_scheduler(settings, meter), store, watchers, clock)
    supervisor = Supervisor(settings, children, meter, artifacts, store, clock, loop)
    loop.attach(supervisor)
    daemon = Daemon(
        _Parts(settings, clock, store, artifacts, children, meter, watchers, loop, supervisor)
    )
    await daemon.start()
    return daemon


def configured_engines(settings: Settings) -> tuple[EngineName, ...]:
    """The engines that have a section in the config."""
    sections = (settings.separation, settings.transcription, settings.analysis)
    return tuple(name for name, section in zip(EngineName, sections, strict=True) if section)


def _make_scheduler(settings: Settings, meter: Meter) -> Scheduler:
    device, scheduling = settings.device, settings.scheduling
    total, used = meter.device_bytes()
    limits = Limits(
        queue_max=scheduling.queue_max,
        attempts_max=scheduling.attempts_max,
        preempts_max=scheduling.preempts_max,
        ageing_ms=scheduling.ageing_ms,
        keep_alive_ms=scheduling.keep_alive_ms,
        compute_slots=device.compute_slots,
        processes_max=device.gpu_processes_max,
        serial_loads=device.device == "cuda",  # NVML differences need one change at a time
        group_ms_max=scheduling.group_ms_max,
        resident_ms_min=scheduling.resident_ms_min,
        oom_steps_max=scheduling.oom_steps_max,
        oom_memory_ms=scheduling.oom_memory_ms,
        peak_tolerance_bytes=int(scheduling.peak_tolerance),
    )
    capacity = capacity_bytes(device, total, used)
    return Scheduler(capacity, configured_engines(settings), limits)


async def _outputs_in_use(store: Store) -> set[str]:
    names: set[str] = set()
    before: tuple[int, str] | None = None
    while page := await store.list_jobs(PAGE_SIZE_MAX, before):
        names |= {out.artifact for job in page for stage in job.stages for out in stage.outputs}
        before = (page[-1].arrival_ms, page[-1].name)
    return names


class Daemon:
    """Implements `api.DaemonApi`."""

    def __init__(self, parts: _Parts) -> None:
        self._parts = parts
        self._settings = parts.settings
        self._store = parts.store
        self._artifacts = parts.artifacts
        self._loop = parts.loop
        self._scheduler = parts.loop.scheduler
        self._creating = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._draining = False

    async def start(self) -> None:
        """Run the loop, take up unfinished jobs, ask the engines what they are."""
        loop = asyncio.create_task(self._loop.run(), name="loop")
        loop.add_done_callback(_end_with_the_loop)
        self._tasks.append(loop)
        self._tasks.append(asyncio.create_task(self._watch_capacity(), name="capacity"))
        for job in await self._store.unfinished_jobs():
            await self._take_up(job)
        for engine in self._scheduler.engines:
            self._parts.supervisor.describe(engine)

    async def _take_up(self, job: Job) -> None:
        """A job that an earlier daemon did not finish."""
        recovered = recover(job)
        try:
            recovered = await intake.resolve_after_restart(recovered, self._store)
        except CoschedulerError as error:
            failure = Failure(error.reason, error.message, tuple(error.numbers.items()))
            recovered = _failed(recovered, failure, self._parts.clock.now_ms())
        await self._store.put_jobs([recovered])
        if not recovered.state.is_final:
            log.info("taking up %s again", job.name, extra={"job": job.name})
            await self._loop.deliver(ev.Submitted(recovered))

    async def close(self, drain_ms: int = 0) -> None:
        """Let running stages end for up to `drain_ms`, then stop; unfinished jobs stay stored."""
        self._draining = True
        await self._loop.deliver(ev.DrainRequested())
        await self._loop.wait_for(lambda: self._scheduler.is_quiet, drain_ms)
        for task in self._tasks:
            task.cancel()
        await self._parts.supervisor.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._store.close()

    # ---- jobs --------------------------------------------------------------------------------

    async def create_job(self, request: JobRequest) -> JobSnapshot:
        """See `api.DaemonApi`."""
        self._check_open()
        if known := await self._store.job_by_request(request.request_id):
            return self._loop.snapshot(known)
        job = await intake.make_job(request, self._store, self._parts.clock.now_ms())
        await self._wait_for_descriptions(job)
        async with self._creating:
            self._check_open()
            self._scheduler.admit(job)
            stored = await self._store.add_job(job)
            if stored.name == job.name:
                await self._loop.deliver(ev.Submitted(job))
        return self._loop.snapshot(stored)

    async def get_job(self, name: str) -> JobSnapshot:
        """See `api.DaemonApi`."""
        return self._loop.snapshot(await self._store.get_job(name))

    async def list_jobs(self, page_size: int, page_token: str) -> tuple[list[JobSnapshot], str]:
        """See `api.DaemonApi`."""
        count = _page_size(page_size)
        jobs = await self._store.list_jobs(count, _decode_token(page_token))
        token = _encode_token(jobs[-1].arrival_ms, jobs[-1].name) if len(jobs) == count else ""
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
        count = _page_size(page_size)
        found = await self._store.list_artifacts(count, _decode_token(page_token), job)
        token = _encode_token(found[-1].created_ms, found[-1].name) if len(found) == count else ""
        return found, token

    async def delete_artifact(self, name: str) -> None:
        """See `api.DaemonApi`."""
        await self._store.get_artifact(name)
        self._check_unused(name)
        await self._artifacts.delete(name)

    async def read_artifact(self, name: str, offset: int) -> AsyncIterator[bytes]:
        """See `api.DaemonApi`."""
        artifact = await self._store.get_artifact(name)
        chunk_bytes = self._settings.server.chunk_bytes
        async for chunk in self._artifacts.read(artifact, offset, chunk_bytes):
            yield chunk

    # ---- the device --------------------------------------------------------------------------

    async def gpu(self) -> GpuSnapshot:
        """See `api.DaemonApi`."""
        ledger, supervisor = self._scheduler.ledger, self._parts.supervisor
        measured = {name: supervisor.measured_bytes(name) for name in self._scheduler.engines}
        jobs = self._scheduler.jobs
        running = sum(job.state is not JobState.QUEUED for job in jobs)
        return GpuSnapshot(
            device=self._settings.device.device,
            device_name=self._parts.meter.device_name,
            capacity_bytes=ledger.capacity_bytes,
            headroom_bytes=int(self._settings.device.headroom),
            reserved_bytes=ledger.used_bytes,
            measured_bytes=sum(measured.values()),
            other_bytes=self._other_bytes(),
            lines=tuple(
                LedgerLine(engine, entry.line, entry.bytes, reservation.state)
                for (engine, _), reservation in ledger.entries().items()
                for entry in reservation.lines
            ),
            engines=tuple(self._engine_view(name, measured.get(name, 0)) for name in EngineName),
            queued_count=len(jobs) - running,
            running_count=running,
            warnings=tuple(self._loop.discrepancies.values()),
        )

    def _engine_view(self, name: EngineName, measured_bytes: int) -> EngineView:
        state = self._scheduler.engines.get(name)
        if state is None:
            return EngineView(name, "not_configured")
        description = state.description
        return EngineView(
            engine=name,
            state=state.phase,
            model=description.model if description else "",
            option=state.option.name if state.option else "",
            quality_tier=state.option.quality_tier if state.option else 0,
            pid=self._parts.supervisor.pid(name),
            job=state.job,
            predicted_bytes=self._scheduler.ledger.bytes_of(name),
            measured_bytes=measured_bytes,
            options=tuple(option.name for option in description.options) if description else (),
            failure=_failure_text(state),
        )

    def _other_bytes(self) -> int:
        """What other programs use of the device."""
        _, used = self._parts.meter.device_bytes()
        supervisor = self._parts.supervisor
        return max(0, used - sum(map(supervisor.measured_bytes, self._scheduler.engines)))

    async def _watch_capacity(self) -> None:
        """Other programs take and give back memory: tell the scheduler, in whole steps."""
        while True:
            await asyncio.sleep(METER_SECONDS)
            total, _ = self._parts.meter.device_bytes()
            capacity = capacity_bytes(self._settings.device, total, self._other_bytes())
            change = abs(capacity - self._scheduler.ledger.capacity_bytes)
            if change >= CAPACITY_STEP_BYTES:
                self._loop.post(ev.CapacityChanged(capacity))

    # ---- checks ------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._draining:
            raise Unavailable("DRAINING", "the daemon is stopping and takes nothing new")

    async def _wait_for_descriptions(self, job: Job) -> None:
        """An engine that was just asked what it is gets a moment to answer."""
        engines = [self._scheduler.engines.get(ENGINE_OF[stage.kind]) for stage in job.stages]
        await self._loop.wait_for(
            lambda: all(e is None or e.phase is not Phase.UNDESCRIBED for e in engines),
            self._settings.scheduling.start_ms_max,
        )

    def _check_unused(self, artifact: str) -> None:
        for job in self._scheduler.jobs:
            if any(stage.input.artifact == artifact for stage in job.stages):
                raise Refused(
                    "ARTIFACT_IN_USE",
                    f"{job.name} still needs {artifact}; cancel it or wait",
                    artifact=artifact,
                    job=job.name,
                )


def _end_with_the_loop(loop: "asyncio.Task[None]") -> None:
    """A bug in the scheduler must not leave a daemon that answers and does nothing: end at once, as
    in any crash, from which the next start recovers.
    """
    if not loop.cancelled() and (error := loop.exception()) is not None:
        log.critical("the loop failed; ending", exc_info=error)
        logging.shutdown()
        os._exit(EXIT_SOFTWARE)


def _failure_text(state: EngineState) -> str:
    return f"{state.failure.reason}: {state.failure.message}" if state.failure else ""


def _failed(job: Job, failure: Failure, now_ms: int) -> Job:
    if job.state.is_final:
        return job
    return replace(job, state=JobState.FAILED, failure=failure, finished_ms=now_ms)


def _page_size(asked: int) -> int:
    if asked < 0:
        raise InvalidInput("PAGE_SIZE_INVALID", f"page_size {asked} is negative", page_size=asked)
    return min(asked or 50, PAGE_SIZE_MAX)


def _encode_token(time_ms: int, name: str) -> str:
    return base64.urlsafe_b64encode(f"{time_ms} {name}".encode()).decode()


def _decode_token(token: str) -> tuple[int, str] | None:
    if not token:
        return None
    try:
        time_ms, _, name = base64.urlsafe_b64decode(token.encode()).decode().partition(" ")
        return int(time_ms), name
    except (ValueError, binascii.Error, UnicodeError):
        raise InvalidInput(
            "PAGE_TOKEN_INVALID", "the page_token is not one that a list call returned"
        ) from None
