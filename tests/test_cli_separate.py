"""`coscheduler separate`: options, report and picture; once with the real engine and a video."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from coscheduler import audio, cli
from coscheduler.cli import plot, separate
from coscheduler.client import Plan
from coscheduler.core.model import Priority
from coscheduler.demo import tiny_sam_audio
from coscheduler.errors import InvalidInput, Refused

RATE_HZ = 48_000


# ---- against the real engine -------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config with the tiny separation model alone."""
    folder = tmp_path_factory.mktemp("config")
    tiny_sam_audio.write(folder / "sam", folder / "t5")
    path = folder / "config.toml"
    path.write_text(
        '[store]\ndata_dir = "store/data"\n[device]\nthreads = 1\nmemory_cap = "2 GiB"\n'
        '[separation]\nmodel = "sam"\ntext_encoder = "t5"\nprepared_dir = "prepared"\n'
    )
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An mp4 of half a second, its picture first, then its sound, named as if it were anything."""
    path = tmp_path_factory.mktemp("video") / "clip.bin"
    with av.open(str(path), "w", format="mp4") as container:
        picture = container.add_stream("mpeg4", rate=10, width=64, height=48)
        sound = container.add_stream("aac", rate=RATE_HZ, layout="stereo")
        for number in range(5):
            image = np.full((48, 64, 3), 20 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(picture.encode(frame))
        tone = np.sin(np.arange(RATE_HZ // 2) * 2 * np.pi * 440 / RATE_HZ).astype(np.float32) * 0.3
        heard = av.AudioFrame.from_ndarray(np.stack((tone, tone)), "fltp", "stereo")
        heard.sample_rate = RATE_HZ
        container.mux(sound.encode(heard))
        for stream in (picture, sound):
            container.mux(stream.encode(None))
    return path


def test_a_video_becomes_two_signals_a_report_and_a_picture(
    config: Path, video: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "coscheduler", "separate", str(video), "--desc", "a dog barking",
        "--spans", "0.1-0.2,-0.3-0.4", "--spans", "0-0.05", "--candidates", "2", "--seed", "5",
        "--residual", "mixture-minus-target", "--sample-rate", "24000", "--config", str(config),
        "--out", str(tmp_path / "out"), "--metrics-json", str(tmp_path / "deep" / "report.json"),
        "--plot", str(tmp_path / "picture.png"), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == json.loads((tmp_path / "deep" / "report.json").read_text())
    assert found["state"] == "SUCCEEDED"
    assert (found["candidate_count"], found["description"]) == (2, "a dog barking")
    assert found["chosen_seed"] in (5, 6)
    for name in ("load_ms", "encode_ms", "step_ms", "decode_ms", "measured_peak_bytes"):
        assert found[name] > 0, name
    assert "each ODE step" in done.stderr
    for name in ("target", "residual"):
        wav = tmp_path / "out" / "clip" / f"{name}.wav"
        probed = audio.probe(wav, 0, 10_000)
        assert (probed.sample_rate_hz, probed.channel_count) == (24_000, 1)
        assert probed.duration_ms == pytest.approx(500, abs=50)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


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


Call = Callable[..., tuple[int, str]]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--spans", "7-6"], ["--spans", "soon"], ["--candidates", "0"], ["--candidates", "17"],
        ["--seed", "-1"], ["--residual", "rest"], ["--sample-rate", "100"], ["--redraws", "9"],
        ["--priority", "urgent"],
    ],
)  # fmt: skip
def test_wrong_usage_is_told_before_anything_is_sent(
    call: Call, tmp_path: Path, wrong: list[str]
) -> None:
    recording = tmp_path / "a.wav"
    recording.write_bytes(b"x")
    base = ("separate", recording, "--desc", "a dog", "--out", tmp_path / "out")
    status, _ = call("--server", f"unix:{tmp_path}/none", *base, *wrong)
    assert status == 2
    assert not (tmp_path / "out").exists()


def test_what_is_asked_for_is_what_is_sent(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan, as it would go to the daemon."""
    from coscheduler.cli import run as runs

    plans: list[Plan] = []

    def prepare(audio: list[Path], out: Path, plan: Plan) -> None:
        plans.append(plan)
        raise Refused("SEEN", "that is all")

    monkeypatch.setattr(runs, "prepare", prepare)
    recording = tmp_path / "a.wav"
    recording.write_bytes(b"x")
    base = ("separate", recording, "--desc", "a dog", "--out", tmp_path / "out")
    call(*base)
    call(*base, "--priority", "interactive", "--no-watermark", "--spans", "1-2,-3-4", "--seed", "9")
    usual, asked = plans
    assert (usual.priority, usual.separation["watermark"]) == (Priority.NORMAL, True)
    assert (asked.priority, asked.separation["watermark"]) == (Priority.INTERACTIVE, False)
    assert (asked.separation["spans"], asked.separation["seed"]) == (["1-2", "-3-4"], 9)


def test_no_daemon_is_status_three(call: Call, tmp_path: Path) -> None:
    recording = tmp_path / "a.wav"
    recording.write_bytes(b"x")
    base = ("separate", recording, "--desc", "a dog", "--out", tmp_path / "out")
    status, text = call("--server", f"unix:{tmp_path}/none", *base)
    assert status == 3
    assert "SERVER_UNREACHABLE" in text


def test_a_picture_without_its_library_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "coscheduler.cli.plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Refused) as caught:
        separate.drawer()
    assert caught.value.reason == "PLOT_UNAVAILABLE"
    assert "pip install matplotlib" in caught.value.message


def test_a_report_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput) as caught:
        separate.write(tmp_path / "file" / "report.json", {})
    assert caught.value.reason == "OUT_UNWRITABLE"


# ---- pictures ----------------------------------------------------------------------------------


def tone(frequency_hz: float, seconds: float) -> np.ndarray[Any, Any]:
    times = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return (0.5 * np.sin(2 * np.pi * frequency_hz * times)).astype(np.float32)


def test_a_tone_is_a_line_at_its_frequency_and_level() -> None:
    columns = plot.Columns()
    for block in np.array_split(tone(6000, 1.0), 7):
        columns.add(block)
    levels = columns.decibels()
    assert levels.shape == (plot.FRAME // 2 + 1, RATE_HZ // plot.FRAME + 1)
    loudest = int(levels[:, 3].argmax())
    assert loudest * RATE_HZ / plot.FRAME == pytest.approx(6000, abs=RATE_HZ / plot.FRAME)
    assert levels[loudest, 3] == pytest.approx(20 * np.log10(0.5), abs=0.5)
    assert levels[10, 3] < -80


def test_a_long_recording_has_no_more_columns_and_loses_no_peak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plot, "COLUMNS_MAX", 8)
    columns = plot.Columns()
    samples = np.zeros(50 * plot.FRAME, np.float32)
    samples[20 * plot.FRAME : 21 * plot.FRAME] = tone(6000, 1.0)[: plot.FRAME]
    columns.add(samples)
    levels = columns.decibels()
    assert 4 <= levels.shape[1] <= 8
    assert levels.max() == pytest.approx(20 * np.log10(0.5), abs=0.5)
