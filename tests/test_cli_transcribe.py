"""`coscheduler transcribe`: WhisperX's options, where the files go, what is refused."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coscheduler import audio, cli
from coscheduler.cli import transcribe
from coscheduler.cli.run import Recording
from coscheduler.client import Plan


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two recordings of a second, of the same name in two folders."""
    paths = []
    for name in ("a", "b"):
        path = tmp_path_factory.mktemp(name) / "talk.wav"
        audio.write_wav(path, np.zeros(16_000, np.float32), 16_000)
        paths.append(path)
    return paths


def test_files_are_named_after_the_recordings(recordings: list[Path], tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        'engines = "fake"\n[store]\ndata_dir = "data"\n[transcription]\nmodel = "x"\n'
    )
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "coscheduler", "transcribe", *map(str, recordings), "-o", str(out),
        "-f", "json", "--language", "de", "--max_line_width", "42", "--config", str(config),
        "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["state"] == "SUCCEEDED"
    names = ["talk-2.json", "talk-2.metrics.json", "talk.json", "talk.metrics.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert json.loads((out / "talk.json").read_text())["language"] == "en"
    metrics = json.loads((out / "talk.metrics.json").read_text())
    assert metrics["files"] == [str(out / "talk.json"), str(out / "talk.metrics.json")]
    assert {name for job in found["jobs"] for name in job["files"]} == {
        str(out / name) for name in names
    }


@pytest.mark.parametrize(
    ("formats", "names"),
    [
        (transcribe.ALL, {"talk.json", "talk.srt", "talk.metrics.json"}),
        (("srt",), {"talk.srt", "talk.metrics.json"}),
    ],
)
def test_only_what_was_asked_for_is_kept(
    tmp_path: Path, formats: tuple[str, ...], names: set[str]
) -> None:
    fetched = tmp_path / "scratch" / "talk"
    fetched.mkdir(parents=True)
    files = {"transcript": "transcript.json", "srt": "transcript.srt", "metrics": "metrics.json"}
    recording = Recording(tmp_path / "talk.wav", fetched, "talk")
    for role, name in files.items():
        (fetched / name).write_text(role)
        recording.files[role] = fetched / name
    (tmp_path / "out").mkdir()
    transcribe.place(recording, tmp_path / "out", formats)
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert {path.name for path in recording.files.values()} == names
    assert (tmp_path / "out" / "talk.srt").read_text() == "srt"


# ---- usage -------------------------------------------------------------------------------------


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Call the command line in this process: (exit status, what went to standard error)."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["coscheduler", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return int(caught.value.code or 0), capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (["--max_line_width", "42", "--no_align"], "need word times"),
        (["--max_line_count", "2"], "max_line_width"),
        (["--batch_size", "many"], "no whole number"),
        (["--suppress_tokens", "1,x"], "no whole number"),
        (["--num_speakers", "2", "--min_speakers", "1"], "number of speakers"),
        (["--vad_onset", "1.5"], "vad_onset"),
        (["--chunk_size", "31"], "chunk_size"),
        (["--compute_type", "int8"], "compute_type"),
        (["--temperature", "0.2"], "No such option"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_sent(
    call: Callable[..., tuple[int, str]],
    recordings: list[Path],
    tmp_path: Path,
    wrong: list[str],
    why: str,
) -> None:
    base = ("transcribe", recordings[0], "-o", tmp_path / "out")
    status, text = call("--server", f"unix:{tmp_path}/none", *base, *wrong)
    assert status == 2
    assert why in text
    assert not (tmp_path / "out").exists()


def test_every_option_becomes_a_parameter(
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[..., tuple[int, str]],
    recordings: list[Path],
    tmp_path: Path,
) -> None:
    asked: list[Plan] = []

    def prepare(_audio: list[Path], _out: Path, plan: Plan) -> None:
        asked.append(plan)
        raise SystemExit(0)

    monkeypatch.setattr("coscheduler.cli.run.prepare", prepare)
    call(
        "transcribe", recordings[0], "-o", tmp_path / "out", "-f", "all", "--task", "transcribe",
        "--language", "fr", "--batch_size", "4", "--compute_type", "float32", "--beam_size", "2",
        "--patience", "1.5", "--length_penalty", "0.5", "--suppress_tokens", "-1,7",
        "--suppress_numerals", "--initial_prompt", "hello", "--hotwords", "budget",
        "--vad_method", "silero", "--vad_onset", "0.4", "--vad_offset", "0.3",
        "--chunk_size", "12.5", "--return_char_alignments", "--interpolate_method", "linear",
        "--diarize", "--min_speakers", "2", "--max_speakers", "3", "--speaker_embeddings",
        "--max_line_width", "42", "--max_line_count", "2", "--highlight_words",
    )  # fmt: skip
    (plan,) = asked
    assert plan.quality_min == 0
    (stage,) = plan.stages()
    assert stage.parameters == {
        "language": "fr", "task": "transcribe", "formats": transcribe.ALL, "batch_size_max": 4,
        "beam_size": 2, "patience": 1.5, "length_penalty": 0.5, "suppress_tokens": [-1, 7],
        "suppress_numerals": True, "initial_prompt": "hello", "hotwords": "budget",
        "vad_method": "silero", "vad_onset": 0.4, "vad_offset": 0.3, "chunk_ms": 12_500,
        "align": True, "char_alignments": True, "interpolate_method": "linear", "diarize": True,
        "speakers": 0, "speakers_min": 2, "speakers_max": 3, "speaker_embeddings": True,
        "max_line_width": 42, "max_line_count": 2, "highlight_words": True,
    }  # fmt: skip
