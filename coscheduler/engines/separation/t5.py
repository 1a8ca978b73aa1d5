"""The encoder of T5 (Raffel et al. 2020), one layer at a time, over weights that are handed in.

Norms are root mean squares; attention is not scaled and adds a bias that depends on the distance of
two tokens alone, learned for buckets of distances. L tokens, D channels, H heads; everything is
float32.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as fn

Weights = Mapping[str, Tensor]
Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: Mapping[str, Activation] = {
    "relu": fn.relu,
    "gated-gelu": lambda x: fn.gelu(x, approximate="tanh"),
}


def layer(weights: Weights, config: Mapping[str, Any], h: Tensor, bias: Tensor) -> Tensor:
    """One layer, [L, D] -> [L, D]. `bias`: see `position_bias`; names as below one of the
    checkpoint's `encoder.block.N.layer.`.
    """
    h = h + _attention(weights, config, norm(h, weights["0.layer_norm.weight"], config), bias)
    return h + _feed_forward(weights, config, norm(h, weights["1.layer_norm.weight"], config))


def norm(h: Tensor, weight: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Root mean square norm, [L, D]."""
    return fn.rms_norm(h, (h.shape[-1],), weight, config.get("layer_norm_epsilon", 1e-6))


def position_bias(table: Tensor, config: Mapping[str, Any], count: int) -> Tensor:
    """What the attention of every layer adds for `count` tokens: [H, L, L] from [buckets, H]."""
    at = torch.arange(count, device=table.device)
    reach = config.get("relative_attention_max_distance", 128)
    return table[buckets(at[None] - at[:, None], table.shape[0], reach)].permute(2, 0, 1)


def buckets(distances: Tensor, count: int, reach: int) -> Tensor:
    """The bucket of each distance (key minus query), int64 of the same shape.

    Half of the `count` buckets are for keys that come later. Of each half one half is for single
    distances, the rest grows by a factor up to `reach`; what is farther shares the last one.
    """
    half = count // 2
    single = half // 2
    far = distances.abs()
    share = torch.log(far.float() / single) / math.log(reach / single)
    grown = single + (share * (half - single)).long()
    near = torch.where(far < single, far, grown.clamp(max=half - 1))
    return near + half * (distances > 0)


def _attention(weights: Weights, config: Mapping[str, Any], x: Tensor, bias: Tensor) -> Tensor:
    def heads(name: str) -> Tensor:
        y = fn.linear(x, weights[f"0.SelfAttention.{name}.weight"])
        return y.view(len(x), config["num_heads"], config["d_kv"]).transpose(0, 1)

    scores = torch.baddbmm(bias, heads("q"), heads("k").transpose(1, 2))
    mixed = torch.bmm(scores.softmax(dim=-1), heads("v")).transpose(0, 1).flatten(1)
    return fn.linear(mixed, weights["0.SelfAttention.o.weight"])


def _feed_forward(weights: Weights, config: Mapping[str, Any], x: Tensor) -> Tensor:
    kind = config.get("feed_forward_proj", "relu")
    key = "1.DenseReluDense"
    if not kind.startswith("gated-"):
        inner = ACTIVATIONS[kind](fn.linear(x, weights[f"{key}.wi.weight"]))
    else:
        gate = ACTIVATIONS[kind](fn.linear(x, weights[f"{key}.wi_0.weight"]))
        inner = gate.mul_(fn.linear(x, weights[f"{key}.wi_1.weight"]))
    return fn.linear(inner, weights[f"{key}.wo.weight"])
