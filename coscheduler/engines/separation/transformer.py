"""The diffusion transformer (DiT): the velocity of the latent state at a time.

Functions over weights that are handed in, layer by layer, so that whoever holds the layers decides
where they come from. Shapes: B rows, T frames, L text tokens, D = dim. The residual stream, norms,
modulation and rotary tables are float32 whatever the precision of the matrices; a matrix product
runs in the precision of its matrix.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as fn

from coscheduler.engines.separation import quantise
from coscheduler.engines.separation.config import TransformerConfig

Weights = Mapping[str, Tensor]
TIME_PERIOD_MAX = 10_000.0
GROUP_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Times:
    """What depends on the time alone, for n times."""

    embedding: Tensor  # [n, D]
    table: Tensor  # [n, 6, D], added to every layer's modulation
    sinusoid: Tensor  # [n, D], added to the text memory


@dataclass(frozen=True)
class Condition:
    """What does not change between evaluations, and is the same for all windows of a recording.

    `memory` [B, L, D]: the text. Masks are True for real positions; None means that all are real.
    """

    memory: Tensor
    memory_mask: Tensor | None  # [B, L]
    frame_mask: Tensor | None  # [B, T]
    rotary: Tensor  # complex64 [T, head_dim / 2]


@dataclass(frozen=True)
class Moment:
    """One evaluation's view of time and text.

    The modulation [B, 6, D], the time embedding [B, D], the cross attention's context [B, L, D].
    """

    table: Tensor
    embedding: Tensor
    context: Tensor


def product(x: Tensor, weights: Weights, name: str) -> Tensor:
    """`x` times the transposed matrix `name`, in the precision of its weights, back in float32."""
    weight = weights[f"{name}.weight"]
    if weight.dtype is torch.int8:
        return quantise.product(x, weight, weights[f"{name}.scale"])
    return linear(x, weight)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X @ weight.T (+ bias) in the weight's precision, back in float32."""
    y = fn.linear(x.to(weight.dtype), weight).float()
    return y if bias is None else y.add_(bias)


def times(core: Weights, config: TransformerConfig, at: Tensor) -> Times:
    """Embed the times `at` [n], each 0..1. They are not scaled."""
    base = _sinusoid(at, config.frequency_embedding_dim)
    embedding = _gated(base, core, "time")
    table = fn.linear(fn.silu(embedding), core["time.table.weight"], core["time.table.bias"])
    return Times(embedding, table.view(len(at), 6, config.dim), _sinusoid(at, config.dim))


def rotary_table(config: TransformerConfig, frames: int, device: torch.device) -> Tensor:
    """Unit numbers, complex64 [frames, head_dim / 2], that turn channel pairs by their position."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)
    frequencies = 1.0 / config.rope_theta ** (half / config.head_dim)
    angles = torch.outer(torch.arange(frames, dtype=torch.float32, device=device), frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def fixed_input(core: Weights, features: Tensor, anchors: Tensor) -> Tensor:
    """Everything of the input projection but the noisy state, [B, T, D].

    features: codec means [B, T, codebook_dim] (upstream doubles them: folded into the weight).
    anchors: the anchor id of every frame, int64 [B, T].
    """
    projected = fn.linear(features, core["features.weight"], core["features.bias"])
    return projected.add_(core["video"]).add_(core["anchors"][anchors])


def text_memory(core: Weights, text: Tensor) -> Tensor:
    """Text encoder output [B, L, text dim] -> [B, L, D], before the time is added."""
    return linear(text, core["memory.weight"], core["memory.bias"])


def moment(core: Weights, condition: Condition, at: Times, rows: Tensor | int) -> Moment:
    """The evaluation at times `rows` of `at`: one index for all rows, or an index for each."""
    sinusoid, table, embedding = (
        part[rows].expand(condition.memory.shape[0], *part.shape[1:])
        for part in (at.sinusoid, at.table, at.embedding)
    )
    memory = condition.memory + sinusoid[:, None]
    return Moment(table, embedding, _gated(memory, core, "context"))


def embed(core: Weights, state: Tensor, fixed: Tensor) -> Tensor:
    """Noisy state [B, T, channels] -> the first residual stream [B, T, D]."""
    h = linear(state, core["noisy.weight"]).add_(fixed)
    inner = h.transpose(1, 2)
    for block in ("block1", "block2"):
        normed = fn.group_norm(
            inner, 1, core[f"{block}.norm.weight"], core[f"{block}.norm.bias"], GROUP_NORM_EPS
        )
        weight = core[f"{block}.weight"]
        activated = fn.silu(normed, inplace=True).to(weight.dtype)
        inner = fn.conv1d(activated, weight, padding=1).float()
        inner.add_(core[f"{block}.bias"][:, None])
    return h.add_(inner.transpose(1, 2))


def layer(
    weights: Weights, config: TransformerConfig, h: Tensor, now: Moment, condition: Condition
) -> Tensor:
    """One block: self attention and feed-forward, modulated and gated; cross attention, plain."""
    modulation = (weights["table"] + now.table)[:, :, None]  # [B, 6, 1, D]
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation.unbind(1)
    x = _modulated(h, weights["attention_norm"], config.norm_eps, shift_a, scale_a)
    h = h + _self_attention(weights, config, x, condition).mul_(gate_a)
    h.add_(_cross_attention(weights, config, h, now.context, condition))
    x = _modulated(h, weights["ffn_norm"], config.norm_eps, shift_f, scale_f)
    return h.add_(_gated(x, weights, "ffn").mul_(gate_f))


def head(core: Weights, config: TransformerConfig, h: Tensor, now: Moment) -> Tensor:
    """The last residual stream [B, T, D] -> velocity [B, T, channels], float32."""
    shift, scale = (core["final.table"] + now.embedding[:, None])[:, :, None].unbind(1)
    x = _modulated(h, core["final.norm"], config.norm_eps, shift, scale)
    return linear(x, core["final.weight"])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm over the last axis, float32."""
    return fn.rms_norm(x, (x.shape[-1],), weight, eps)


