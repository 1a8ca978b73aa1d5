"""Peaks above the prediction outlive the daemon, and only where they still say something."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coscheduler.core import events as ev
from coscheduler.core.engine_state import EngineState
from coscheduler.core.learning import KnownPeak
from coscheduler.core.model import EngineDescription, Line, LineBytes, Option, StageKind
from coscheduler.runtime import peaks
from coscheduler.runtime.peaks import Peaks
from tests.core.build import T, description, job, limits, option
from tests.core.story import Story

DEVICE = {"device": "cpu", "index": 0, "threads": 2}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(b"weights")
    return path


def whisper(model: Path, **changes: Any) -> Option:
    return replace(option("batch 4"), files=(str(model),), **changes)


def described(*options: Option) -> EngineDescription:
    return description(T, *options)


def learn(folder: Path, *options: Option, resident: int = 0, run: int = 30) -> None:
    """A daemon whose first option took more than was predicted."""
    kept, state = Peaks(folder, DEVICE), EngineState(T)
    for peak in kept.recall(described(*options)):
        state.learned.recall(peak)
    if resident:
        state.learned.resident_bytes[options[0].name] = resident
    state.learned.run_bytes[options[0].name] = run
    kept.keep(state)


def recalled(folder: Path, *options: Option, device: dict[str, Any] = DEVICE) -> Any:
    return Peaks(folder, device).recall(described(*options))


def test_the_next_daemon_knows_what_the_last_one_measured(tmp_path: Path, model: Path) -> None:
    other = replace(whisper(model), name="batch 1")
    assert recalled(tmp_path, whisper(model)) == ()
    learn(tmp_path, whisper(model), other, resident=5)
    assert recalled(tmp_path, whisper(model), other) == (KnownPeak("batch 4", 5, 30, 1),)
    learn(tmp_path, whisper(model), other, resident=5, run=40)
    learn(tmp_path, whisper(model), other, resident=5, run=40)  # nothing new
    assert recalled(tmp_path, whisper(model), other) == (KnownPeak("batch 4", 5, 40, 2),)
    assert {path.name for path in tmp_path.iterdir()} == {"model.bin", "peaks.json"}


def test_what_is_stale_is_not_used(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(tmp_path, whisper(model))
    assert recalled(tmp_path, whisper(model))
    another_prediction = whisper(model, resident=(LineBytes(Line.WEIGHTS, 101),))
    assert not recalled(tmp_path, another_prediction)
    assert not recalled(tmp_path, replace(whisper(model), name="batch 8"))
    assert not recalled(tmp_path, whisper(model), device={**DEVICE, "threads": 3})
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: "999")
        assert not recalled(tmp_path, whisper(model))
    assert recalled(tmp_path, whisper(model))
    model.write_bytes(b"other weights")
    assert not recalled(tmp_path, whisper(model))


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"version": 2, "peaks": {}}', '{"version": 1, "peaks": {"a": {}}}',
        '{"version": 1, "peaks": {"a": {"engine": "t", "option": "o", "resident_bytes": -1, '
        '"run_bytes": 0, "run_count": 1}}}', "\x00" * 40,
    ],
)  # fmt: skip
def test_a_file_that_is_not_ours_is_warned_of_and_replaced(
    tmp_path: Path, model: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / peaks.FILENAME).write_text(text)
    with caplog.at_level(logging.WARNING):
        assert recalled(tmp_path, whisper(model)) == ()
    assert f"{tmp_path / peaks.FILENAME} cannot be read" in caplog.text
    learn(tmp_path, whisper(model))
    assert recalled(tmp_path, whisper(model))


def test_an_enormous_file_is_not_read(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(tmp_path, whisper(model))
    monkeypatch.setattr(peaks, "FILE_BYTES_MAX", 20)
    assert recalled(tmp_path, whisper(model)) == ()


def test_a_disk_that_fails_costs_the_peaks_alone(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "peaks.part").mkdir()
    with caplog.at_level(logging.WARNING):
        learn(tmp_path, whisper(model))
    assert "cannot be kept" in caplog.text


def test_the_oldest_entries_go_when_there_are_too_many(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peaks, "ENTRIES_MAX", 2)
    for size in (1, 2, 3):
        learn(tmp_path, replace(whisper(model), name=f"batch {size}"))
    stored = json.loads((tmp_path / peaks.FILENAME).read_text())["peaks"]
    assert [entry["option"] for entry in stored.values()] == ["batch 2", "batch 3"]


def test_a_scheduler_that_is_told_charges_it_and_says_from_where() -> None:
    told = Story(1000, limits())
    known = (KnownPeak("full", 7, 30, 2),)
    outcome = told.scheduler.handle(ev.Described(T, description(T, option()), known), 0)
    (said,) = outcome.decisions
    assert "7 bytes more to load, 30 to run: learned from 2 earlier runs" in said
    state = told.scheduler.engines[T]
    assert state.options()[0].peak_bytes(0) == option().peak_bytes(0) + 37
    told.submit(job("jobs/1", StageKind.TRANSCRIBE))
    assert told.scheduler.ledger.bytes_of(T) == 10 + 107 + 50
