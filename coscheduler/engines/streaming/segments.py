"""Where tensors and segments lie in a prepared file: names, shapes and sizes; no tensor library."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

PAGE_BYTES = 4096
TENSOR_ALIGN_BYTES = 64
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


class ShapedTensor(Protocol):
    """A tensor of a segment to come."""

    @property
    def name(self) -> str:
        """As in the prepared file."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements by dimension."""
        ...

    @property
    def dtype(self) -> str:
        """A key of ELEMENT_BYTES."""
        ...


class ShapedSegment(Protocol):
    """A segment to come: tensors that are loaded and evicted together."""

    @property
    def name(self) -> str:
        """As in the prepared file."""
        ...

    @property
    def tensors(self) -> Sequence[ShapedTensor]:
        """In the order of the file."""
        ...


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: `offset` bytes from the start of its segment."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def bytes(self) -> int:
        """Size without padding."""
        return math.prod(self.shape) * ELEMENT_BYTES[self.dtype]


@dataclass(frozen=True)
class SegmentEntry:
    """Where a segment lies: `offset` bytes from the start of the file, a multiple of the page."""

    name: str
    offset: int
    bytes: int
    tensors: tuple[TensorEntry, ...]


def lay_out(plans: Sequence[ShapedSegment], start: int) -> tuple[SegmentEntry, ...]:
    """Give every segment and tensor its place; `start` is where the first segment may begin."""
    segments = []
    offset = align(start, PAGE_BYTES)
    for plan in plans:
        tensors, size = [], 0
        for tensor in plan.tensors:
            size = align(size, TENSOR_ALIGN_BYTES)
            tensors.append(TensorEntry(tensor.name, tensor.shape, tensor.dtype, size))
            size += tensors[-1].bytes
        segments.append(SegmentEntry(plan.name, offset, align(size, PAGE_BYTES), tuple(tensors)))
        offset += segments[-1].bytes
    return tuple(segments)


def align(value: int, to: int) -> int:
    """The least multiple of `to` that is not below `value`."""
    return -(-value // to) * to
