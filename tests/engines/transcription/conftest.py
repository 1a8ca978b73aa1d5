"""Tiny models, recordings, and an engine served by the real host in a process of its own."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from coscheduler import audio, config
from coscheduler.config import Settings
from coscheduler.core.model import Option, StageKind
from coscheduler.demo import tiny_aligner, tiny_whisper
from coscheduler.engines import messages as msg
from coscheduler.engines.base import StageResult, Task
from coscheduler.procfs import anonymous_bytes

MEETING = Path(audio.__file__).parent / "demo" / "meeting.flac"
# As the fork server sets them: GNU OpenMP reads them when it is loaded.
CHILD_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
FINAL = (msg.Described, msg.Started, msg.OptionLoaded, msg.OptionUnloaded, msg.TaskDone,
         msg.TaskStopped, msg.Failed)  # fmt: skip
SAMPLE_SECONDS = 0.004


def settings_for(models: Path, data_dir: Path, **transcription: Any) -> Settings:
    """A config for the tiny models; `transcription` adds to its section or replaces fields."""
    section = {"model": "whisper", "aligners": {"en": "aligner"}} | transcription
    return config.parse(
        {
            "device": {"threads": 1},
            "store": {"data_dir": str(data_dir)},
            "transcription": section,
        },
        base_dir=models,
    )


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `whisper` and `aligner`."""
    folder = tmp_path_factory.mktemp("models")
    tiny_whisper.write(folder / "whisper")
    tiny_aligner.write(folder / "aligner")
    return folder


def wide_aligner(folder: Path) -> None:
    """A tiny aligner but for 36 MB of weights, so that it shows whether they are there."""
    hf: Any = transformers
    tiny_aligner.write(folder)
    config = hf.Wav2Vec2Config.from_pretrained(
        folder, hidden_size=512, intermediate_size=512, num_hidden_layers=5, num_attention_heads=1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf.Wav2Vec2ForCTC(config).save_pretrained(folder)


@dataclass
class Ran:
    """A task that has ended, well or not."""

    answers: list[msg.Answer]
    folder: Path
    peak_bytes: int

    @property
    def result(self) -> StageResult:
        last = self.answers[-1]
        assert isinstance(last, msg.TaskDone), last
        return last.result

    @property
    def progress(self) -> list[msg.TaskProgress]:
        return [answer for answer in self.answers if isinstance(answer, msg.TaskProgress)]

    @property
    def failure(self) -> msg.Failed:
        last = self.answers[-1]
        assert isinstance(last, msg.Failed), last
        return last

    def text(self, kind: str) -> str:
        return (self.folder / f"transcript.{kind}").read_text(encoding="utf-8")

    @property
    def transcript(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.text("json"))
        return value


@dataclass
class Child:
    """The engine process, seen from outside."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    scratch: Path
    started_bytes: int = 0
    run_count: int = 0
    lines: Any = field(init=False)

    def __post_init__(self) -> None:
        self.lines = self.connection.makefile("rb")

    def ask(self, *requests: msg.Request, cancel_after: int = 0) -> list[msg.Answer]:
        """All answers up to the final one; a cancel is sent after so many of them."""
        self.connection.sendall(b"".join(map(msg.encode_request, requests)))
        answers: list[msg.Answer] = []
        while not answers or not isinstance(answers[-1], FINAL):
            answers.append(msg.decode_answer(self.lines.readline()))
            if len(answers) == cancel_after:
                self.connection.sendall(msg.encode_request(msg.CancelTask()))
        return answers

    def grown_bytes(self) -> int:
        """Anonymous memory since the start."""
        return anonymous_bytes(self.process.pid) - self.started_bytes

    def describe(self) -> tuple[Option, ...]:
        answer = self.ask(msg.Describe())[-1]
        assert isinstance(answer, msg.Described), answer
        return answer.description.options

    def load(self, option: Option) -> msg.OptionLoaded:
        answer = self.ask(msg.LoadOption(option))[-1]
        assert isinstance(answer, msg.OptionLoaded), answer
        return answer

    def resize(self, option: Option) -> msg.Answer:
        """While nothing runs."""
        self.connection.sendall(msg.encode_request(msg.ResizeOption(option)))
        return msg.decode_answer(self.lines.readline())

    def run(
        self,
        recording: Path,
        parameters: Mapping[str, Any] | None = None,
        cancel_after: int = 0,
        resume_dir: Path | None = None,
        sizes: tuple[Option, ...] = (),
    ) -> Ran:
        """One task; options of `sizes` are asked for as it begins."""
        self.run_count += 1
        folder = self.scratch / f"run{self.run_count}"
        folder.mkdir()
        duration_ms = audio.probe(recording, 0, 3_600_000).duration_ms
        task = Task(
            "jobs/1", StageKind.TRANSCRIBE, parameters or {}, recording, folder, duration_ms,
            resume_dir,
        )  # fmt: skip
        peaks = [self.grown_bytes()]
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(SAMPLE_SECONDS):
                peaks[0] = max(peaks[0], self.grown_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            resizes = map(msg.ResizeOption, sizes)
            answers = self.ask(msg.RunTask(task), *resizes, cancel_after=cancel_after)
        finally:
            ended.set()
            watcher.join()
        return Ran(answers, folder, peaks[0])


@pytest.fixture(scope="session")
def child(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """A started engine; every test loads what it needs."""
    scratch = tmp_path_factory.mktemp("child")
    wide_aligner(models / "aligner-de")
    settings = settings_for(
        models,
        scratch / "data",
        aligners={"en": "aligner", "de": "aligner-de"},
        compute_types=("float32", "int8"),
        batch_sizes=(2, 1),
    )
    ours, theirs = socket.socketpair()
    code = (
        "import socket, sys; from coscheduler.config import Settings; "
        "from coscheduler.core.model import EngineName; from coscheduler.engines import host; "
        "host.main(EngineName.TRANSCRIPTION, Settings.model_validate_json(sys.argv[1]), "
        "socket.socket(fileno=int(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, settings.model_dump_json(), str(theirs.fileno())]
    environment = {**os.environ, **CHILD_ENVIRONMENT}
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
    theirs.close()
    served = Child(process, ours, scratch)
    assert isinstance(served.ask(msg.Start())[-1], msg.Started)
    served.started_bytes = anonymous_bytes(process.pid)
    yield served
    served.lines.close()
    ours.close()
    assert process.wait(20) == 0


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first eight seconds of the meeting."""
    path = tmp_path_factory.mktemp("audio") / "clip.wav"
    audio.write_wav(path, audio.read_mono(MEETING, 16_000)[: 8 * 16_000], 16_000)
    return path


@pytest.fixture(scope="session")
def long_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The meeting twice over, as a WAV: two windows."""
    path = tmp_path_factory.mktemp("audio") / "long.wav"
    samples = audio.read_mono(MEETING, 16_000)
    audio.write_wav(path, np.concatenate([samples, samples]), 16_000)
    return path


@pytest.fixture(scope="session")
def silence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "silence.wav"
    audio.write_wav(path, np.zeros(3 * 16_000, np.float32), 16_000)
    return path
