"""Windows, tapers, noise, and the midpoint rule."""

import math
from collections.abc import Generator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from coscheduler.engines.separation import sampler
from coscheduler.engines.separation.sampler import Integration, Windows, plan_windows, tapers
from coscheduler.engines.separation.scheme import STEPS

States = Sequence[Tensor]


@given(st.integers(1, 5000), st.integers(2, 750))
def test_windows_cover_everything_and_overlap(total: int, frames_max: int) -> None:
    windows = plan_windows(total, frames_max)
    assert windows.frames == min(total, frames_max)
    assert windows.starts[0] == 0
    assert windows.starts[-1] + windows.frames == total
    for left, right in zip(windows.starts, windows.starts[1:], strict=False):
        overlap = left + windows.frames - right
        assert right > left
        assert overlap >= frames_max // sampler.OVERLAP_PER_WINDOW


@given(st.integers(1, 2000), st.integers(2, 300))
def test_the_weights_of_every_frame_sum_to_one(total: int, frames_max: int) -> None:
    windows = plan_windows(total, frames_max)
    sums = torch.zeros(total)
    weights = tapers(windows)
    assert bool((weights >= 0).all())
    for index in range(len(windows.starts)):
        sums[windows.slice(index)] += weights[index]
    torch.testing.assert_close(sums, torch.ones(total))


def test_the_noise_at_a_frame_does_not_depend_on_the_length() -> None:
    short, long = torch.empty(300, 4), torch.empty(1000, 4)
    sampler.draw_noise(7, short)
    sampler.draw_noise(7, long)
    assert torch.equal(long[:300], short)


def test_blocks_and_seeds_draw_different_noise_of_unit_size() -> None:
    noise, other = torch.empty(1024, 256), torch.empty(1024, 256)
    sampler.draw_noise(0, noise)
    sampler.draw_noise(1, other)
    block = sampler.NOISE_BLOCK_FRAMES
    assert not torch.equal(noise[:block], noise[block : 2 * block])
    assert not torch.equal(noise, other)
    assert float(noise.std()) == pytest.approx(1, abs=0.01)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)


def solve(windows: Windows, state: Tensor, rate: float) -> list[int]:
    """dx/dt = rate * x, in every window."""

    def velocity(
        states: States, windows: range, number: int
    ) -> Generator[None, None, list[Tensor]]:
        yield
        return [rate * x for x in states]

    middle, speed = torch.empty_like(state), torch.empty_like(state)
    return run(Integration(state, middle, speed, windows, velocity))


def run(integration: Integration) -> list[int]:
    """All steps; the counts of the last one."""
    for index in range(STEPS):
        counts = list(integration.step(index))
    return counts


@pytest.mark.parametrize("frames_max", [40, 12])
def test_the_midpoint_rule_on_a_known_equation(frames_max: int) -> None:
    state = torch.ones(1, 40, 3)
    done = solve(plan_windows(40, frames_max), state, rate=-1.5)
    step = -1.5 / STEPS
    exact = (1 + step + step * step / 2) ** STEPS
    torch.testing.assert_close(state, torch.full_like(state, exact))
    assert exact == pytest.approx(math.exp(-1.5), rel=5e-3)
    assert done[-1] == 2 * len(plan_windows(40, frames_max).starts)
    assert done == sorted(done)


def test_evaluations_come_at_the_starts_and_middles_of_steps() -> None:
    times = sampler.evaluation_times()
    assert times.tolist() == [i / 32 for i in range(32)]


def test_where_windows_disagree_the_weights_decide() -> None:
    windows = Windows(6, 4, (0, 2))

    def velocity(
        states: States, windows: range, number: int
    ) -> Generator[None, None, list[Tensor]]:
        yield
        return [torch.full_like(x, float(i)) for x, i in zip(states, windows, strict=True)]

    state = torch.zeros(1, 6, 1)
    scratch = torch.empty_like(state), torch.empty_like(state)
    run(Integration(state, *scratch, windows, velocity))
    values = state.flatten().tolist()
    assert values[:2] == [0, 0]
    assert values[4:] == pytest.approx([1, 1])
    assert values[2] == pytest.approx(math.sin(math.pi / 8) ** 2)
    assert values[3] == pytest.approx(math.cos(math.pi / 8) ** 2)


@pytest.mark.parametrize("cohort", [1, 2, 3, 4, 9])
def test_a_cohort_of_any_size_gives_the_same_bits(cohort: int) -> None:
    windows = plan_windows(60, 12)
    count = len(windows.starts)
    asked: list[range] = []

    def velocity(states: States, which: range, number: int) -> Generator[None, None, list[Tensor]]:
        asked.append(which)
        yield
        return [(x * (index + 2)).sin() for x, index in zip(states, which, strict=True)]

    def solved(size: int) -> tuple[Tensor, list[int]]:
        state = torch.linspace(-1, 1, 180).view(1, 60, 3)
        scratch = torch.empty_like(state), torch.empty_like(state)
        done = run(Integration(state, *scratch, windows, velocity, size))
        return state, done

    alone, _ = solved(1)
    asked.clear()
    together, done = solved(cohort)
    assert torch.equal(together, alone)
    assert done[-1] == 2 * count
    assert done == sorted(done)
    assert max(map(len, asked)) == min(cohort, count)
    assert [index for which in asked for index in which] == list(range(count)) * 32


def test_a_copy_of_the_state_between_steps_is_all_that_the_rest_needs() -> None:
    windows = plan_windows(40, 12)

    def velocity(
        states: States, windows: range, number: int
    ) -> Generator[None, None, list[Tensor]]:
        yield
        return [x.cos() * (number + 1) for x in states]

    def integration(state: Tensor) -> Integration:
        return Integration(state, torch.rand_like(state), torch.rand_like(state), windows, velocity)

    whole = torch.linspace(-1, 1, 120).view(1, 40, 3)
    state = whole.clone()
    run(integration(whole))
    first = integration(state)
    for index in range(7):
        list(first.step(index))
    abandoned = first.step(7)
    next(abandoned)
    abandoned.close()
    second = integration(state.clone())
    for index in range(7, STEPS):
        list(second.step(index))
    assert torch.equal(second._state, whole)
