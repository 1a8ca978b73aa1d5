"""Points on the way: whole or not there, and equal bytes after a process was killed."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from coscheduler.engines.base import Task
from coscheduler.engines.separation import pacing
from coscheduler.engines.separation.engine import SeparationEngine
from coscheduler.engines.separation.resume import ResumePoints, key_of
from coscheduler.engines.streaming.host_arrays import HostArrays
from tests.engines.separation.conftest import finish, noise, settings_for

REPO = Path(__file__).parents[3]
MakeTask = Callable[..., Task]
Result = TypeVar("Result")


def drain(run: Generator[Any, None, Result]) -> Result:
    while True:
        try:
            next(run)
        except StopIteration as stop:
            found: Result = stop.value
            return found


def points(folder: Path | None, key: str = "k") -> ResumePoints:
    return ResumePoints(folder, key, interval_ms=0)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    arrays = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}
    drain(points(tmp_path).save("state", {"step": 3, "score": 1.25}, arrays))
    return tmp_path / "state.point"


def test_what_was_saved_is_found(saved: Path) -> None:
    point = drain(points(saved.parent).load("state", HostArrays(saved.parent)))
    assert point is not None
    assert point.facts == {"step": 3, "score": 1.25}
    assert torch.equal(point.arrays["a"], torch.arange(6.0).view(2, 3))
    assert list(saved.parent.iterdir()) == [saved]


def test_another_key_finds_nothing(saved: Path) -> None:
    host = HostArrays(saved.parent)
    assert drain(points(saved.parent, "other").load("state", host)) is None
    assert drain(points(saved.parent).load("missing", host)) is None
    assert drain(points(None).load("state", host)) is None


def cut(content: bytes) -> bytes:
    return content[:-3]


def beheaded(content: bytes) -> bytes:
    return content[4:]


def flipped(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


def emptied(content: bytes) -> bytes:
    return b""


def garbled(content: bytes) -> bytes:
    return content.replace(b'"facts"', b'"facts')


@pytest.mark.parametrize("damage", [cut, beheaded, flipped, emptied, garbled])
def test_a_damaged_point_is_as_good_as_none(saved: Path, damage: Callable[[bytes], bytes]) -> None:
    saved.write_bytes(damage(saved.read_bytes()))
    assert drain(points(saved.parent).load("state", HostArrays(saved.parent))) is None


def test_a_save_that_is_cut_short_leaves_the_point_before(saved: Path) -> None:
    run = points(saved.parent).save("state", {"step": 9}, {"a": torch.zeros(2)})
    next(run)
    run.close()
    point = drain(points(saved.parent).load("state", HostArrays(saved.parent)))
    assert point is not None
    assert point.facts["step"] == 3


def test_a_disk_that_takes_nothing_costs_the_point_alone(tmp_path: Path) -> None:
    kept = points(tmp_path / "gone")
    drain(kept.save("state", {}, {"a": torch.zeros(2)}))
    assert not kept.is_kept
    assert not kept.is_due()


def test_a_point_is_due_after_its_interval() -> None:
    now = [0.0]
    kept = ResumePoints(Path(), "k", interval_ms=10_000, clock=lambda: now[0])
    now[0] = 9.9
    assert not kept.is_due()
    now[0] = 10.0
    assert kept.is_due()
    kept.mark()
    assert not kept.is_due()
    assert not ResumePoints(None, "k", interval_ms=0).is_due()


def test_a_key_does_not_depend_on_the_order() -> None:
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1}) != key_of({"a": 1, "b": [3]})


# ---- through the engine ------------------------------------------------------------------------

CHILD = """
import json, os, signal, sys
from pathlib import Path
from coscheduler.core.model import StageKind
from coscheduler.engines.base import Task
from coscheduler.engines.separation import pacing
from coscheduler.engines.separation import pacing
from coscheduler.engines.separation.engine import SeparationEngine
from tests.engines.separation.conftest import settings_for

models, recording, out, resume, parameters, stop = sys.argv[1:]
pacing.SLICE_MS = 0
engine = SeparationEngine(settings_for(Path(models), window_ms=1000), resume_interval_ms=0)
engine.start()
engine.load(engine.describe().options[0], lambda done, total: None)
task = Task("jobs/1", StageKind.SEPARATE, json.loads(parameters), Path(recording), Path(out), 0,
            Path(resume))
