"""Opens a daemon, everything in the right order; `Daemon.close` goes back in reverse.

store (lock) -> leftovers of an earlier daemon ended -> files swept -> fork server -> meter
-> scheduler and loop -> unfinished jobs submitted again -> engines asked what they are
"""

import logging

from coscheduler.config import Settings
from coscheduler.core.engine_state import Limits
from coscheduler.core.model import EngineName
from coscheduler.core.scheduler import Scheduler
from coscheduler.runtime.artifacts import Artifacts
from coscheduler.runtime.chats import forget_sessions
from coscheduler.runtime.children import Children, end_leftovers
from coscheduler.runtime.clock import SystemClock
from coscheduler.runtime.daemon import Daemon, Parts
from coscheduler.runtime.loop import Loop
from coscheduler.runtime.meter import Meter, capacity_bytes, open_meter
from coscheduler.runtime.pages import PAGE_SIZE_MAX
from coscheduler.runtime.peaks import Peaks
from coscheduler.runtime.store import Store
from coscheduler.runtime.supervisor import Supervisor
from coscheduler.runtime.watchers import Watchers

log = logging.getLogger(__name__)


async def open_daemon(settings: Settings) -> Daemon:
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
        forget_sessions(settings)
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
    where = settings.device.model_dump(mode="json", include={"device", "index", "threads"})
    loop.keep_peaks(Peaks(settings.data_dir, where))
    if settings.store.journal_bytes_max:
        loop.keep_journal(settings.data_dir, int(settings.store.journal_bytes_max))
    daemon = Daemon(
        Parts(settings, clock, store, artifacts, children, meter, watchers, loop, supervisor)
    )
    await daemon.start()
    return daemon


def configured_engines(settings: Settings) -> tuple[EngineName, ...]:
    """The engines that have a section in the config."""
    sections = (settings.separation, settings.transcription, settings.analysis)
    return tuple(name for name, section in zip(EngineName, sections, strict=True) if section)


def limits_of(settings: Settings) -> Limits:
    """The scheduler's share of the settings."""
    device, scheduling = settings.device, settings.scheduling
    return Limits(
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


def _make_scheduler(settings: Settings, meter: Meter) -> Scheduler:
    total, used = meter.device_bytes()
    capacity = capacity_bytes(settings.device, total, used)
    return Scheduler(capacity, configured_engines(settings), limits_of(settings))


async def _outputs_in_use(store: Store) -> set[str]:
    names: set[str] = set()
    before: tuple[int, str] | None = None
    while page := await store.list_jobs(PAGE_SIZE_MAX, before):
        names |= {out.artifact for job in page for stage in job.stages for out in stage.outputs}
        before = (page[-1].arrival_ms, page[-1].name)
    return names
