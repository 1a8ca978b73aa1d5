"""The DACVAE codec as chains of stages: samples to latent frames and back, piece by piece.

The decoder's main path ends in tanh. Upstream then always adds a watermark of 16 random bits; here
that is a step of its own, and the bits follow from a seed, so that the output is the same every
time.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from coscheduler.engines.separation.config import CodecConfig
from coscheduler.engines.separation.layout import RESIDUAL_DILATIONS
from coscheduler.engines.separation.streams import (
    Activation,
    Chain,
    Conv,
    Delay,
    Lstm,
    Residual,
    Snake,
    Stage,
    Upsample,
    copy,
    elu,
)

Weights = Mapping[str, Tensor]


class Encoding:
    """One signal on its way in. Weights: the segment "encoder"."""

    def __init__(self, weights: Weights, config: CodecConfig) -> None:
        self._weights = weights
        self._chain = Chain(_encoder_stages(weights, config))

    def push(self, samples: Tensor, last: bool) -> Tensor:
        """Samples [B, 1, n] -> frames [B, codebook_dim, m].

        The whole signal must come to a multiple of the hop (see `reflect_pad`).
        """
        return self.mean(self.hidden(samples, last))

    def hidden(self, samples: Tensor, last: bool) -> Tensor:
        """[B, 1, n] -> [B, latent_dim, m], before the bottleneck."""
        return self._chain.push(samples, last)

    def mean(self, hidden: Tensor) -> Tensor:
        """[B, latent_dim, m] -> [B, codebook_dim, m]."""
        return _pointwise(self._weights, "mean", hidden)


class Decoding:
    """One batch of signals on its way out. Weights: the segment "decoder"."""

    def __init__(self, weights: Weights, config: CodecConfig) -> None:
        self._weights = weights
        self._first = _same(weights, "first")
        self._chain = Chain(_decoder_stages(weights, config))

    def push(self, latents: Tensor, last: bool) -> Tensor:
        """Frames [B, codebook_dim, n] -> samples [B, 1, m], about -1..1."""
        return self._chain.push(self.first(self.embed(latents), last), last).tanh_()

    def embed(self, latents: Tensor) -> Tensor:
        """[B, codebook_dim, n] -> [B, latent_dim, n]."""
        return _pointwise(self._weights, "latent", latents)

    def first(self, embedded: Tensor, last: bool) -> Tensor:
        """[B, latent_dim, n] -> [B, decoder_dim, m]."""
        return self._first.push(embedded, last)


class Watermark:
    """Adds a message of bits, one row for each signal. Weights: the segment "watermark".

    The signal goes down to the watermark's own frame rate through causal convolutions, through two
    LSTMs with the message added between them, and up again.
    """

    def __init__(self, weights: Weights, config: CodecConfig, message: Tensor) -> None:
        blocks = len(config.decoder_rates)
        down = (stage for index in reversed(range(blocks)) for stage in _mark_down(weights, index))
        up = (stage for index in range(blocks) for stage in _mark_up(weights, index))
        self._before = Chain(
            (
                _causal(weights, "in"),
                *down,
                Lstm(_lstm_weights(weights, "encode")),
                _causal(weights, "bottleneck", activation=elu),
            )
        )
        self._after = Chain(
            (
                _causal(weights, "spread"),
                Lstm(_lstm_weights(weights, "decode")),
                *up,
                _causal(weights, "out", activation=elu),
            )
        )
        table = weights["message"]
        rows = 2 * torch.arange(message.shape[1], device=table.device) + message.long()
        self._message = table[rows].sum(dim=1).unsqueeze(2)  # [B, width, 1]
        self._share = weights["in.weight"].shape[0] / weights["bottleneck.weight"].shape[0]
        self._delay = Delay()

    def push(self, samples: Tensor, last: bool) -> Tensor:
        """[B, 1, n] -> [B, 1, m]: samples + share * watermark.

        The whole signal must come to a multiple of the hop.
        """
        mark = self._after.push(self._before.push(samples, last) + self._message, last)
        return self._delay.add_to(mark * self._share, samples)


def message_bits(weights: Weights, seed: int, rows: int) -> Tensor:
    """The watermark's message under a seed, 0 or 1, int64 [rows, bits]."""
    bits = weights["message"].shape[0] // 2
    digest = hashlib.sha256(f"watermark:{seed}".encode()).digest()
    number = int.from_bytes(digest, "little")
    return torch.tensor(
        [[number >> (row * bits + bit) & 1 for bit in range(bits)] for row in range(rows)]
    )