for piece in engine.slices(task):
    if stop in piece.note:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_at(note: str, models: Path, task: Task) -> None:
    """Run the task in a process that is killed in the middle of what `note` says."""
    out = task.output_dir.with_name(task.output_dir.name + "-killed")
    out.mkdir()
    command = [
        sys.executable, "-c", CHILD, str(models), str(task.input_path), str(out),
        str(task.resume_dir), json.dumps(dict(task.parameters)), note,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def digest(task: Task) -> str:
    files = sorted(task.output_dir.iterdir())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def folder(tmp_path: Path) -> Path:
    made = tmp_path / "resume"
    made.mkdir()
    return made


def make(models: Path, interval_ms: int) -> SeparationEngine:
    engine = SeparationEngine(settings_for(models, window_ms=1000), interval_ms)
    engine.start()
    engine.load(engine.describe().options[0], lambda done, total: None)
    return engine


@pytest.fixture(scope="module")
def patient(models: Path) -> SeparationEngine:
    """Like the child's, but no run is long enough for it to keep a point."""
    return make(models, 3_600_000)


@pytest.fixture
def eager(models: Path, monkeypatch: pytest.MonkeyPatch) -> SeparationEngine:
    """A point after every step, a slice for every layer."""
    monkeypatch.setattr(pacing, "SLICE_MS", 0)
    return make(models, 0)


def test_a_killed_child_costs_one_step_and_no_bit(
    models: Path, patient: SeparationEngine, task: MakeTask, tmp_path: Path
) -> None:
    whole = task(noise(1.5))
    finish(patient, whole)
    again = task(noise(1.5), resume_dir=folder(tmp_path))
    killed_at("step 6 of 16, window 2", models, again)
    result, slices = finish(patient, again)
    assert result.numbers["resumed_step_count"] == 5
    assert digest(again) == digest(whole)
    known = [piece.done for piece in slices if piece.total]
    assert known == sorted(known)


@pytest.mark.parametrize(
    ("note", "parameters", "resumed_steps"),
    [
        ("decoding", {"spans": ["0.2-0.9"]}, 16),
        ("candidate 2 of 2, step 4", {"candidates": 2}, 16 + 3),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    patient: SeparationEngine,
    eager: SeparationEngine,
    task: MakeTask,
    tmp_path: Path,
    note: str,
    parameters: dict[str, Any],
    resumed_steps: int,
) -> None:
    whole = task(noise(1.5), **parameters)
    finish(patient, whole)
    resume = folder(tmp_path)
    run = eager.slices(task(noise(1.5), resume_dir=resume, **parameters))
    while note not in next(run).note:
        pass
    run.close()
    again = task(noise(1.5), resume_dir=resume, **parameters)
    result, _ = finish(patient, again)
    assert result.numbers["resumed_step_count"] == resumed_steps
    assert digest(again) == digest(whole)


def test_slices_are_short(eager: SeparationEngine, task: MakeTask, tmp_path: Path) -> None:
    """By the processor's clock: others may be using the machine."""
    run, longest_s = eager.slices(task(noise(3.0), resume_dir=folder(tmp_path))), 0.0
    begun = time.process_time()
    for piece in run:
        took = time.process_time() - begun
        longest_s = max(longest_s, 0 if piece.note.startswith("reading") else took)
        begun = time.process_time()
    assert longest_s < 0.25


def test_points_of_another_request_are_not_taken(
    patient: SeparationEngine, eager: SeparationEngine, task: MakeTask, tmp_path: Path
) -> None:
    resume = folder(tmp_path)
    finish(eager, task(noise(0.3), resume_dir=resume))
    assert {path.name for path in resume.iterdir()} == {"features.point", "state.point"}
    for changed in (
        task(noise(0.3), seed=1, resume_dir=resume),
        task(noise(0.3, seed=4), resume_dir=resume),
    ):
        result, _ = finish(patient, changed)
        assert result.numbers["resumed_step_count"] == 0
    result, _ = finish(patient, task(noise(0.3), resume_dir=resume))
    assert result.numbers["resumed_step_count"] == 16


def test_a_short_run_writes_no_points(
    engine: SeparationEngine, task: MakeTask, tmp_path: Path
) -> None:
    resume = folder(tmp_path)
    finish(engine, task(noise(0.3), resume_dir=resume))
    assert list(resume.iterdir()) == []
