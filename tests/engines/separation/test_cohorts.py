"""Windows side by side: one layer serves all of a cohort, and the bits do not change."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from coscheduler.core.model import total_bytes
from coscheduler.engines.base import Task
from coscheduler.engines.separation import choices, footprint, transformer
from coscheduler.engines.separation.engine import SeparationEngine
from coscheduler.engines.separation.model import LoadedModel
from coscheduler.engines.separation.offer import Machine
from coscheduler.engines.separation.sampler import Integration, draw_noise, plan_windows
from coscheduler.engines.separation.velocity import WindowVelocity
from tests.engines.separation.conftest import finish, noise, settings_for

FRAMES, WINDOW, STEPS = 90, 25, 3


class Counting(LoadedModel):
    """The loaded model, and how often a pass over its layers was asked for."""

    def __init__(self, loaded: LoadedModel) -> None:
        vars(self).update(vars(loaded))
        self.passes = 0

    def layers(self) -> Iterator[Mapping[str, Tensor]]:
        self.passes += 1
        yield from super().layers()


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
    assert counting.passes == passes * 2 * STEPS


def test_through_the_engine_files_are_the_same(
    models: Path, engine: SeparationEngine, task: Callable[..., Task]
) -> None:
    """Two windows; the second engine takes both at a time."""
    alone, paired = task(noise(2.4)), task(noise(2.4))
    finish(engine, alone)
    other = SeparationEngine(settings_for(models, window_ms=2000))
    option = other.describe().options[0]
    changed = {**json.loads(option.settings_json), "cohort": 2}
    other.load(replace(option, settings_json=json.dumps(changed)), lambda done, total: None)
    finish(other, paired)
    for name in ("target.wav", "residual.wav"):
        assert (alone.output_dir / name).read_bytes() == (paired.output_dir / name).read_bytes()


# ---- how many, and what they hold --------------------------------------------------------------


@pytest.mark.parametrize(
    ("streamed_ms", "computed_ms", "cohort"),
    [(0, 7, 1), (6, 7, 1), (7, 7, 1), (8, 7, 2), (50, 7, 8)],
)
def test_the_smallest_cohort_that_hides_the_copying(
    streamed_ms: int, computed_ms: int, cohort: int
) -> None:
    machine = Machine("cpu", threads=2)
    copied, computed = streamed_ms * machine.link_bytes_per_ms, computed_ms * machine.flop_per_ms
    assert machine.cohort(copied, computed) == cohort


def test_with_everything_resident_windows_run_alone(models: Path) -> None:
    option = SeparationEngine(settings_for(models)).describe().options[0]
    assert json.loads(option.settings_json)["cohort"] == 1


def test_each_further_window_holds_its_stream(models: Path) -> None:
    """Where there are several windows; and never more of them than the cohort has."""
    source = choices.open_source(models / "sam", models / "t5")
    config, segments = source.folder.config, source.folder.segments("float32")

    def window_bytes(cohort: int, seconds: int) -> int:
        lines = footprint.run_lines(config, segments, source.text_encoder, 10_000, cohort)
        return total_bytes(x.at(1000 * seconds) for x in lines if x.phase == "window")

    stream = 4 * 256 * 250  # float32, the wider of state and transformer, 10 s
    for cohort in (2, 4):
        extra = window_bytes(cohort, 7200) - window_bytes(1, 7200)
        assert extra == pytest.approx((cohort - 1) * stream, rel=0.1)
    assert window_bytes(4, 19) - window_bytes(1, 19) < 3 * stream
