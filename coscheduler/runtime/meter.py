"""Measured memory, read from outside the measured process; and the capacity that follows from it.

On the CPU "device memory" is the anonymous memory of an engine process: RssAnon + VmSwap of
/proc/PID/status, minus what it was right after the fork (shared with the fork server until it is
written). Mapped files (prepared weights) are page cache: the host's side. On a CUDA device it is
what NVML says; the daemon itself never makes a CUDA context.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from coscheduler.config import DeviceSettings
from coscheduler.errors import Refused
from coscheduler.procfs import anonymous_bytes, kib_sum

SAMPLE_SECONDS = 0.02  # between two readings of a running engine's memory


class Meter(Protocol):
    """Measures processes and the device, in bytes."""

    device_name: str

    def baseline_bytes(self, pid: int) -> int:
        """What a process holds at this moment that must not be charged to it."""
        ...

    def used_bytes(self, pid: int, baseline_bytes: int) -> int:
        """What the process holds of the device beyond its baseline; 0 when it is gone."""
        ...

    def reported_bytes(self, anonymous_bytes: int, baseline_bytes: int) -> int:
        """The same from what the process read of itself at the end of a slice: it catches peaks
        between two readings from outside. 0 where that says nothing of the device.
        """
        ...

    def device_bytes(self) -> tuple[int, int]:
        """(total, used by everybody)."""
        ...


class ProcessMeter:
    """The CPU as a device."""

    device_name = "CPU"

    def baseline_bytes(self, pid: int) -> int:
        """Anonymous memory right after the fork."""
        return anonymous_bytes(pid)

    def used_bytes(self, pid: int, baseline_bytes: int) -> int:
        """Growth since the fork."""
        try:
            return max(0, anonymous_bytes(pid) - baseline_bytes)
        except ProcessLookupError:
            return 0

    def reported_bytes(self, anonymous_bytes: int, baseline_bytes: int) -> int:
        """Growth since the fork, as the process saw it."""
        return max(0, anonymous_bytes - baseline_bytes)

    def device_bytes(self) -> tuple[int, int]:
        """RAM of the machine, and what is not available to a new program."""
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        total = kib_sum(text, ("MemTotal",)) * 1024
        return total, total - kib_sum(text, ("MemAvailable",)) * 1024


class NvmlMeter:
    """An NVIDIA card through NVML (`nvml` is the pynvml module, already initialised).

    A process' own figure is used where the driver gives one (it does not in some containers and on
    WSL). Elsewhere growth of the whole card is put down to the process that is asked about: starts
    and loads are serialised on CUDA, so that there is one that can have grown.
    """

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        self._card = nvml.nvmlDeviceGetHandleByIndex(index)
        name = nvml.nvmlDeviceGetName(self._card)
        self.device_name = name.decode() if isinstance(name, bytes) else str(name)
        self._put_down: dict[int, int] = {}

    def baseline_bytes(self, pid: int) -> int:
        """A fresh process has no context: nothing to leave out."""
        self._put_down = {known: size for known, size in self._put_down.items() if known != pid}
        return 0

    def used_bytes(self, pid: int, baseline_bytes: int) -> int:
        """Bytes of the card that the process holds."""
        del baseline_bytes
        own = self._own_figures().get(pid)
        if own is not None:
            return int(own)
        if not Path(f"/proc/{pid}").exists():
            self._put_down.pop(pid, None)
            return 0
        used = self.device_bytes()[1]
        others = sum(size for known, size in self._put_down.items() if known != pid)
        known = self._put_down.get(pid, 0)
        unexplained = used - others - known - self._foreign_bytes(used)
        self._put_down[pid] = max(0, known + unexplained)
        return self._put_down[pid]

    def reported_bytes(self, anonymous_bytes: int, baseline_bytes: int) -> int:
        """Host memory says nothing of the card."""
        del anonymous_bytes, baseline_bytes
        return 0

    def _foreign_bytes(self, used: int) -> int:
        """What was there before the first of our processes, taken while none holds anything."""
        if not self._put_down:
            self._before = used
        return self._before

    def _own_figures(self) -> dict[int, int | None]:
        processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._card)
        return {process.pid: process.usedGpuMemory for process in processes}

    def device_bytes(self) -> tuple[int, int]:
        """Total and used, by NVML."""
        info = self._nvml.nvmlDeviceGetMemoryInfo(self._card)
        return int(info.total), int(info.used)


def open_meter(device: DeviceSettings) -> Meter:
    """The meter of the configured device. Raises Refused DEVICE_MISSING."""
    if device.device == "cpu":
        return ProcessMeter()
    import pynvml

    try:
        pynvml.nvmlInit()
        return NvmlMeter(pynvml, device.index)
    except pynvml.NVMLError as error:
        raise Refused(
            "DEVICE_MISSING",
            f'device = "cuda", index {device.index}: {error}; is the driver there? '
            'device = "cpu" runs everywhere',
            index=device.index,
        ) from error


def capacity_bytes(device: DeviceSettings, total_bytes: int, other_bytes: int) -> int:
    """min(configured cap, total - other programs) - headroom, never below 0."""
    cap = int(device.memory_cap) or total_bytes
    return max(0, min(cap, total_bytes - other_bytes) - int(device.headroom))


class Peak:
    """The highest reading while the block runs: sampled, at both ends, and what is noted."""

    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read
        self.bytes = 0

    async def __aenter__(self) -> "Peak":
        self._task = asyncio.create_task(self._sample())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.note(self._read())
        self._task.cancel()

    def note(self, size_bytes: int) -> None:
        """Take in one more reading."""
        self.bytes = max(self.bytes, size_bytes)

    async def _sample(self) -> None:
        while True:
            self.note(self._read())
            await asyncio.sleep(SAMPLE_SECONDS)
