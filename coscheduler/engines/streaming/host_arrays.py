"""Arrays as long as the recording, on the host's side: page cache instead of device memory.

Each lives in a file without a name, mapped shared; it goes when its last tensor goes, also when the
process is killed. The disk is asked for the bytes beforehand, because a full disk would otherwise
end the process with a bus error at the first touch.
"""

import errno
import math
import mmap
import os
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coscheduler.errors import EngineFault


class HostArrays:
    """Makes arrays in files below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def zeros(self, *shape: int) -> Tensor:
        """float32 zeros. Raises EngineFault DISK_FULL."""
        size = 4 * math.prod(shape)
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
                return _mapped(file.fileno(), size).view(shape)
        except OSError as error:
            raise disk_fault(error, self._folder, size) from error

    def collect(self, blocks: Iterable[NDArray[np.float32]]) -> Generator[int, None, Tensor]:
        """All blocks (float32 [n]) one after the other, float32 [N]; yields the count so far.

        Raises EngineFault DISK_FULL, and what `blocks` raises.
        """
        count = 0
        with tempfile.TemporaryFile(dir=self._folder) as file:
            for block in blocks:
                count += len(block)
                try:
                    file.write(np.ascontiguousarray(block, dtype=np.float32).data)
                except OSError as error:
                    raise disk_fault(error, self._folder, 4 * count) from error
                yield count
            file.flush()
            return _mapped(file.fileno(), 4 * count)


def _mapped(descriptor: int, size: int) -> Tensor:
    if size == 0:
        return torch.empty(0)
    return torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.float32)


def disk_fault(error: OSError, folder: Path, size: int) -> EngineFault:
    """What a failed write of `size` bytes below `folder` means: DISK_FULL, else
    WORK_FOLDER_UNUSABLE.
    """
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return EngineFault(
            "WORK_FOLDER_UNUSABLE", f"cannot write below {folder}: {error.strerror}", folder=folder
        )
    return EngineFault(
        "DISK_FULL", f"no room for {size} bytes below {folder}", folder=folder, required_bytes=size
    )
