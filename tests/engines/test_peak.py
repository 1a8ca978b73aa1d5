"""The peak sampler sees what comes and goes between two looks from outside."""

import mmap
import threading

from coscheduler.config import MIB
from coscheduler.engines.peak import PeakSampler
from coscheduler.procfs import anonymous_bytes

PAGE_BYTES = 4096
SIZE_BYTES = 96 * MIB


class Watched(PeakSampler):
    """Says when it has sampled, so that the test need not guess how long that takes."""

    def __init__(self) -> None:
        super().__init__()
        self.sampled = threading.Event()

    def _resident_anonymous_bytes(self) -> int:
        size = super()._resident_anonymous_bytes()
        self.sampled.set()
        return size


def hold_until_sampled(peak: Watched) -> None:
    with mmap.mmap(-1, SIZE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[::PAGE_BYTES] = bytes(SIZE_BYTES // PAGE_BYTES)
        peak.sampled.clear()
        assert peak.sampled.wait(30)
        peak.sampled.clear()
        assert peak.sampled.wait(30)


def test_memory_that_is_gone_again_is_seen() -> None:
    before = anonymous_bytes("self")
    with Watched() as peak:
        hold_until_sampled(peak)
        assert anonymous_bytes("self") < before + SIZE_BYTES // 2, "it is gone again"
        assert peak.highest_bytes() >= before + SIZE_BYTES * 9 // 10


def test_the_thread_ends_with_the_block() -> None:
    with PeakSampler():
        assert any(thread.name == "peak" for thread in threading.enumerate())
    assert not any(thread.name == "peak" for thread in threading.enumerate())
