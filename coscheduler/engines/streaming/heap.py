"""Keeping the C heap honest: what is freed must leave the process.

glibc raises its mmap threshold to the size of whatever was freed last (up to 32 MiB); from then on
such tensors come from the heap, and holes in it stay resident. With a fixed threshold every tensor
above it is a mapping of its own that goes when the tensor goes.
"""

import ctypes

M_MMAP_THRESHOLD = -3
M_TRIM_THRESHOLD = -1
M_ARENA_MAX = -8


def fix_thresholds(mmap_bytes: int, trim_bytes: int) -> bool:
    """Fix both thresholds for this process. False where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mapped = mallopt(M_MMAP_THRESHOLD, mmap_bytes)
    return bool(mapped and mallopt(M_TRIM_THRESHOLD, trim_bytes))


def share_one_arena() -> bool:
    """Let threads that are yet to come take memory from the one heap: with an arena for each, what
    stays resident would depend on how many there are and on which of them ran what.

    False where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_ARENA_MAX, 1))


def trim() -> None:
    """Give free pages of the heap back to the system; nothing where the C library cannot."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
