"""Convolutions over a signal that arrives piece by piece.

A stage keeps the few samples it still needs from the past and gives out what is already decided. So
a signal of any length runs through in pieces, nothing is computed twice, and the result is that of
the whole signal at once: the zero padding stands at the true ends only. `push(x, last)` takes the
next piece [B, C, n] (n may be 0) and returns [B, C', m]; with `last` it gives out what remains.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as fn

Activation = Callable[[Tensor, Tensor], None]  # (source, out): out = f(source), never aliased


class Stage(Protocol):
    """One step of a chain. A stage serves one signal and is then thrown away."""

    def push(self, x: Tensor, last: bool) -> Tensor:
        """The next piece in, what is decided out."""
        ...


class Chain:
    """Stages one after the other."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = tuple(stages)

    def push(self, x: Tensor, last: bool) -> Tensor:
        """The piece through all stages."""
        for stage in self._stages:
            x = stage.push(x, last)
        return x


@dataclass(frozen=True)
class Snake:
    """x + sin(alpha x)^2 / alpha, channel by channel. alpha, inverse: [C, 1]."""

    alpha: Tensor
    inverse: Tensor

    def __call__(self, source: Tensor, out: Tensor) -> None:
        """Write the activation of `source` [B, C, n] to `out`."""
        torch.mul(source, self.alpha, out=out)
        out.sin_().square_().mul_(self.inverse).add_(source)


def elu(source: Tensor, out: Tensor) -> None:
    """ELU with alpha 1."""
    out.copy_(source)
    fn.elu_(out)


def copy(source: Tensor, out: Tensor) -> None:
    """No activation."""
    out.copy_(source)


class Conv:
    """A convolution, its input activated first. `left` zeros stand before the signal; after it as
    many as `right` says, and with `complete` as many more as a last started stride needs.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        *,
        stride: int = 1,
        dilation: int = 1,
        left: int = 0,
        right: int = 0,
        complete: bool = False,
        activation: Activation = copy,
    ) -> None:
        self._weight, self._bias = weight, bias
        self._stride, self._dilation = stride, dilation
        self._reach = (weight.shape[2] - 1) * dilation + 1
        self._right, self._complete = right, complete
        self._activation = activation
        self._kept = weight.new_zeros(1, weight.shape[1], left)

    def push(self, x: Tensor, last: bool) -> Tensor:
        """[B, in, n] -> [B, out, m]."""
        buffer = self._gather(x, last)
        count = max(0, (buffer.shape[2] - self._reach) // self._stride + 1)
        self._kept = buffer[..., count * self._stride :].clone()
        if count == 0:
            return buffer.new_empty(x.shape[0], self._weight.shape[0], 0)
        return fn.conv1d(
            buffer, self._weight, self._bias, stride=self._stride, dilation=self._dilation
        )

    def _gather(self, x: Tensor, last: bool) -> Tensor:
        kept = self._kept.shape[2]
        size = kept + x.shape[2]
        padding = self._padding(size) if last else 0
        buffer = x.new_empty(x.shape[0], x.shape[1], size + padding)
        buffer[..., :kept] = self._kept
        self._activation(x, buffer[..., kept:size])
        buffer[..., size:] = 0
        return buffer

    def _padding(self, size: int) -> int:
        if not self._complete:
            return self._right
        return self._right + -(size + self._right - self._reach) % self._stride


class Upsample:
    """A transposed convolution of kernel 2 s and stride s, its input activated first.

    Output sample i*s + j takes frames i and i-1, so each frame decides s samples and leaves s open.
    `crop` samples fall at the start and s - crop at the end, so n frames give n * s samples.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, *, crop: int, activation: Activation = copy
    ) -> None:
        self._weight, self._bias = weight, bias
        self._stride = weight.shape[2] // 2
        # Without a crop the open half of the last frame falls away as a whole.
        self._skip, self._end = crop, self._stride - crop
        self._flushes = crop > 0
        self._activation = activation
        self._previous = weight.new_zeros(1, weight.shape[0], 1)

    def push(self, x: Tensor, last: bool) -> Tensor:
        """[B, in, n] -> [B, out, m]."""
        flush = last and self._flushes
        count = x.shape[2] + flush
        if count == 0:
            return x.new_empty(x.shape[0], self._weight.shape[1], 0)
        buffer = x.new_empty(x.shape[0], x.shape[1], 1 + count)
        buffer[..., :1] = self._previous
        self._activation(x, buffer[..., 1 : 1 + x.shape[2]])
        buffer[..., 1 + x.shape[2] :] = 0
        self._previous = buffer[..., -1:].clone()
        stride = self._stride
        y = fn.conv_transpose1d(buffer, self._weight, self._bias, stride=stride, padding=stride)
        y = y[..., self._skip : y.shape[2] - (self._end if flush else 0)]
        self._skip = 0
        return y


class Delay:
    """Holds a signal back until the other path of a sum has caught up."""

    def __init__(self) -> None:
        self._waiting: Tensor | None = None

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Add the signal's next y.shape[2] samples to `y`, in place; `x` is its next piece."""
        waiting = x[..., :0] if self._waiting is None else self._waiting
        early = min(waiting.shape[2], y.shape[2])
        late = y.shape[2] - early
        y[..., :early] += waiting[..., :early]
        y[..., early:] += x[..., :late]
        self._waiting = torch.cat((waiting[..., early:], x[..., late:]), dim=2)
        return y


class Residual:
    """x + inner(x)."""

    def __init__(self, inner: Stage) -> None:
        self._inner, self._delay = inner, Delay()

    def push(self, x: Tensor, last: bool) -> Tensor:
        """[B, C, n] -> [B, C, m]."""
        return self._delay.add_to(self._inner.push(x, last), x)


class Lstm:
    """A stacked LSTM whose state goes from piece to piece, plus its own input.

    `weights`: for each layer (weight_ih, weight_hh, bias_ih, bias_hh), the gates in torch's order.
    """

    def __init__(self, weights: Sequence[Sequence[Tensor]]) -> None:
        self._weights = [tensor for layer in weights for tensor in layer]
        self._layers, self._hidden = len(weights), weights[0][1].shape[1]
        self._state: tuple[Tensor, Tensor] | None = None

    def push(self, x: Tensor, last: bool) -> Tensor:
        """[B, C, n] -> [B, C, n]; `last` changes nothing, the past alone decides."""
        if x.shape[2] == 0:
            return x
        steps = x.permute(2, 0, 1)
        if self._state is None:
            zeros = x.new_zeros(self._layers, x.shape[0], self._hidden)
            self._state = zeros, zeros
        # The function below torch.nn.LSTM: a module without memory of its own, made on the meta
        # device, imports 38 MiB of libraries that nothing else needs.
        y, hidden, cell = torch.lstm(
            steps,
            self._state,
            self._weights,
            has_biases=True,
            num_layers=self._layers,
            dropout=0.0,
            train=False,
            bidirectional=False,
            batch_first=False,
        )
        self._state = hidden, cell
        return (y + steps).permute(1, 2, 0)
