"""What of the separator is trained: all that the transformer does beside passing its state on.

Of the transformer's DIM channels 2 x BANDS carry (estimate - state) of target and residual, very
small, so that the norms hardly see them; no layer reads them. What remains are WORK channels, and
this is the transformer on them alone, exactly: RMS norms over WORK differ from those over DIM by a
constant factor, and group norms count the absent channels as zeros. What layers write of the target
is an output of its own. Text comes as one vector per class and layer, which is what cross attention
with a constant query gives.

Work channel 0 is a constant that no layer writes to; channels from 1 on begin as the mixture. The
constant keeps the norm of a frame from depending on its loudness alone: a feed-forward unit that
reads a band and is gated by the rest is a mask on that band.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from train.separator_codec import BANDS

DIM, HEADS, LAYERS = 384, 6, 3
WORK, HEAD_DIM = DIM - 2 * BANDS, DIM // HEADS
HIDDEN = 64 * -(-(8 * DIM // 3) // 64)
CLASSES = 4
ROPE_THETA, EPS, GROUP_EPS = 10_000.0, 1e-5, 1e-5
CONSTANT, MIX_SCALE = 8.0, 0.5


class Separator(nn.Module):
    """Normalised mixture latents [B, T, BANDS] and classes [B] -> target latents, same shape."""

    def __init__(self, layers: int = LAYERS) -> None:
        super().__init__()
        self.features = nn.Linear(BANDS, WORK)
        self.blocks = nn.ModuleList(Local() for _ in range(2))
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self._begin()

    def stack(self) -> list["Layer"]:
        """The layers, first to last."""
        return cast(list[Layer], list(self.layers))

    def local(self) -> list["Local"]:
        """The two convolutions before the layers."""
        return cast(list[Local], list(self.blocks))

    @torch.no_grad()
    def _begin(self) -> None:
        """Begin with half the mixture as the estimate, through the last layer's gates."""
        weight, bias = self.features.weight, self.features.bias
        bias.zero_()
        weight.mul_(0.1)
        weight[0] = 0
        eye = torch.eye(BANDS) * MIX_SCALE
        weight[1 : 1 + BANDS] += eye
        weight[1 + BANDS :] -= eye[: WORK - 1 - BANDS]
        bias[0] = CONSTANT
        self.local()[1].project.weight.mul_(0.3)
        ffn = self.stack()[-1].ffn
        bands = torch.arange(BANDS)
        ffn.gate.weight[:BANDS] *= 0.3
        ffn.gate.weight[:BANDS, 0] = 0.077
        ffn.value.weight[:BANDS] *= 0.1
        ffn.value.weight[bands, 1 + bands] += 0.8 / MIX_SCALE
        ffn.estimate.weight[bands, bands] += 1.0

    def forward(self, mixture: Tensor, classes: Tensor) -> Tensor:
        """The estimate; `level` then is the RMS of the last residual stream, [B, T]."""
        h = self.features(mixture)
        inner = h.transpose(1, 2)
        for block in self.local():
            inner = block(inner)
        h = h + inner.transpose(1, 2) * _writable(h)
        estimate = torch.zeros_like(mixture)
        rotary = _rotary(mixture.shape[1], mixture.device)
        for layer in self.stack():
            h, estimate = layer(h, estimate, classes, rotary)
        self.level = h.detach().square().mean(dim=-1).sqrt()
        return estimate


class Local(nn.Module):
    """Group norm, SiLU and a convolution over three frames."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WORK))
        self.bias = nn.Parameter(torch.zeros(WORK))
        self.project = nn.Conv1d(WORK, WORK, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, WORK, T] -> the same shape."""
        x = x.float()
        count = DIM * x.shape[2]
        mean = x.sum(dim=(1, 2), keepdim=True) / count
        square = x.square().sum(dim=(1, 2), keepdim=True) / count
        normed = (x - mean) * (square - mean.square() + GROUP_EPS).rsqrt()
        out: Tensor = self.project(fn.silu(normed * self.weight[:, None] + self.bias[:, None]))
        return out


class Layer(nn.Module):
    """Self attention, the text's vector, feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = _Norm(), _Norm()
        self.attention, self.ffn = Attention(), FeedForward()
        self.text = nn.Parameter(0.3 * torch.randn(CLASSES, WORK))

    def forward(
        self, h: Tensor, estimate: Tensor, classes: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The residual stream [B, T, WORK] and the estimate [B, T, BANDS], both added to."""
        keep = _writable(h)
        work, tail = self.attention(self.attention_norm(h), rotary)
        h = h + (work + self.text[classes][:, None]) * keep
        estimate = estimate + tail
        work, tail = self.ffn(self.ffn_norm(h))
        return h + work * keep, estimate + tail


class _Norm(nn.Module):
    """RMS norm over the work channels, scaled and shifted."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WORK))
        self.shift = nn.Parameter(torch.zeros(WORK))

    def forward(self, h: Tensor) -> Tensor:
        return fn.rms_norm(h.float(), (WORK,), self.weight, EPS * DIM / WORK) + self.shift


class Attention(nn.Module):
    """Self attention; `work` and `estimate` are what it writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WORK, 3 * DIM, bias=False)
        self.q_norm = nn.Parameter(torch.ones(HEAD_DIM))
        self.k_norm = nn.Parameter(torch.ones(HEAD_DIM))
        self.work = _small(DIM, WORK, 0.3)
        self.estimate = _small(DIM, BANDS, 0.02)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """What is added to the residual stream and to the estimate."""
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).unbind(2)
        q = _turned(fn.rms_norm(q.float(), (HEAD_DIM,), self.q_norm, EPS), rotary).to(v.dtype)
        k = _turned(fn.rms_norm(k.float(), (HEAD_DIM,), self.k_norm, EPS), rotary).to(v.dtype)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        # Written out: on the CPU the fused kernel's backward pass takes several times as long.
        shares = (q @ k.transpose(-1, -2)).mul(HEAD_DIM**-0.5).softmax(dim=-1).to(v.dtype)
        mixed = (shares @ v).transpose(1, 2).flatten(2)
        return self.work(mixed), self.estimate(mixed)


class FeedForward(nn.Module):
    """SwiGLU; `work` and `estimate` are what it writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WORK, HIDDEN, bias=False)
        self.value = nn.Linear(WORK, HIDDEN, bias=False)
        self.work = _small(HIDDEN, WORK, 0.3)
        self.estimate = _small(HIDDEN, BANDS, 0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the residual stream and to the estimate."""
        inner = fn.silu(self.gate(x)) * self.value(x)
        return self.work(inner), self.estimate(inner)


def _small(inner: int, out: int, scale: float) -> nn.Linear:
    layer = nn.Linear(inner, out, bias=False)
    with torch.no_grad():
        layer.weight.mul_(scale)
    return layer


def _writable(h: Tensor) -> Tensor:
    keep = torch.ones(WORK, device=h.device)
    keep[0] = 0
    return keep


def _rotary(frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles, [T, 1, HEAD_DIM / 2]."""
    half = torch.arange(0, HEAD_DIM, 2, device=device) / HEAD_DIM
    angles = torch.arange(frames, device=device)[:, None] / ROPE_THETA**half
    return angles.cos()[:, None], angles.sin()[:, None]


def _turned(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions on interleaved pairs, [B, T, H, HEAD_DIM]."""
    cos, sin = rotary
    a, b = x.view(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
