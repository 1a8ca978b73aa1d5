"""int8 weights with a float32 scale for each row: half the bytes of bfloat16.

Only the weights are quantised. At a product they become bfloat16 again, which holds every int8
exactly, so what is lost is the rounding to 255 levels and nothing else. A library for this replaces
torch modules by ones that own their storage; here a layer is a run of views into one allocation
that is copied from a file, and what is needed of a library are the few lines below.
"""

import torch
from torch import Tensor
from torch.nn import functional as fn

LEVELS = 127  # the range is symmetric: -128 is not used
ACTIVATIONS = torch.bfloat16


def scales(matrix: Tensor) -> Tensor:
    """float32 [.., K] -> [..]: the largest magnitude of each row is LEVELS scales."""
    return (matrix.abs().amax(dim=-1) / LEVELS).clamp_(min=torch.finfo(torch.float32).tiny)


def levels(matrix: Tensor) -> Tensor:
    """float32 [.., K] -> whole numbers from -LEVELS to LEVELS of the same shape, still float32."""
    return (matrix / scales(matrix)[..., None]).round_().clamp_(-LEVELS, LEVELS)


def product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """`x` [.., K] times the transpose of int8 [N, K], row n being `scale[n]`: float32 [.., N]."""
    return fn.linear(x.to(ACTIVATIONS), weight.to(ACTIVATIONS)).float().mul_(scale)
