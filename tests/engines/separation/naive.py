"""The transformer written plainly, straight from the checkpoint's own tensors and key names.

Nothing is folded, fused or cached: this is what the fast one is compared with.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as fn

from coscheduler.engines.separation.config import ModelConfig

Weights = Mapping[str, Tensor]


def velocity(
    w: Weights,
    config: ModelConfig,
    noisy: Tensor,
    features: Tensor,
    anchor_ids: Tensor,
    text: Tensor,
    text_mask: Tensor,
    frame_mask: Tensor,
    time: Tensor,
) -> Tensor:
    """noisy [B,T,256], features [B,T,128], anchor_ids [B,T], text [B,L,C], masks, time [B]."""
    net = config.transformer
    doubled = torch.cat((noisy, torch.zeros_like(noisy), features, features), dim=-1)
    h = fn.linear(doubled, w["proj.weight"], w["proj.bias"])
    video = fn.layer_norm(
        w["align_masked_video.conv.bias"],
        (net.dim,),
        w["align_masked_video.layer_norm.weight"],
        w["align_masked_video.layer_norm.bias"],
    )
    h = h + w["align_masked_video.gate"].tanh() * video
    embedded = fn.linear(
        w["embed_anchors.embed.weight"][anchor_ids], w["embed_anchors.proj.weight"]
    )
    h = h + w["embed_anchors.gate"].tanh() * embedded
    t = gated(sinusoid(time, net.frequency_embedding_dim), w, "transformer.t_embedder.projection")
    t0 = fn.linear(fn.silu(t), w["transformer.t_block.weight"], w["transformer.t_block.bias"])
    memory = fn.linear(text, w["memory_proj.weight"], w["memory_proj.bias"])
    y = gated(memory + sinusoid(time, net.dim)[:, None], w, "transformer.y_embedder.projection")
    h = resnet(w, h)
    for index in range(net.n_layers):
        h = block(w, config, index, h, t0, y, text_mask, frame_mask)
    h = rms(h, w["transformer.norm.weight"])
    shift, scale = (w["transformer.final_layer_scale_shift_table"] + t[:, None]).chunk(2, dim=1)
    return fn.linear(h * (1 + scale) + shift, w["transformer.output.weight"])


def block(
    w: Weights,
    config: ModelConfig,
    index: int,
    h: Tensor,
    t0: Tensor,
    y: Tensor,
    text_mask: Tensor,
    frame_mask: Tensor,
) -> Tensor:
    key = f"transformer.layers.{index}"
    rows = w[f"{key}.scale_shift_table"] + t0.view(len(t0), 6, -1)
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (rows[:, i : i + 1] for i in range(6))
    x = rms(h, w[f"{key}.attention_norm.weight"]) * (1 + scale_a) + shift_a
    h = h + gate_a * attention(w, config, f"{key}.attention", x, x, frame_mask, turn=True)
    h = h + attention(w, config, f"{key}.cross_attention", h, y, text_mask, turn=False)
    x = rms(h, w[f"{key}.ffn_norm.weight"]) * (1 + scale_f) + shift_f
    return h + gate_f * gated(x, w, f"{key}.feed_forward")


def attention(
    w: Weights,
    config: ModelConfig,
    key: str,
    x: Tensor,
    context: Tensor,
    mask: Tensor,
    turn: bool,
) -> Tensor:
    net = config.transformer

    def heads(source: Tensor, name: str) -> Tensor:
        # Channel c belongs to head c mod H: the layout of the official checkpoints.
        flat = fn.linear(source, w[f"{key}.{name}.weight"])
        return flat.view(*flat.shape[:2], net.head_dim, net.n_heads).permute(0, 3, 1, 2)

    q = rms(heads(x, "wq"), w[f"{key}.q_norm.weight"])
    k = rms(heads(context, "wk"), w[f"{key}.k_norm.weight"])
    if turn:
        q, k = rotated(q, net.rope_theta), rotated(k, net.rope_theta)
    scores = q @ k.transpose(-1, -2) / math.sqrt(net.head_dim)
    scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    mixed = (scores.softmax(dim=-1) @ heads(context, "wv")).transpose(1, 2).flatten(2)
    return fn.linear(mixed, w[f"{key}.wo.weight"])


def rotated(x: Tensor, theta: float) -> Tensor:
    size = x.shape[-1]
    angles = torch.outer(torch.arange(x.shape[-2]), theta ** -(torch.arange(0, size, 2) / size))
    even, odd = x[..., ::2], x[..., 1::2]
    turned = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
    return torch.stack(turned, dim=-1).flatten(-2)


def resnet(w: Weights, h: Tensor) -> Tensor:
    x = h.transpose(1, 2)
    for name in ("block1", "block2"):
        key = f"transformer.x_embedder.block.{name}"
        x = fn.group_norm(x, 1, w[f"{key}.groupnorm.weight"], w[f"{key}.groupnorm.bias"])
        x = fn.conv1d(fn.silu(x), w[f"{key}.project.weight"], w[f"{key}.project.bias"], padding=1)
    return h + x.transpose(1, 2)


def gated(x: Tensor, w: Weights, key: str) -> Tensor:
    inner = fn.silu(fn.linear(x, w[f"{key}.w1.weight"])) * fn.linear(x, w[f"{key}.w3.weight"])
    return fn.linear(inner, w[f"{key}.w2.weight"])


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-5) * weight


def sinusoid(time: Tensor, width: int) -> Tensor:
    half = width // 2
    angles = time[:, None] * 10_000.0 ** (-torch.arange(half) / half)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
