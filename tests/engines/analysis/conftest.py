"""A tiny model, a config for it, and an engine that is started and loaded."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coscheduler import config
from coscheduler.config import Settings
from coscheduler.core.model import StageKind
from coscheduler.demo import tiny_llm
from coscheduler.engines.analysis.engine import AnalysisEngine
from coscheduler.engines.base import Slice, StageResult, Task

# As the fork server sets them: GNU OpenMP reads them when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

TALK = {
    "language": "en",
    "segments": [
        {"start": 0.0, "end": 4.0, "text": " We ship on Friday.", "speaker": "SPEAKER_00"},
        {"start": 4.0, "end": 9.5, "text": " I will write the report.", "speaker": "SPEAKER_01"},
    ],
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llm") / "tiny.gguf"
    tiny_llm.write(path)
    return path


def settings_for(model: Path, device: str = "cpu", **analysis: Any) -> Settings:
    return config.parse(
        {
            "device": {"device": device, "threads": 1},
            "store": {"data_dir": str(model.parent / "store")},
            "analysis": {"model": str(model), **analysis},
        },
        base_dir=model.parent,
    )


@pytest.fixture(scope="session")
def engine(tiny_model: Path) -> Iterator[AnalysisEngine]:
    engine = AnalysisEngine(settings_for(tiny_model))
    option = engine.describe().options[0]
    engine.start()
    engine.load(option, lambda done, total: None)
    yield engine
    engine.unload()


class Runner:
    """Runs tasks on an engine, each in a folder of its own."""

    def __init__(self, engine: AnalysisEngine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.count = 0

    def task(self, parameters: dict[str, Any], transcript: Any = TALK) -> Task:
        self.count += 1
        output_dir = self.folder / f"out-{self.count}"
        output_dir.mkdir()
        path = self.folder / f"in-{self.count}"
        text = transcript if isinstance(transcript, str) else json.dumps(transcript)
        path.write_text(text, encoding="utf-8")
        return Task("jobs/test", StageKind.ANALYZE, parameters, path, output_dir, 9_500)

    def run(self, task: Task) -> tuple[dict[str, Any], StageResult, list[Slice]]:
        """The written document, the result and the slices."""
        slices, seen = self.engine.slices(task), []
        while True:
            try:
                seen.append(next(slices))
            except StopIteration as stop:
                text = (task.output_dir / "analysis.json").read_text(encoding="utf-8")
                return json.loads(text), stop.value, seen

    def answer(self, parameters: dict[str, Any], transcript: Any = TALK) -> dict[str, Any]:
        return self.run(self.task(parameters, transcript))[0]


@pytest.fixture
def runner(engine: AnalysisEngine, tmp_path: Path) -> Runner:
    return Runner(engine, tmp_path)


@pytest.fixture(scope="session")
def write_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def write(**shape: Any) -> Path:
        path = tmp_path_factory.mktemp("llm") / "model.gguf"
        tiny_llm.write(path, shape=tiny_llm.Shape(**shape))
        return path

    return write
