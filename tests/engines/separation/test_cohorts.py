"""Windows side by side: one layer serves all of a cohort, and the bits do not change."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from coscheduler.engines.separation import transformer
from coscheduler.engines.separation.model import LoadedModel
from coscheduler.engines.separation.sampler import Integration, draw_noise, plan_windows
from coscheduler.engines.separation.velocity import WindowVelocity

FRAMES, WINDOW, STEPS = 90, 25, 3


class Counting(LoadedModel):
    """The loaded model, and how often a layer was asked for."""

    def __init__(self, loaded: LoadedModel) -> None:
        vars(self).update(vars(loaded))
        self.asked: list[int] = []

    def layer(self, index: int) -> Mapping[str, Tensor]:
        self.asked.append(index)
        return super().layer(index)


def state_after(loaded: LoadedModel, cohort: int) -> Tensor:
    """The state [FRAMES, channels] after a few steps, from the same noise."""
    windows = plan_windows(FRAMES, WINDOW)
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(FRAMES, 128, generator=generator)
    anchors = torch.randint(0, 3, (FRAMES,), generator=generator)
    with torch.inference_mode():
        text = torch.randn(1, 5, loaded.config.text_encoder.dim, generator=generator)
        memory = transformer.text_memory(loaded.weights("core"), text)
        velocity = WindowVelocity(loaded, features, anchors, windows, memory)
        state = torch.empty(FRAMES, 256)
        draw_noise(7, state)
        scratch = torch.empty(1, FRAMES, 256), torch.empty(1, FRAMES, 256)
        integration = Integration(state[None], *scratch, windows, velocity, cohort)
        for index in range(STEPS):
            for _ in integration.step(index):
                pass
    return state


@pytest.fixture(scope="module")
def alone(loaded: LoadedModel) -> Tensor:
    """One window after the other."""
    return state_after(loaded, 1)


@pytest.mark.parametrize("cohort", [2, 3, 100])
def test_the_cohort_changes_no_bit(loaded: LoadedModel, alone: Tensor, cohort: int) -> None:
    assert torch.equal(state_after(loaded, cohort), alone)


@pytest.mark.parametrize(("cohort", "passes"), [(1, 5), (2, 3), (3, 2), (5, 1)])
def test_a_layer_is_asked_for_once_for_each_cohort(
    loaded: LoadedModel, cohort: int, passes: int
) -> None:
    counting = Counting(loaded)
    state_after(counting, cohort)
    layers = list(range(loaded.config.transformer.n_layers))
    assert counting.asked == layers * passes * 2 * STEPS
