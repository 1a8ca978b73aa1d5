"""A Whisper in plain torch: the parameters have the names of Hugging Face's, so they load there.

Loaders pad every window to 30 s, so a model must read past 25 s of silence. Training on that
costs ten times as much as on the speech alone. The silence is a constant but for the positions, so
here a few positions of it, drawn at random, stand for all: their keys weigh as much more as there
are positions that they stand for. The expectation of the attention's sums is that of 30 s.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

POSITIONS = 1500
MELS = 80
TEXT_POSITIONS = 448


@dataclass(frozen=True)
class Shape:
    """Widths and counts."""

    vocabulary: int
    hidden: int = 128
    feed_forward: int = 512
    heads: int = 4
    encoder_layers: int = 4
    decoder_layers: int = 2


class Attention(nn.Module):
    """Multi-head attention; `weights` returns the probabilities too."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = nn.Linear(hidden, hidden, bias=False)
        self.v_proj = nn.Linear(hidden, hidden)
        self.out_proj = nn.Linear(hidden, hidden)

    def to_itself(self, rows: Tensor, bias: Tensor) -> Tensor:
        """`rows` [B, T, D] attend to each other; `bias` [T] or [T, T] is added. Gives [B, T, D]."""
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        no_bias = torch.zeros_like(self.q_proj.bias)  # one product of three: a third of the copies
        offsets = torch.cat([self.q_proj.bias, no_bias, self.v_proj.bias])
        q, k, v = functional.linear(rows, weight, offsets).chunk(3, dim=-1)
        return self._mixed(q, k, v, bias)[0]

    def forward(self, queries: Tensor, keys: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """`queries` [B, Q, D], `keys` [B, K, D]: [B, Q, D] and the probabilities
        [B, heads, Q, K]. `bias` [K] is added to the logits.
        """
        return self._mixed(self.q_proj(queries), self.k_proj(keys), self.v_proj(keys), bias)

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """By plain products: at these sizes the fused kernels of processors take twice as long."""
        q, k, v = self._split(q), self._split(k), self._split(v)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3) + bias.to(q.dtype)
        weights = logits.softmax(dim=-1)
        joined: Tensor = self.out_proj((weights.to(v.dtype) @ v).transpose(1, 2).flatten(2))
        return joined, weights

    def _split(self, rows: Tensor) -> Tensor:
        return rows.view(*rows.shape[:2], self.heads, -1).transpose(1, 2)


class _Layer(nn.Module):
    """What encoder and decoder layers share: self-attention and the feed-forward part."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape.hidden, shape.heads)
        self.self_attn_layer_norm = nn.LayerNorm(shape.hidden)
        self.fc1 = nn.Linear(shape.hidden, shape.feed_forward)
        self.fc2 = nn.Linear(shape.feed_forward, shape.hidden)
        self.final_layer_norm = nn.LayerNorm(shape.hidden)

    def attended(self, rows: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = rows + self.self_attn.to_itself(self.self_attn_layer_norm(rows), bias)
        return out

    def fed(self, rows: Tensor) -> Tensor:
        inner = functional.gelu(self.fc1(self.final_layer_norm(rows)))
        out: Tensor = rows + self.fc2(inner)
        return out


class _DecoderLayer(_Layer):
    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.encoder_attn = Attention(shape.hidden, shape.heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(shape.hidden)


class _Encoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(MELS, shape.hidden, 3, padding=1)
        self.conv2 = nn.Conv1d(shape.hidden, shape.hidden, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(POSITIONS, shape.hidden)
        self.embed_positions.weight.data = sinusoids(POSITIONS, shape.hidden)
        self.embed_positions.requires_grad_(False)
        self.layers: Any = nn.ModuleList(_Layer(shape) for _ in range(shape.encoder_layers))
        self.layer_norm = nn.LayerNorm(shape.hidden)

    def forward(self, mel: Tensor, places: Tensor, bias: Tensor) -> Tensor:
        """`mel` [B, MELS, 2 P], `places` [P] and `bias` [P] of the positions: [B, P, D]."""
        rows = functional.gelu(self.conv2(functional.gelu(self.conv1(mel)))).transpose(1, 2)
        rows = rows + self.embed_positions(places)
        for layer in self.layers:
            rows = layer.fed(layer.attended(rows, bias))
        out: Tensor = self.layer_norm(rows)
        return out


class _Decoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.embed_positions = nn.Embedding(TEXT_POSITIONS, shape.hidden)
        nn.init.normal_(self.embed_tokens.weight, std=0.05)
        nn.init.normal_(self.embed_positions.weight, std=0.02)
        self.layers: Any = nn.ModuleList(_DecoderLayer(shape) for _ in range(shape.decoder_layers))
        self.layer_norm = nn.LayerNorm(shape.hidden)

    def forward(self, tokens: Tensor, heard: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """`tokens` [B, L], `heard` [B, P, D]: logits [B, L, vocabulary] and the last layer's
        attention to the sound [B, heads, L, P].
        """
        rows = self.embed_tokens(tokens) + self.embed_positions.weight[: tokens.shape[1]]
        causal = torch.full((tokens.shape[1],) * 2, -torch.inf, device=tokens.device).triu(1)
        seen = heard
        for layer in self.layers:
            rows = layer.attended(rows, causal)
            read, seen = layer.encoder_attn(layer.encoder_attn_layer_norm(rows), heard, bias)
            rows = layer.fed(rows + read)
        return functional.linear(self.layer_norm(rows), self.embed_tokens.weight), seen


class Whisper(nn.Module):
    """Encoder and decoder, and while training a head that says what is heard in every frame."""

    def __init__(self, shape: Shape, frame_classes: int) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = _Encoder(shape)
        self.decoder = _Decoder(shape)
        self.frames = nn.Linear(shape.hidden, frame_classes)


def sinusoids(length: int, channels: int) -> Tensor:
    """Whisper's fixed positions: sines, then cosines, [length, channels]."""
    steps = math.log(10_000) / (channels // 2 - 1)
    rates = torch.exp(-steps * torch.arange(channels // 2))
    angles = torch.arange(length)[:, None] * rates[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)
