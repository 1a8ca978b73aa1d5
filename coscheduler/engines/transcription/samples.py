"""A recording as it is worked on: 16 kHz mono samples in a file without a name, mapped.

The pages of a mapped file are the system's cache and not memory of the engine, so that ten hours
take no more of it than ten minutes. The disk holds 230 MB an hour until the task ends, however it
ends: the file has no name any more.
"""

import errno
import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from coscheduler.errors import EngineFault

Samples = NDArray[np.float32]


class Spool:
    """Blocks of samples, joined in a file below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (see `samples`)
        self.count = 0

    def add(self, block: Samples) -> None:
        """Append float32 [n]. Raises EngineFault DISK_FULL."""
        with self._disk_full_is_told():
            self._file.write(block.tobytes())
        self.count += len(block)

    def samples(self) -> Samples:
        """All of it, float32 [count], writable; the file is gone when the array is.

        Raises EngineFault DISK_FULL.
        """
        with self._file:
            with self._disk_full_is_told():
                self._file.flush()
            if not self.count:
                return np.zeros(0, np.float32)
            mapping = mmap.mmap(self._file.fileno(), 4 * self.count)
        return np.frombuffer(mapping, np.float32, self.count)

    @contextmanager
    def _disk_full_is_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            size_bytes = 4 * self.count
            text = f"the disk is full after {size_bytes} bytes of decoded samples; free some"
            raise EngineFault("DISK_FULL", text, written_bytes=size_bytes) from None
