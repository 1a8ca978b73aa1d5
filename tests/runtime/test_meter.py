import mmap
import os
from types import SimpleNamespace

import pytest

from coscheduler.config import GIB, MIB, DeviceSettings
from coscheduler.procfs import anonymous_bytes
from coscheduler.runtime.meter import (
    NvmlMeter,
    ProcessMeter,
    capacity_bytes,
    open_meter,
)


def test_anonymous_memory_is_counted_and_mapped_files_are_not(tmp_path) -> None:  # type: ignore[no-untyped-def]
    meter = ProcessMeter()
    baseline = meter.baseline_bytes(os.getpid())
    memory = mmap.mmap(-1, 32 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, len(memory), mmap.PAGESIZE):
        memory[offset] = 1
    grown = meter.used_bytes(os.getpid(), baseline)
    assert abs(grown - 32 * MIB) < MIB
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 32 * MIB)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[offset] for offset in range(0, len(mapped), mmap.PAGESIZE)) > 0
        assert abs(meter.used_bytes(os.getpid(), baseline) - grown) < MIB
    memory.close()
    assert meter.used_bytes(os.getpid(), baseline) < MIB


def test_a_process_that_is_gone_holds_nothing() -> None:
    with pytest.raises(ProcessLookupError):
        anonymous_bytes(2**22 + 1)
    assert ProcessMeter().used_bytes(2**22 + 1, 0) == 0


def test_the_capacity_is_what_is_left_of_the_cap_or_the_device() -> None:
    def device(**values: object) -> DeviceSettings:
        return DeviceSettings.model_validate({"headroom": "256 MiB", **values})

    assert capacity_bytes(device(memory_cap="4 GiB"), 24 * GIB, 0) == 4 * GIB - 256 * MIB
    assert capacity_bytes(device(), 24 * GIB, 2 * GIB) == 22 * GIB - 256 * MIB
    assert capacity_bytes(device(memory_cap="4 GiB"), 24 * GIB, 21 * GIB) == 3 * GIB - 256 * MIB
    assert capacity_bytes(device(), GIB, GIB) == 0


class FakeNvml:
    """A card with what the tests put on it; `figures` are the driver's own per-process ones."""

    def __init__(self) -> None:
        self.used = 100
        self.figures: dict[int, int | None] = {}

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, card: int) -> bytes:  # noqa: N802
        return b"A card"

    def nvmlDeviceGetMemoryInfo(self, card: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=1000, used=self.used)

    def nvmlDeviceGetComputeRunningProcesses(self, card: int) -> list[SimpleNamespace]:  # noqa: N802
        return [SimpleNamespace(pid=p, usedGpuMemory=b) for p, b in self.figures.items()]


def test_nvml_figures_of_a_process_are_used_where_the_driver_has_them() -> None:
    nvml = FakeNvml()
    meter = NvmlMeter(nvml, 0)
    assert (meter.device_name, meter.device_bytes()) == ("A card", (1000, 100))
    nvml.figures = {os.getpid(): 70}
    assert meter.used_bytes(os.getpid(), 0) == 70


def test_without_them_growth_of_the_card_is_put_down_to_who_is_asked_about() -> None:
    nvml = FakeNvml()
    meter = NvmlMeter(nvml, 0)
    mine, other = os.getpid(), os.getppid()
    meter.baseline_bytes(mine)
    assert meter.used_bytes(mine, 0) == 0
    nvml.used = 150
    assert meter.used_bytes(mine, 0) == 50
    meter.baseline_bytes(other)
    nvml.used = 180
    assert meter.used_bytes(other, 0) == 30
    assert meter.used_bytes(mine, 0) == 50
    nvml.used = 160
    assert meter.used_bytes(mine, 0) == 30


def test_the_meter_follows_the_device() -> None:
    assert isinstance(open_meter(DeviceSettings()), ProcessMeter)