def reflect_pad(samples: Tensor, hop: int) -> Tensor:
    """The mirror image that brings [.., N] to a multiple of `hop`: [.., pad], where pad < N."""
    pad = -samples.shape[-1] % hop
    return samples[..., -1 - pad : -1].flip(-1)


def _pointwise(weights: Weights, name: str, x: Tensor) -> Tensor:
    """A convolution of kernel 1 over [B, C, n], where n may be 0."""
    weight = weights[f"{name}.weight"]
    return torch.matmul(weight[:, :, 0], x).add_(weights[f"{name}.bias"][:, None])


def _encoder_stages(weights: Weights, config: CodecConfig) -> list[Stage]:
    stages: list[Stage] = [_same(weights, "first")]
    for index, rate in enumerate(config.encoder_rates):
        stages += _residuals(weights, index)
        # Padding of a stride s with kernel 2 s: s / 2 on both sides, rounded down.
        stages.append(
            _conv(
                weights, f"{index}.down", stride=rate, left=rate // 2, right=rate // 2,
                activation=_snake(weights, f"{index}.down"),
            )
        )  # fmt: skip
    stages.append(_same(weights, "last", activation=_snake(weights, "last")))
    return stages


def _decoder_stages(weights: Weights, config: CodecConfig) -> list[Stage]:
    stages: list[Stage] = []
    for index, rate in enumerate(config.decoder_rates):
        name = f"{index}.up"
        stages.append(
            Upsample(
                weights[f"{name}.weight"],
                weights[f"{name}.bias"],
                crop=-(-rate // 2),
                activation=_snake(weights, name),
            )
        )
        stages += _residuals(weights, index)
    stages.append(_same(weights, "last", activation=_snake(weights, "last")))
    return stages


def _residuals(weights: Weights, index: int) -> list[Stage]:
    return [
        Residual(
            Chain(
                (
                    _same(weights, f"{name}.a", dilation, _snake(weights, f"{name}.a")),
                    _same(weights, f"{name}.b", 1, _snake(weights, f"{name}.b")),
                )
            )
        )
        for unit, dilation in enumerate(RESIDUAL_DILATIONS)
        for name in (f"{index}.{unit}",)
    ]


def _mark_down(weights: Weights, index: int) -> list[Stage]:
    stride = weights[f"{index}.down.weight"].shape[2] // 2
    return [
        _mark_residual(weights, f"{index}.b"),
        _conv(
            weights, f"{index}.down", stride=stride, left=stride, complete=True, activation=elu
        ),
    ]  # fmt: skip


def _mark_up(weights: Weights, index: int) -> list[Stage]:
    name = f"{index}.up"
    return [
        Upsample(weights[f"{name}.weight"], weights[f"{name}.bias"], crop=0, activation=elu),
        _mark_residual(weights, f"{index}.a"),
    ]


def _mark_residual(weights: Weights, name: str) -> Stage:
    first = _causal(weights, f"{name}.0", activation=elu)
    return Residual(Chain((first, _causal(weights, f"{name}.1", activation=elu))))


def _same(weights: Weights, name: str, dilation: int = 1, activation: Activation = copy) -> Conv:
    """An output as long as the input, padded on both sides."""
    pad = (weights[f"{name}.weight"].shape[2] - 1) * dilation // 2
    return _conv(weights, name, dilation=dilation, left=pad, right=pad, activation=activation)


def _causal(weights: Weights, name: str, activation: Activation = copy) -> Conv:
    """An output as long as the input that sees the past only."""
    left = weights[f"{name}.weight"].shape[2] - 1
    return _conv(weights, name, left=left, activation=activation)


def _conv(
    weights: Weights,
    name: str,
    *,
    stride: int = 1,
    dilation: int = 1,
    left: int = 0,
    right: int = 0,
    complete: bool = False,
    activation: Activation = copy,
) -> Conv:
    return Conv(
        weights[f"{name}.weight"],
        weights[f"{name}.bias"],
        stride=stride,
        dilation=dilation,
        left=left,
        right=right,
        complete=complete,
        activation=activation,
    )


def _snake(weights: Weights, name: str) -> Snake:
    return Snake(weights[f"{name}.alpha"], weights[f"{name}.inverse"])


def _lstm_weights(weights: Weights, name: str) -> list[list[Tensor]]:
    layers = sum(1 for key in weights if key.startswith(f"{name}.weight_ih_l"))
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [[weights[f"{name}.{kind}_l{layer}"] for kind in kinds] for layer in range(layers)]
