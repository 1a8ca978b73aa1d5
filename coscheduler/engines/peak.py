"""The highest anonymous memory of this process while a task runs.

A tensor that lives for a few milliseconds is missed by a meter that looks in from outside every
now and then. The engine's own process looks more often, at the cost of a few microseconds each.
"""

import os
import threading
from pathlib import Path
from typing import Self

from coscheduler.procfs import anonymous_bytes

PERIOD_SECONDS = 0.004
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class PeakSampler:
    """Samples in a thread of its own while the block runs."""

    def __init__(self) -> None:
        self._statm = Path("/proc/self/statm")
        self._highest_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def highest_bytes(self) -> int:
        """The highest reading since the block was entered, which includes this moment's."""
        return max(self._highest_bytes, anonymous_bytes("self"))

    def _sample(self) -> None:
        while not self._ended.wait(PERIOD_SECONDS):
            self._highest_bytes = max(self._highest_bytes, self._resident_anonymous_bytes())

    def _resident_anonymous_bytes(self) -> int:
        """Much cheaper to read than the status file, but without what is swapped out."""
        resident, shared = self._statm.read_text(encoding="ascii").split()[1:3]
        return (int(resident) - int(shared)) * PAGE_BYTES