def _modulated(h: Tensor, norm: Tensor, eps: float, shift: Tensor, scale: Tensor) -> Tensor:
    return rms_norm(h, norm, eps).mul_(scale + 1).add_(shift)


def _self_attention(
    weights: Weights, config: TransformerConfig, x: Tensor, condition: Condition
) -> Tensor:
    shape = (*x.shape[:2], 3, config.n_heads, config.head_dim)
    q, k, v = product(x, weights, "self.qkv").view(shape).unbind(2)
    q = _turned(rms_norm(q, weights["self.q_norm"], config.norm_eps), condition.rotary)
    k = _turned(rms_norm(k, weights["self.k_norm"], config.norm_eps), condition.rotary)
    return _attend(q, k, v, condition.frame_mask, weights, "self.out")


def _cross_attention(
    weights: Weights, config: TransformerConfig, h: Tensor, context: Tensor, condition: Condition
) -> Tensor:
    heads = (config.n_heads, config.head_dim)
    q = product(h, weights, "cross.q").view(*h.shape[:2], *heads)
    k, v = product(context, weights, "cross.kv").view(*context.shape[:2], 2, *heads).unbind(2)
    q = rms_norm(q, weights["cross.q_norm"], config.norm_eps)
    k = rms_norm(k, weights["cross.k_norm"], config.norm_eps)
    return _attend(q, k, v, condition.memory_mask, weights, "cross.out")


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, weights: Weights, out: str
) -> Tensor:
    """[B, T, H, head_dim] against [B, S, H, head_dim] under a key mask [B, S] -> [B, T, D]."""
    keys = None if mask is None else mask[:, None, None]
    dtype = weights[f"{out}.weight"].dtype
    dtype = quantise.ACTIVATIONS if dtype is torch.int8 else dtype
    q, k, v = (part.to(dtype).transpose(1, 2) for part in (q, k, v))
    mixed = fn.scaled_dot_product_attention(q, k, v, attn_mask=keys)
    return product(mixed.transpose(1, 2).flatten(2), weights, out)


def _turned(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotary positions on interleaved pairs, [B, T, H, head_dim]."""
    pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotary[:, None]).flatten(-2)


def _gated(x: Tensor, weights: Weights, name: str) -> Tensor:
    """w2(silu(w1 x) * w3 x)."""
    weight = weights[f"{name}.gate.weight"]
    if weight.dtype is torch.int8:
        inner = product(x, weights, f"{name}.gate")
    else:
        inner = fn.linear(x.to(weight.dtype), weight)  # stays in that precision: it is the widest
    a, b = inner.chunk(2, dim=-1)
    return product(fn.silu(a).mul_(b), weights, f"{name}.out")


def _sinusoid(at: Tensor, width: int) -> Tensor:
    """cos, then sin, of `at` [n] times width / 2 falling frequencies: [n, width]."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=at.device) / half
    angles = at[:, None].float() * torch.exp(-math.log(TIME_PERIOD_MAX) * steps)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
