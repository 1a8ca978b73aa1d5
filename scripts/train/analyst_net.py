"""A small network of the llama architecture, as llama.cpp computes it, to be trained.

Rotary positions turn neighbouring coordinates, so that the matrices go into a GGUF file as they
are. The embedding is also the output matrix.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

ROPE_BASE = 10_000.0
NORM_EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    """`width` = heads x head size; every width can be divided by 32, as quantised files need."""

    vocabulary: int
    layer_count: int = 4
    width: int = 160
    head_count: int = 5
    feed_forward: int = 448
    guided_layer: int = 2  # whose attention is shown where to look
    n_ctx: int = 2048


class Analyst(nn.Module):
    """Tokens (batch, time) int64 -> logits (batch, time, vocabulary)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        nn.init.normal_(self.token_embd.weight, std=0.05)
        self.blk = nn.ModuleList(_Block(shape) for _ in range(shape.layer_count))
        self.output_norm = nn.RMSNorm(shape.width, eps=NORM_EPS)
        turns = rotations(shape.n_ctx, shape.width // shape.head_count)
        self.register_buffer("turns", turns, persistent=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the guided layer's attention (batch, heads, time, time)."""
        turns = self.get_buffer("turns")[: tokens.shape[1]]
        hidden, seen = self.token_embd(tokens), torch.empty(0)
        for index, block in enumerate(self.blk):
            hidden, attention = block(hidden, turns, index == self.shape.guided_layer)
            seen = seen if attention is None else attention
        return nnf.linear(self.output_norm(hidden), self.token_embd.weight), seen


class _Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, inner = shape.width, shape.feed_forward
        self.head_count = shape.head_count
        self.attn_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.attn_q, self.attn_k = _matrix(width, width), _matrix(width, width)
        self.attn_v, self.attn_output = _matrix(width, width), _matrix(width, width)
        self.ffn_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.ffn_gate, self.ffn_up = _matrix(width, inner), _matrix(width, inner)
        self.ffn_down = _matrix(inner, width)

    def forward(
        self, hidden: Tensor, turns: Tensor, is_guided: bool
    ) -> tuple[Tensor, Tensor | None]:
        normed = self.attn_norm(hidden)
        query = turned(self._heads(self.attn_q(normed)), turns)
        key = turned(self._heads(self.attn_k(normed)), turns)
        mixed, attention = attend(query, key, self._heads(self.attn_v(normed)), is_guided)
        hidden = hidden + self.attn_output(mixed.transpose(1, 2).flatten(2))
        normed = self.ffn_norm(hidden)
        inner = nnf.silu(self.ffn_gate(normed)) * self.ffn_up(normed)
        return hidden + self.ffn_down(inner), attention

    def _heads(self, values: Tensor) -> Tensor:
        heads = values.view(*values.shape[:-1], self.head_count, -1)
        return heads.transpose(1, 2)


def _matrix(inputs: int, outputs: int) -> nn.Linear:
    made = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(made.weight, std=inputs**-0.5 / 2)
    return made


def rotations(n_ctx: int, head_size: int) -> Tensor:
    """Cosine and sine of each position's angles, (n_ctx, head_size / 2, 2)."""
    speeds = ROPE_BASE ** (-torch.arange(0, head_size, 2) / head_size)
    angles = torch.arange(n_ctx)[:, None] * speeds
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def turned(values: Tensor, turns: Tensor) -> Tensor:
    """Each pair of neighbouring coordinates of (batch, heads, time, size) turned by its angle."""
    even, odd = values[..., 0::2], values[..., 1::2]
    cosine, sine = turns[..., 0], turns[..., 1]
    pairs = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1)
    return pairs.flatten(-2).to(values.dtype)


def attend(
    query: Tensor, key: Tensor, value: Tensor, is_guided: bool
) -> tuple[Tensor, Tensor | None]:
    """Causal attention; the weights as well where they are wanted."""
    if not is_guided:
        return nnf.scaled_dot_product_attention(query, key, value, is_causal=True), None
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    attention = scores.float().masked_fill(hidden, float("-inf")).softmax(-1)
    return attention.to(value.dtype) @ value, attention
