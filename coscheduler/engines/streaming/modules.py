"""Any torch module that is a list of blocks, streamed: its weights as segments, and its blocks as
calls with whatever weights are there.

    file = prepare(path, key, plan_blocks(blocks), source, on_bytes)
    streamer = Streamer(file, block_names(len(blocks)), device, kept)
    skeletons = without_weights(blocks)
    for block in calls(skeletons, streamer):
        x = block(x)

No module is changed: each call lends the streamed tensors to a copy of the module without weights.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from coscheduler.engines.streaming.prepared import DTYPES, SegmentPlan, TensorPlan
from coscheduler.engines.streaming.streamer import Streamer

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def block_names(count: int) -> tuple[str, ...]:
    """The segments of so many blocks, in order."""
    return tuple(f"block.{index}" for index in range(count))


def plan_blocks(blocks: Sequence[nn.Module]) -> tuple[SegmentPlan, ...]:
    """Parameters and buffers of each block as a segment of its own, in their own precision.

    Raises ValueError for a tensor of a type that prepared files do not have.
    """
    names = block_names(len(blocks))
    return tuple(
        SegmentPlan(name, tuple(_plan(name, key, value) for key, value in _tensors(block).items()))
        for name, block in zip(names, blocks, strict=True)
    )


def without_weights(blocks: Sequence[nn.Module]) -> tuple[nn.Module, ...]:
    """Copies that hold no memory."""
    return tuple(copy.deepcopy(block).to("meta") for block in blocks)


def calls(skeletons: Sequence[nn.Module], streamer: Streamer) -> Iterator[Callable[..., Any]]:
    """One pass: each block as a callable, valid until the next one is asked for.

    `skeletons` are what `without_weights` gave. Raises as `Streamer.blocks` does.
    """
    for skeleton, block in zip(skeletons, streamer.blocks(), strict=True):
        yield partial(_call, skeleton, block.tensors)


def _call(skeleton: nn.Module, tensors: Mapping[str, Tensor], *inputs: Any) -> Any:
    return torch.func.functional_call(skeleton, dict(tensors), inputs)


def _tensors(block: nn.Module) -> dict[str, Tensor]:
    return {**dict(block.named_parameters()), **dict(block.named_buffers())}


def _plan(block: str, name: str, value: Tensor) -> TensorPlan:
    if value.dtype not in DTYPE_NAMES:
        known = ", ".join(DTYPES)
        raise ValueError(f"{block}: {name} is {value.dtype}; a prepared file holds {known}")
    return TensorPlan(name, tuple(value.shape), DTYPE_NAMES[value.dtype], lambda: iter((value,)))
