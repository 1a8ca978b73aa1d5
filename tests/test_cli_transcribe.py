"""`coscheduler transcribe`: WhisperX's options, where the files go, what is refused."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from coscheduler import audio, cli
from coscheduler.cli import private, transcribe
from coscheduler.cli.run import Recording
from coscheduler.client import Plan


@dataclass
class Said:
    """What a call of the command line left."""

    status: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call the command line in this process."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["coscheduler", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return Said(int(caught.value.code or 0), said.out, said.err)

    return run


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two recordings of a second, of the same name in two folders."""
    paths = []
    for name in ("a", "b"):
        path = tmp_path_factory.mktemp(name) / "talk.wav"
        audio.write_wav(path, np.zeros(16_000, np.float32), 16_000)
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines that only take memory; they hear "hello" in everything."""
    path = tmp_path_factory.mktemp("daemon") / "config.toml"
    path.write_text(
        'engines = "fake"\n[server]\nlisten = "unix:/nowhere/d.sock"\n'
        '[store]\ndata_dir = "data"\n[transcription]\nmodel = "x"\n'
        '[separation]\nmodel = "x"\ntext_encoder = "x"\n'
    )
    return path


@pytest.fixture(scope="module")
def server(config: Path) -> Iterator[str]:
    """The address of a daemon."""
    with private.started(config) as address:
        yield address


def test_files_are_named_after_the_recordings(
    call: Call, server: str, recordings: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = call(
        "--server", server, "transcribe", *recordings, "-o", out, "-f", "json", "--language", "de",
        "--max_line_width", "42", "--speaker", f"Anna={recordings[0]}", "--json",
    )  # fmt: skip
    assert said.status == 0, said.err
    found = json.loads(said.out.splitlines()[-1])
    assert found["state"] == "SUCCEEDED"
    names = ["talk-2.json", "talk-2.metrics.json", "talk.json", "talk.metrics.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert json.loads((out / "talk.json").read_text())["language"] == "en"
    metrics = json.loads((out / "talk.metrics.json").read_text())
    assert metrics["files"] == [str(out / "talk.json"), str(out / "talk.metrics.json")]
    assert {name for job in found["jobs"] for name in job["files"]} == {
        str(out / name) for name in names
    }


def test_voices_that_are_separated_become_one_transcript(
    call: Call, server: str, recordings: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = call(
        "--server", server, "transcribe", *recordings, "-o", out, "-f", "all",
        "--separate", "Anna=a woman speaking", "--separate", "a man speaking", "--json",
    )  # fmt: skip
    assert said.status == 0, said.err
    found = json.loads(said.out.splitlines()[-1])
    assert len(found["jobs"]) == 4 and found["state"] == "SUCCEEDED"
    assert all([stage["stage"] for stage in job["stages"]] == ["separate", "transcribe"]
               for job in found["jobs"])  # fmt: skip
    names = [f"{stem}.{kind}" for stem in ("talk", "talk-2")
             for kind in ("json", "metrics.json", "srt", "tsv", "txt", "vtt")]  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert {Path(name).name for name in found["files"]} == set(names)
    assert (out / "talk.txt").read_text() == "[Anna]: hello\n[a man speaking]: hello\n"
    metrics = json.loads((out / "talk-2.metrics.json").read_text())
    assert [job["title"] for job in metrics["jobs"]] == [
        "talk.wav-2: Anna", "talk.wav-2: a man speaking",
    ]  # fmt: skip
    assert str(out / "talk-2.srt") in metrics["files"]


def test_a_model_that_the_daemon_does_not_have_is_refused(
    call: Call, server: str, recordings: list[Path], tmp_path: Path
) -> None:
    base = ("--server", server, "transcribe", recordings[0], "-o", tmp_path, "-f", "txt")
    said = call(*base, "--model", "large-v3")
    assert said.status == 1
    assert "asks for 'large-v3'" in said.out and "leave the model out" in said.out
    assert call(*base, "--model", "x").status == 0


def test_a_daemon_that_is_started_for_the_call_takes_another_whisper(
    call: Call, config: Path, recordings: list[Path], tmp_path: Path
) -> None:
    base = ("transcribe", recordings[0], "-o", tmp_path, "-f", "json", "--config", config)
    said = call(*base, "--model", "hub:Systran/faster-whisper-tiny")
    assert said.status == 0, said.err
    assert (tmp_path / "talk.json").exists()


def test_transcripts_are_joined_without_a_daemon(call: Call, tmp_path: Path) -> None:
    for name, start in (("a", 2.0), ("b", 1.0)):
        segment = {"start": start, "end": start + 1, "text": f" {name}"}
        text = json.dumps({"segments": [segment], "language": "en"})
        (tmp_path / f"{name}.json").write_text(text)
    out = tmp_path / "out"
    parts = [f"Anna={tmp_path}/a.json", f"{tmp_path}/b.json"]
    said = call("transcripts", "join", *parts, "-o", out, "-f", "txt")
    assert said.status == 0, said.err
    assert said.out.strip() == str(out / "transcript.txt")
    assert (out / "transcript.txt").read_text() == "b\n[Anna]: a\n"
    said = call("transcripts", "join", f"A={tmp_path}/c.json", "-o", out)
    assert said.status == 2 and "there is no file" in said.err
    said = call("transcripts", "join", f"[A]={tmp_path}/a.json", "-o", out)
    assert said.status == 2 and "without brackets" in said.err


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
        (["--compute_type", "int4"], "compute_type"),
        (["--temperature", "0.2"], "No such option"),
        (["--speaker", "Anna"], "is not NAME=FILE"),
        (["--speaker", "Anna=nowhere.wav"], "there is no file nowhere.wav"),
        (["--speaker", f"[A]={__file__}"], "known_speakers"),
        (["--separate", "a man", "--separate", "a man"], "two voices are called 'a man'"),
        (["--separate", "[A]=a man"], "without brackets"),
        (["--separate", "Anna="], "prompt"),
        (["--separate", "a man", "--diarize"], "not --diarize"),
        (["--separate", "a man", "--max_line_width", "42"], "not --max_line_width"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_sent(
    call: Call,
    recordings: list[Path],
    tmp_path: Path,
    wrong: list[str],
    why: str,
) -> None:
    base = ("transcribe", recordings[0], "-o", tmp_path / "out")
    said = call("--server", f"unix:{tmp_path}/none", *base, *wrong)
    assert said.status == 2
    assert why in said.err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """What calls would have asked for; nothing is done."""
    plans: list[Plan] = []

    def prepare(_audio: list[Path], _out: Path, plan: Plan) -> None:
        plans.append(plan)
        raise SystemExit(0)

    monkeypatch.setattr("coscheduler.cli.run.prepare", prepare)
    return plans


@pytest.mark.parametrize(("given", "tier"), [("int8", None), ("default", None), ("float16", 0)])
def test_the_coarsest_type_bounds_the_quality(
    asked: list[Plan], call: Call, recordings: list[Path], given: str, tier: int | None
) -> None:
    call("transcribe", recordings[0], "--compute_type", given)
    assert [plan.quality_min for plan in asked] == [tier]


def test_every_option_becomes_a_parameter(
    asked: list[Plan],
    call: Call,
    recordings: list[Path],
    tmp_path: Path,
) -> None:
    call(
        "transcribe", recordings[0], "-o", tmp_path / "out", "-f", "all", "--task", "transcribe",
        "--language", "fr", "--batch_size", "4", "--compute_type", "float32", "--beam_size", "2",
        "--patience", "1.5", "--length_penalty", "0.5", "--suppress_tokens", "-1,7",
        "--suppress_numerals", "--initial_prompt", "hello", "--hotwords", "budget",
        "--vad_method", "silero", "--vad_onset", "0.4", "--vad_offset", "0.3",
        "--chunk_size", "12.5", "--return_char_alignments", "--interpolate_method", "linear",
        "--diarize", "--min_speakers", "2", "--max_speakers", "3", "--speaker_embeddings",
        "--max_line_width", "42", "--max_line_count", "2", "--highlight_words",
        "--speaker", f"Anna={recordings[0]}", "--speaker", f"Bert={recordings[1]}",
        "--speaker_distance", "0.75", "--model", tmp_path, "--align_model", "large",
        "--diarize_model", "hub:a/b",
    )  # fmt: skip
    (plan,) = asked
    assert plan.clips == (("Anna", recordings[0]), ("Bert", recordings[1]))
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
        "speaker_distance_max": 0.75, "model": str(tmp_path), "align_model": "large",
        "diarize_model": "hub:a/b",
    }  # fmt: skip
