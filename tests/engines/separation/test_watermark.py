"""The watermark: there unless it is declined, decided by the seed, its weights there on demand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from coscheduler import audio
from coscheduler.core.model import Line
from coscheduler.engines.base import Task
from coscheduler.engines.separation import codec, footprint, model, text
from coscheduler.engines.separation.engine import SeparationEngine
from coscheduler.engines.separation.model import LoadedModel, ModelFolder
from tests.engines.separation.conftest import RATE, finish, noise

MakeTask = Callable[..., Task]


def test_it_is_there_unless_it_is_declined(engine: SeparationEngine, task: MakeTask) -> None:
    """And little beside the sound: what is between the two is the mark alone."""
    signals = {}
    for watermark in (True, False):
        made = task(noise(0.5), watermark=watermark)
        finish(engine, made)
        signals[watermark] = audio.read_mono(made.output_dir / "target.wav", RATE)
    default = task(noise(0.5))
    finish(engine, default)
    assert np.array_equal(audio.read_mono(default.output_dir / "target.wav", RATE), signals[True])
    mark = signals[True] - signals[False]
    assert np.abs(mark).max() > 1e-3
    assert np.corrcoef(signals[True], signals[False])[0, 1] > 0.9


def test_the_message_follows_from_the_seed(loaded: LoadedModel) -> None:
    weights = loaded.weights("watermark")
    first, again, other = (codec.message_bits(weights, seed, rows=2) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (2, 16)
    assert not torch.equal(first[0], first[1])
    assert set(first.flatten().tolist()) == {0, 1}
    many = torch.stack([codec.message_bits(weights, seed, rows=2) for seed in range(200)])
    assert bool(((many.float().mean(dim=0) - 0.5).abs() < 0.2).all())


def test_its_weights_are_fetched_when_they_are_needed(models: Path, source: ModelFolder) -> None:
    prepared = source.prepare("float32", models / "prepared", lambda done, total: None)
    cpu = torch.device("cpu")
    lean = model.load(source.config, prepared, cpu, lambda done, total: None)
    held = lean.bytes
    weights = lean.watermark()
    assert "message" in weights
    assert lean.bytes == held
    lean.close()


def test_a_step_of_its_own_is_charged_with_its_weights(models: Path, source: ModelFolder) -> None:
    segments = source.segments("float32")
    (size,) = [segment.bytes for segment in segments if segment.name == "watermark"]
    encoder = text.open_text_encoder(models / "t5", source.config.text_encoder.dim)
    lines = footprint.run_lines(source.config, segments, encoder, 30_000)
    assert [x.fixed_bytes for x in lines if (x.line, x.phase) == (Line.WEIGHTS, "mark")] == [size]
