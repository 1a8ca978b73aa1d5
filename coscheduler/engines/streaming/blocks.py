"""One allocation for each segment, so that what is freed reaches the other processes.

On the CPU a block is an anonymous private mapping of its own (never part of the heap, which would
keep the pages), on CUDA one flat tensor. It goes when its last tensor goes.
"""

import mmap
from collections.abc import Mapping

import torch
from torch import Tensor

from coscheduler.engines.streaming.prepared import DTYPES, PreparedFile
from coscheduler.engines.streaming.segments import SegmentEntry

COPY_BYTES = 32 * 1024 * 1024  # one step of a copy, so that a load can report progress


class Block:
    """A segment's weights in device memory. `tensors` are views; none may be written to."""

    def __init__(self, entry: SegmentEntry, flat: Tensor) -> None:
        self.bytes = entry.bytes
        self.tensors: Mapping[str, Tensor] = {
            tensor.name: flat[tensor.offset : tensor.offset + tensor.bytes]
            .view(DTYPES[tensor.dtype])
            .view(tensor.shape)
            for tensor in entry.tensors
        }


def load_block(prepared: PreparedFile, name: str, device: torch.device) -> Block:
    """Copy a segment from the mapped file to the device.

    Raises KeyError, and torch's OutOfMemoryError or OSError when the device has no room.
    """
    entry = prepared.segments[name]
    source = torch.frombuffer(prepared.raw(name), dtype=torch.uint8)
    flat = allocate(entry.bytes, device)
    for start in range(0, entry.bytes, COPY_BYTES):
        flat[start : start + COPY_BYTES].copy_(source[start : start + COPY_BYTES])
    return Block(entry, flat)


def allocate(size: int, device: torch.device) -> Tensor:
    """uint8 [size] of device memory in an allocation of its own."""
    if device.type != "cpu":
        return torch.empty(size, dtype=torch.uint8, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=torch.uint8)
