"""Speech of the next recording is found beside the text of this one, with the same result."""

import threading
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from coscheduler import audio
from coscheduler.core.model import StageKind
from coscheduler.engines import messages as msg
from coscheduler.engines.base import Task
from coscheduler.engines.transcription import checkpoint, footprint
from coscheduler.engines.transcription.ahead import Ahead
from coscheduler.engines.transcription.footprint import Models, Place
from coscheduler.engines.transcription.kept import FILENAME
from tests.engines.transcription.conftest import MEETING, Child

pytestmark = pytest.mark.timeout(300)  # the first of them starts a process with torch


@pytest.fixture(scope="module")
def loaded(child: Child) -> Child:
    child.load(child.describe()[0])
    return child


def task(child: Child, recording: Path, resume_dir: Path, **parameters: object) -> Task:
    output_dir = child.scratch / f"ahead-{resume_dir.name}-{len(parameters)}"
    for folder in (output_dir, resume_dir):
        folder.mkdir(exist_ok=True)
    duration_ms = audio.probe(recording, 0, 3_600_000).duration_ms
    return Task(
        "jobs/1", StageKind.TRANSCRIBE, parameters, recording, output_dir, duration_ms, resume_dir
    )


def run(child: Child, work: Task, ahead: Task | None = None) -> tuple[list[str], str]:
    """The notes of its progress, and the json."""
    answers = child.ask(msg.RunTask(work, ahead=ahead))
    assert isinstance(answers[-1], msg.TaskDone), answers[-1]
    notes = [answer.note for answer in answers if isinstance(answer, msg.TaskProgress)]
    return list(dict.fromkeys(notes)), (work.output_dir / "transcript.json").read_text()


def test_what_was_found_ahead_is_used_and_changes_nothing(
    loaded: Child, clip: Path, tmp_path: Path
) -> None:
    # A second of detection beside dozens of batches: it has ended long before they have.
    quick = {"align": False, "vad_method": "silero"}
    pieces = {"align": False, "chunk_ms": 2000, "batch_size_max": 1}
    following = task(loaded, clip, tmp_path / "b", **quick)
    first = task(loaded, MEETING, tmp_path / "a", **pieces)
    notes, _ = run(loaded, first, following)
    assert "detecting speech" in notes
    assert [path.name for path in (tmp_path / "b").iterdir()] == [FILENAME]
    notes, text = run(loaded, following)
    assert notes == ["transcribing"]
    notes, alone = run(loaded, task(loaded, clip, tmp_path / "c", **quick))
    assert "detecting speech" in notes
    assert text == alone


@pytest.mark.parametrize("changes", [{"resume_dir": None}, {"duration_ms": 3_600_001}])
def test_nothing_is_begun_that_could_not_be_kept(
    loaded: Child, clip: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    following = task(loaded, clip, tmp_path / "b")
    ahead = replace(following, **changes)  # type: ignore[arg-type]
    run(loaded, task(loaded, clip, tmp_path / "a", align=False), ahead)
    assert list((tmp_path / "b").iterdir()) == []


def test_a_bad_recording_to_come_does_not_touch_this_one(
    loaded: Child, clip: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(clip.read_bytes()[:1000])
    following = replace(task(loaded, clip, tmp_path / "b"), input_path=broken)
    _, text = run(loaded, task(loaded, clip, tmp_path / "a", align=False), following)
    assert text == run(loaded, task(loaded, clip, tmp_path / "c", align=False))[1]
    assert list((tmp_path / "b").iterdir()) == []


# ---- the thread --------------------------------------------------------------------------------


def test_it_ends_between_two_steps_when_it_is_told_to() -> None:
    reached, may_go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def steps() -> Generator[None, None, None]:
        try:
            reached.set()
            may_go_on.wait()
            yield
            raise AssertionError("a step after the end")
        finally:
            closed.set()

    ahead = Ahead(steps())
    ahead.start()
    ahead.start()
    assert reached.wait(10)
    ender = threading.Thread(target=ahead.stop)
    ender.start()
    assert ahead._ended.wait(10)
    assert not closed.is_set()
    may_go_on.set()
    ender.join(10)
    assert closed.is_set()


def test_what_never_began_is_ended_too() -> None:
    began: list[bool] = []

    def steps() -> Generator[None, None, None]:
        began.append(True)
        yield

    ahead = Ahead(steps())
    ahead.stop()
    assert began == []


# ---- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_its_memory_is_charged_beside_every_phase_that_it_may_run_in(
    models: Path, device: str
) -> None:
    aligner = checkpoint.read_aligner(models / "aligner")
    there = Models(checkpoint.read_whisper(models / "whisper"), (aligner,), 1 << 20)

    def phases(detects_ahead: bool) -> dict[str, int]:
        place = Place(device, 3600, detects_ahead)
        sizes: dict[str, int] = {}
        for line in footprint.run_lines(there, place, "float32", 2, 5):
            sizes[line.phase] = sizes.get(line.phase, 0) + line.at(60_000).bytes
        return sizes

    plain, more = phases(False), phases(True)
    grown = {phase: more[phase] - size for phase, size in plain.items()}
    size = footprint.VAD_WORKSPACE_BYTES[device]
    size += footprint.VAD_BYTES_PER_SECOND * footprint.AHEAD_SECONDS_MAX * (device == "cpu")
    assert grown == dict.fromkeys(plain, size) | {"load": 0, "speech": 0}
    assert len(plain) == 5
