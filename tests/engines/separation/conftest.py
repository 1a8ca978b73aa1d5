"""A tiny model in the official format, its weights in memory, and an engine that is ready."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coscheduler import audio, config
from coscheduler.config import Settings
from coscheduler.core.model import StageKind
from coscheduler.demo import tiny_sam_audio
from coscheduler.engines.base import Slice, StageResult, Task
from coscheduler.engines.separation import model
from coscheduler.engines.separation.engine import SeparationEngine
from coscheduler.engines.separation.model import LoadedModel, ModelFolder

# The models are tiny: a second thread costs more than it brings, most of all on a busy machine.
torch.set_num_threads(1)
RATE = 48_000


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `sam` and `t5`."""
    folder = tmp_path_factory.mktemp("separation")
    tiny_sam_audio.write(folder / "sam", folder / "t5")
    return folder


@pytest.fixture(scope="session")
def source(models: Path) -> ModelFolder:
    return model.open_folder(models / "sam")


@pytest.fixture(scope="session")
def loaded(models: Path, source: ModelFolder) -> LoadedModel:
    """Float32, watermark included."""
    prepared = source.prepare("float32", models / "prepared", lambda done, total: None)
    cpu = torch.device("cpu")
    return model.load(source.config, prepared, cpu, lambda done, total: None, watermark=True)


def settings_for(models: Path, **separation: Any) -> Settings:
    section = {
        "model": str(models / "sam"),
        "text_encoder": str(models / "t5"),
        "prepared_dir": str(models / "prepared"),
        **separation,
    }
    return config.parse({"separation": section, "device": {"threads": 1}}, models)


@pytest.fixture(scope="session")
def make_engine(models: Path) -> Callable[..., SeparationEngine]:
    """An engine that is started and loaded with its first option; keywords go to [separation]."""

    def make(**separation: Any) -> SeparationEngine:
        engine = SeparationEngine(settings_for(models, **separation))
        engine.start()
        engine.load(engine.describe().options[0], lambda done, total: None)
        return engine

    return make


@pytest.fixture(scope="session")
def engine(make_engine: Callable[..., SeparationEngine]) -> SeparationEngine:
    """For tests that leave it as they found it. Its windows are 2 s long."""
    return make_engine(window_ms=2000)


def noise(seconds: float, seed: int = 0, level: float = 0.1) -> np.ndarray[Any, Any]:
    """White noise, float32 [seconds * RATE]."""
    generator = np.random.default_rng(seed)
    return (level * generator.standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.fixture
def task(tmp_path: Path) -> Iterator[Callable[..., Task]]:
    """Tasks over a recording: samples in, a Task with its own empty output folder out."""
    numbers = iter(range(1000))

    def make(
        samples: np.ndarray[Any, Any],
        prompt: str = "a man speaking",
        seed: int = 0,
        resume_dir: Path | None = None,
        **parameters: Any,
    ) -> Task:
        number = next(numbers)
        recording = tmp_path / f"{number}.wav"
        audio.write_wav(recording, samples, RATE)
        folder = tmp_path / f"out{number}"
        folder.mkdir()
        duration_ms = len(samples) * 1000 // RATE
        return Task(
            "jobs/1",
            StageKind.SEPARATE,
            {"prompt": prompt, "seed": seed, **parameters},
            recording,
            folder,
            duration_ms,
            resume_dir,
        )

    yield make


def finish(engine: SeparationEngine, task: Task) -> tuple[StageResult, list[Slice]]:
    """Run a stage to its end."""
    run, slices = engine.slices(task), []
    while True:
        try:
            slices.append(next(run))
        except StopIteration as stop:
            return stop.value, slices
