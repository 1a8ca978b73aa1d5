"""Files that will be read next, brought into the page cache while something else runs.

A thread reads them and throws away what it reads. It reads in pieces and stops between two of them
as soon as something else is wanted. The page cache is memory that nobody else wants: files that
would take more than half of what is available are left alone.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from coscheduler.procfs import kib_sum

log = logging.getLogger(__name__)

CHUNK_BYTES = 8 * 1024 * 1024
SHARE_MAX = 2  # at most one part in so many of the available memory


def available_bytes() -> int:
    """Memory that a new program could have without others being pushed out."""
    return kib_sum(Path("/proc/meminfo").read_text(encoding="ascii"), ("MemAvailable",)) * 1024


class Prefetch:
    """One reading of files, in a thread of its own from `start` on."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self.files = files
        self.read_bytes = 0
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self.run, name="prefetch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def cancel(self) -> None:
        """Stop after the piece at hand; does not wait."""
        self._cancelled.set()

    def join(self) -> None:
        """Wait until it is done or has stopped."""
        self._thread.join()

    def run(self) -> None:
        """A file that cannot be read is passed over: whoever loads it will say why."""
        buffer = bytearray(CHUNK_BYTES)
        for path in self.files:
            try:
                self._read(path, buffer)
            except OSError as error:
                log.info("not prefetched: %s", error)

    def _read(self, path: Path, buffer: bytearray) -> None:
        with path.open("rb", buffering=0) as file:
            while not self._cancelled.is_set() and (count := file.readinto(buffer)):
                self.read_bytes += count


class Prefetcher:
    """At most one prefetch at a time: that of the files wanted last."""

    def __init__(self, available: Callable[[], int] = available_bytes) -> None:
        self._available = available
        self.wanted: tuple[str, ...] = ()
        self.current: Prefetch | None = None

    def want(self, files: tuple[str, ...]) -> None:
        """These will be read next; the same as before changes nothing, () means nothing."""
        if files == self.wanted:
            return
        self.wanted = files
        self.close()
        paths = tuple(Path(name) for name in files)
        if paths and self._is_small(paths):
            self.current = Prefetch(paths)
            self.current.start()

    def close(self) -> None:
        """Stop reading."""
        if self.current is not None:
            self.current.cancel()
            self.current = None

    def _is_small(self, paths: tuple[Path, ...]) -> bool:
        size = sum(path.stat().st_size for path in paths if path.exists())
        return SHARE_MAX * size <= self._available()
