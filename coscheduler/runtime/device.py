"""The device as the daemon shows and shares it: snapshots, watches, the budget, other programs."""

import asyncio
from collections.abc import AsyncGenerator

from coscheduler.config import MIB, Settings
from coscheduler.core import events as ev
from coscheduler.core.engine_state import EngineState
from coscheduler.core.model import EngineName, JobState
from coscheduler.errors import Exhausted, InvalidInput
from coscheduler.runtime.api import EngineView, GpuSnapshot, LedgerLine
from coscheduler.runtime.clock import Clock
from coscheduler.runtime.loop import Loop
from coscheduler.runtime.meter import Meter, capacity_bytes
from coscheduler.runtime.supervisor import Supervisor

METER_SECONDS = 1.0
CAPACITY_STEP_BYTES = 64 * MIB  # other programs' noise below this is not worth a decision
WATCH_MS_MIN = 100  # between two snapshots of one watch
WATCH_MS_MAX = 1000


class Settling:
    """When a reading of the free capacity is worth telling: less at once, more when it lasts."""

    def __init__(self, grow_ms: int, step_bytes: int = CAPACITY_STEP_BYTES) -> None:
        self._grow_ms = grow_ms
        self._step_bytes = step_bytes
        self._more_since_ms: int | None = None
        self._least_bytes = 0

    def next(self, known_bytes: int, read_bytes: int, now_ms: int) -> int | None:
        """The new capacity, or None: the known one stays."""
        if read_bytes <= known_bytes - self._step_bytes:
            self._more_since_ms = None
            return read_bytes
        if read_bytes < known_bytes + self._step_bytes:
            self._more_since_ms = None
            return None
        if self._more_since_ms is None:
            self._more_since_ms, self._least_bytes = now_ms, read_bytes
        self._least_bytes = min(self._least_bytes, read_bytes)
        if now_ms - self._more_since_ms < self._grow_ms:
            return None
        self._more_since_ms = None
        return self._least_bytes


class Device:
    """Reads the scheduler, asks the meter, and tells the loop what the memory has become."""

    def __init__(
        self, settings: Settings, clock: Clock, meter: Meter, loop: Loop, supervisor: Supervisor
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._meter = meter
        self._loop = loop
        self._scheduler = loop.scheduler
        self._supervisor = supervisor
        self._shared = settings.device  # with the cap that holds now
        self._watch_count = 0
        self._is_closed = False

    # ---- views -------------------------------------------------------------------------------

    def snapshot(self) -> GpuSnapshot:
        """The ledger and the engines now."""
        scheduler, ledger = self._scheduler, self._scheduler.ledger
        measured = {name: self._supervisor.measured_bytes(name) for name in scheduler.engines}
        jobs = scheduler.jobs
        running = sum(job.state is not JobState.QUEUED for job in jobs)
        return GpuSnapshot(
            device=self._shared.device,
            device_name=self._meter.device_name,
            capacity_bytes=ledger.capacity_bytes,
            headroom_bytes=int(self._shared.headroom),
            reserved_bytes=ledger.used_bytes,
            measured_bytes=sum(measured.values()),
            other_bytes=self._other_bytes(),
            lines=self._lines(),
            engines=tuple(self._engine_view(name, measured.get(name, 0)) for name in EngineName),
            queued_count=len(jobs) - running,
            running_count=running,
            warnings=tuple(self._loop.discrepancies.values()),
            budget_bytes=ledger.budget_bytes,
            is_draining=scheduler.is_draining,
        )

    def _lines(self) -> tuple[LedgerLine, ...]:
        return tuple(
            LedgerLine(engine, entry.line, entry.bytes, reservation.state)
            for (engine, _), reservation in self._scheduler.ledger.entries().items()
            for entry in reservation.lines
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
            pid=self._supervisor.pid(name),
            job=state.job,
            predicted_bytes=self._scheduler.ledger.bytes_of(name),
            measured_bytes=measured_bytes,
            options=tuple(option.name for option in description.options) if description else (),
            failure=_failure_text(state),
            is_pinned=state.is_pinned,
            note=state.note,
        )

    async def watch(self) -> AsyncGenerator[GpuSnapshot, None]:
        """Snapshots, each made when it is asked for: newest wins. Raises Exhausted."""
        watchers_max = self._settings.server.watchers_max
        if self._watch_count >= watchers_max:
            raise Exhausted(
                "TOO_MANY_WATCHERS",
                f"{self._watch_count} watches of the device are open and {watchers_max} are "
                "allowed; close some",
                watchers_max=watchers_max,
                retry_ms=WATCH_MS_MAX,
            )
        self._watch_count += 1
        try:
            while not self._is_closed:
                seen = self._loop.handled_count
                yield self.snapshot()
                await self._change(seen)
        finally:
            self._watch_count -= 1

    async def _change(self, seen: int) -> None:
        """Until something happened after `seen`, in bounds: measured bytes move without events."""
        await self._loop.wait_for(lambda: self._is_closed, WATCH_MS_MIN)
        rest_ms = WATCH_MS_MAX - WATCH_MS_MIN
        await self._loop.wait_for(lambda: self._loop.handled_count != seen, rest_ms)

    # ---- capacity ----------------------------------------------------------------------------

    async def set_budget(self, budget_bytes: int) -> None:
        """Another cap from now on, 0 for the config's. Raises InvalidInput BUDGET_NEGATIVE."""
        if budget_bytes < 0:
            raise InvalidInput(
                "BUDGET_NEGATIVE",
                f"a budget of {budget_bytes} bytes; give 0 for the config's",
                budget_bytes=budget_bytes,
            )
        cap = budget_bytes or self._settings.device.memory_cap
        self._shared = self._shared.model_copy(update={"memory_cap": cap})
        await self._loop.deliver(self._reading())

    async def watch_capacity(self) -> None:
        """Other programs take and give back memory: tell the scheduler, in whole steps."""
        settling = Settling(self._settings.scheduling.capacity_grow_ms)
        self._loop.post(self._reading())
        while True:
            await asyncio.sleep(METER_SECONDS)
            known, reading = self._scheduler.ledger.capacity_bytes, self._reading()
            now_ms = self._clock.now_ms()
            capacity = settling.next(known, reading.capacity_bytes, now_ms)
            if capacity is not None:
                self._loop.post(ev.CapacityChanged(capacity, reading.budget_bytes))

    def close(self) -> None:
        """End the watches, once the next event has been handled."""
        self._is_closed = True

    def _reading(self) -> ev.CapacityChanged:
        total, _ = self._meter.device_bytes()
        capacity = capacity_bytes(self._shared, total, self._other_bytes())
        return ev.CapacityChanged(capacity, capacity_bytes(self._shared, total, 0))

    def _other_bytes(self) -> int:
        """What other programs use of the device."""
        _, used = self._meter.device_bytes()
        own = sum(map(self._supervisor.measured_bytes, self._scheduler.engines))
        return max(0, used - own)


def _failure_text(state: EngineState) -> str:
    return f"{state.failure.reason}: {state.failure.message}" if state.failure else ""
