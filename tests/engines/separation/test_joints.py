"""Where windows meet: no more error than inside them, on an input that is the same everywhere.

The error is the windowed result minus that of a single window over everything, from the same noise.
A joint is where two windows overlap, its first and last step included.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from coscheduler.engines.separation import sampler, transformer
from coscheduler.engines.separation.model import LoadedModel
from coscheduler.engines.separation.sampler import Integration, Windows, plan_windows
from coscheduler.engines.separation.scheme import STEPS
from coscheduler.engines.separation.velocity import WindowVelocity

FRAMES, WINDOW, SEEDS = 200, 50, 4
WHOLE = Windows(FRAMES, FRAMES, (0,))


@pytest.fixture(scope="module")
def latents(loaded: LoadedModel) -> Callable[[Windows], Tensor]:
    """The ODE's end over stationary features, [seeds, frames, channels]."""
    features = torch.randn(1, 128, generator=torch.Generator().manual_seed(0)).expand(FRAMES, 128)
    text = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(1))

    def solve(windows: Windows) -> Tensor:
        with torch.inference_mode():
            memory = transformer.text_memory(loaded.weights("core"), text)
            anchors = torch.zeros(FRAMES, dtype=torch.int64)
            velocity = WindowVelocity(loaded, features, anchors, windows, memory)
            state = torch.empty(SEEDS, FRAMES, 256)
            for seed, row in enumerate(state):
                sampler.draw_noise(seed, row)
            scratch = torch.empty_like(state), torch.empty_like(state)
            integration = Integration(state, *scratch, windows, velocity)
            for index in range(STEPS):
                for _ in integration.step(index):
                    pass
            return state

    return solve


@pytest.fixture(scope="module")
def whole(latents: Callable[[Windows], Tensor]) -> Tensor:
    """One window over everything."""
    return latents(WHOLE)


@pytest.fixture(scope="module")
def errors(latents: Callable[[Windows], Tensor], whole: Tensor) -> Tensor:
    """Windowed minus whole, [seeds, frames, channels]."""
    return latents(plan_windows(FRAMES, WINDOW)) - whole


@pytest.fixture(scope="module")
def covers() -> Tensor:
    """How many windows cover each frame, [frames]."""
    windows = plan_windows(FRAMES, WINDOW)
    counts = torch.zeros(FRAMES, dtype=torch.int64)
    for index in range(len(windows.starts)):
        counts[windows.slice(index)] += 1
    return counts


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def test_there_are_joints_and_insides(covers: Tensor, errors: Tensor) -> None:
    assert set(covers.tolist()) == {1, 2}
    assert (covers.diff() != 0).sum() == 8  # four joints
    assert rms(errors) > 0


def test_the_error_at_joints_is_no_larger_than_inside(covers: Tensor, errors: Tensor) -> None:
    """Measured: 0.88 of it."""
    assert rms(errors[:, covers == 2]) <= rms(errors[:, covers == 1])


def test_steps_from_frame_to_frame_are_no_larger_at_joints(covers: Tensor, errors: Tensor) -> None:
    """Measured: 0.90 of those inside."""
    steps, at_joint = errors.diff(dim=1), (covers[1:] == 2) | (covers[:-1] == 2)
    assert rms(steps[:, at_joint]) <= rms(steps[:, ~at_joint])


def test_where_a_window_begins_or_ends_nothing_shows(
    latents: Callable[[Windows], Tensor], whole: Tensor, covers: Tensor, errors: Tensor
) -> None:
    """Measured over 112 such places: 1.00 times the steps inside windows; a hard cut 8 times."""
    steps, is_border = errors.diff(dim=1), covers.diff() != 0
    inside = (covers[1:] == 1) & (covers[:-1] == 1)
    assert rms(steps[:, is_border]) <= 1.1 * rms(steps[:, inside])
    cut = (latents(Windows(FRAMES, WINDOW, (0, 50, 100, 150))) - whole).diff(dim=1)
    assert rms(cut[:, [49, 99, 149]]) > 5 * rms(steps[:, is_border])
