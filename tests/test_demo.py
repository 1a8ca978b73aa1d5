"""The demonstration as a whole, and the examples of the README against the same daemon."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from coscheduler.cli import EXIT_USAGE, private
from coscheduler.cli.view import Watching
from coscheduler.client import (
    Artifact,
    Client,
    InputRef,
    JobRequest,
    JobSnapshot,
    JobState,
    Priority,
    RunResult,
    StageKind,
    StageState,
)  # fmt: skip
from coscheduler.core.model import Job, Stage
from coscheduler.demo import __main__ as demo
from coscheduler.demo import report

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "tiny.toml"
RECORDING = ROOT / "coscheduler" / "demo" / "meeting.flac"
ROLES = {
    "target.wav", "residual.wav", "transcript.json", "transcript.srt", "transcript.vtt",
    "transcript.txt", "transcript.tsv", "analysis.json", "metrics.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def address(tiny_models: Path) -> Iterator[str]:
    """A daemon with `configs/tiny.toml`, as the demonstration starts it."""
    with private.started(CONFIG) as address:
        yield address


def processes_with(text: str) -> list[str]:
    """Command lines of all living processes that contain `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


def examples() -> list[str]:
    """The Python examples of the README, in order."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("index", "expected"),
    [(0, ["separate", "transcribe", "analyze", "are still held"]), (1, ["SUCCEEDED", ".srt"])],
    ids=["client", "grpc"],
)
def test_readme_example_runs(address: str, tmp_path: Path, index: int, expected: list[str]) -> None:
    shutil.copy(RECORDING, tmp_path / "meeting.flac")
    (tmp_path / "example.py").write_text(examples()[index])
    answer = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"COSCHEDULER_SERVER": address},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    for piece in expected:
        assert piece in answer.stdout


@pytest.mark.timeout(300)
def test_demo_beside_another_daemon(address: str, tmp_path: Path) -> None:
    given = ["--config", CONFIG, "--recording", RECORDING, "--out", tmp_path]
    command = [sys.executable, "-m", "coscheduler.demo", "--json", *map(str, given)]
    wide = os.environ | {"COLUMNS": "160"}
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=wide)
    assert answer.returncode == 0, answer.stderr[-3000:]
    metrics = json.loads(answer.stdout.splitlines()[-1])
    assert metrics["state"] == "SUCCEEDED"
    assert [stage["stage"] for stage in metrics["stages"]] == ["separate", "transcribe", "analyze"]
    assert all(stage["run_ms"] > 0 for stage in metrics["stages"])
    assert {Path(name).name for name in metrics["files"]} == ROLES
    assert {path.name for path in (tmp_path / RECORDING.stem).iterdir()} == ROLES
    for piece in ("Transcript", "Analysis", "predicted", "What to try next"):
        assert piece in answer.stderr
    socket = re.search(r"unix:(\S+/d\.sock)", answer.stderr)
    assert socket is not None and not processes_with(socket[1])
    assert not Path(socket[1]).parent.exists()


def test_readme_examples_are_short() -> None:
    assert len(examples()) == 2
    assert all(len(example.splitlines()) <= 30 for example in examples())


def test_readme_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_a_config_that_is_wrong_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "demo.toml"
    broken.write_text("[device]\nthreads = 0\n")
    monkeypatch.setattr(demo, "CONFIG", broken)
    assert demo.main(["--out", str(tmp_path)]) == EXIT_USAGE
    assert "device.threads" in capsys.readouterr().err


def test_an_interrupt_cancels_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[str] = []
    queued = JobSnapshot(Job("jobs/1", "r", Priority.NORMAL, 0, ()))

    class Interrupted(Client):
        def upload(self, *args: object, **options: object) -> Artifact:
            return Artifact("artifacts/1", "audio", "audio/flac", "meeting.flac", 1, "", 0)

        def create_job(self, request: JobRequest) -> JobSnapshot:
            return queued

        def watch_job(self, name: str) -> Generator[JobSnapshot, None, None]:
            yield queued
            raise KeyboardInterrupt

        def cancel_job(self, name: str) -> JobSnapshot:
            calls.append(name)
            return queued

    with pytest.raises(KeyboardInterrupt):
        view = Watching(Console(file=io.StringIO()))
        demo.run(Interrupted("unix:/nowhere"), view, RECORDING, tmp_path)
    assert calls == ["jobs/1"]


def test_report_shows_numbers_notes_and_long_files_cut(tmp_path: Path) -> None:
    (tmp_path / "transcript.txt").write_text("".join(f"line {n} [a]\n" for n in range(30)))
    stage = Stage(
        StageKind.SEPARATE, "{}", InputRef(artifact="artifacts/1"), state=StageState.SUCCEEDED,
        load_ms=1500, run_ms=2500, duration_ms=25_000, predicted_peak_bytes=64 * 2**20,
        measured_peak_bytes=60 * 2**20, option="float32", notes=("the target is [silent]",),
    )  # fmt: skip
    job = Job("jobs/1", "r", Priority.NORMAL, 0, (stage,), state=JobState.SUCCEEDED)
    console = Console(record=True, width=120, file=io.StringIO())
    report.show(console, RunResult(JobSnapshot(job), {"txt": tmp_path / "transcript.txt"}))
    text = console.export_text()
    for piece in ("1.5 s", "64.0 MiB", "60.0 MiB", "0.10", "the target is [silent]", "[a]"):
        assert piece in text
    assert "and 10 lines more" in text and "line 25" not in text
