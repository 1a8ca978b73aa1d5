"""Streamed convolutions against whole ones, for every way to cut a signal into pieces."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as fn

from coscheduler.engines.separation.streams import (
    Chain,
    Conv,
    Delay,
    Lstm,
    Residual,
    Snake,
    Stage,
    Upsample,
    elu,
)

Cut = Callable[[Tensor], list[Tensor]]
sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda row: sum(row) > 0)


def push_all(stage: Stage, x: Tensor, pieces: list[int]) -> Tensor:
    """`x` [B, C, sum(pieces)] through a stage, piece by piece."""
    parts = torch.split(x, pieces, dim=2)
    outs = [stage.push(part, index == len(parts) - 1) for index, part in enumerate(parts)]
    return torch.cat(outs, dim=2)


def signal(pieces: list[int], channels: int = 3) -> Tensor:
    return torch.randn(2, channels, sum(pieces), generator=torch.Generator().manual_seed(1))


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@settings(max_examples=60, deadline=None)
@given(sizes, st.sampled_from([1, 3]), st.sampled_from([1, 2, 5]))
def test_a_padded_convolution_is_that_of_the_whole(
    pieces: list[int], kernel: int, dilation: int
) -> None:
    x, weight, bias = signal(pieces), drawn(4, 3, kernel), drawn(4)
    pad = (kernel - 1) * dilation // 2
    stage = Conv(weight, bias, dilation=dilation, left=pad, right=pad, activation=elu)
    whole = fn.conv1d(fn.elu(x), weight, bias, padding=pad, dilation=dilation)
    torch.testing.assert_close(push_all(stage, x, pieces), whole)


@settings(max_examples=60, deadline=None)
@given(sizes, st.sampled_from([1, 2, 3, 4]))
def test_a_strided_convolution_is_that_of_the_whole(pieces: list[int], stride: int) -> None:
    x, weight, bias = signal(pieces), drawn(4, 3, 2 * stride), drawn(4)
    if x.shape[2] + 2 * (stride // 2) < 2 * stride:
        return
    pad = stride // 2
    stage = Conv(weight, bias, stride=stride, left=pad, right=pad)
    whole = fn.conv1d(x, weight, bias, stride=stride, padding=pad)
    torch.testing.assert_close(push_all(stage, x, pieces), whole)


@settings(max_examples=60, deadline=None)
@given(sizes, st.sampled_from([1, 2, 3, 4]))
def test_a_causal_stride_completes_its_last_step(pieces: list[int], stride: int) -> None:
    x, weight, bias = signal(pieces), drawn(4, 3, 2 * stride), drawn(4)
    padded = fn.pad(x, (stride, -x.shape[2] % stride))
    stage = Conv(weight, bias, stride=stride, left=stride, complete=True)
    whole = fn.conv1d(padded, weight, bias, stride=stride)
    out = push_all(stage, x, pieces)
    assert out.shape[2] == -(-x.shape[2] // stride)
    torch.testing.assert_close(out, whole)


@settings(max_examples=60, deadline=None)
@given(sizes, st.sampled_from([2, 3, 5, 8]))
def test_upsampling_is_that_of_the_whole(pieces: list[int], stride: int) -> None:
    x, weight, bias = signal(pieces), drawn(3, 4, 2 * stride), drawn(4)
    crop = -(-stride // 2)
    stage = Upsample(weight, bias, crop=crop)
    whole = fn.conv_transpose1d(
        x, weight, bias, stride=stride, padding=crop, output_padding=stride % 2
    )
    assert whole.shape[2] == stride * x.shape[2]
    torch.testing.assert_close(push_all(stage, x, pieces), whole)


@settings(max_examples=40, deadline=None)
@given(sizes, st.sampled_from([1, 2, 4]))
def test_causal_upsampling_drops_the_open_end(pieces: list[int], stride: int) -> None:
    x, weight, bias = signal(pieces), drawn(3, 4, 2 * stride), drawn(4)
    whole = fn.conv_transpose1d(x, weight, bias, stride=stride)[..., : stride * x.shape[2]]
    torch.testing.assert_close(push_all(Upsample(weight, bias, crop=0), x, pieces), whole)


@settings(max_examples=40, deadline=None)
@given(sizes, st.sampled_from([1, 3, 9]))
def test_a_residual_waits_for_its_branch(pieces: list[int], dilation: int) -> None:
    x, weight, bias = signal(pieces), drawn(3, 3, 7), drawn(3)
    alpha = drawn(3, 1).abs() + 0.5
    pad = 3 * dilation
    snake = Snake(alpha, 1 / alpha)
    conv = Conv(weight, bias, dilation=dilation, left=pad, right=pad, activation=snake)
    activated = x + torch.sin(alpha * x).square() / alpha
    whole = x + fn.conv1d(activated, weight, bias, padding=pad, dilation=dilation)
    torch.testing.assert_close(push_all(Residual(Chain((conv,))), x, pieces), whole)


@settings(max_examples=20, deadline=None)
@given(sizes)
def test_an_lstm_carries_its_state(pieces: list[int]) -> None:
    lstm = torch.nn.LSTM(3, 3, 2)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = [[getattr(lstm, f"{name}_l{layer}") for name in names] for layer in (0, 1)]
    x = signal(pieces)
    with torch.inference_mode():
        steps = x.permute(2, 0, 1)
        whole = (lstm(steps)[0] + steps).permute(1, 2, 0)
        torch.testing.assert_close(push_all(Lstm(weights), x, pieces), whole)


def test_a_delay_adds_each_sample_once() -> None:
    delay, x = Delay(), torch.arange(6.0).view(1, 1, 6)
    first = delay.add_to(torch.zeros(1, 1, 1), x[..., :4])
    second = delay.add_to(torch.zeros(1, 1, 4), x[..., 4:])
    assert torch.cat((first, second), dim=2).flatten().tolist() == [0, 1, 2, 3, 4]


def test_a_stage_does_not_change_its_input() -> None:
    x = drawn(1, 3, 8)
    kept = x.clone()
    alpha = torch.ones(3, 1)
    conv = Conv(drawn(3, 3, 3), drawn(3), left=1, right=1, activation=Snake(alpha, alpha))
    Residual(Chain((conv,))).push(x, True)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("last", [False, True])
def test_an_empty_piece_is_allowed(last: bool) -> None:
    stage = Upsample(drawn(3, 4, 4), drawn(4), crop=1)
    assert stage.push(torch.empty(1, 3, 0), last).shape[1] == 4
