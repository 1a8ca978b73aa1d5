"""Recordings through the transcription engine itself, as a job would go."""

import itertools
import json
import tempfile
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coscheduler.config import DeviceSettings, Settings, StoreSettings, TranscriptionSettings
from coscheduler.core.model import StageKind
from coscheduler.engines.base import Task
from coscheduler.engines.transcription.engine import TranscriptionEngine
from train.scores import Label
from train.speech import Samples, Word

ROOT = Path(__file__).resolve().parent.parent.parent
TRAINED = ROOT / "coscheduler" / "demo" / "trained"
CHUNK_MS = 6_000


@dataclass(frozen=True)
class Written:
    """A transcript: its text, its words with their times, who said them where it is known; and as
    the engine writes it.
    """

    text: str
    words: tuple[Word, ...]
    labels: tuple[Label, ...]
    transcript: dict[str, Any]


@contextmanager
def opened(
    models: Path = TRAINED, compute_type: str = "float32", threads: int = 2
) -> Iterator[TranscriptionEngine]:
    """The engine with the demonstration's models loaded, as configs/demo.toml has them."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = {
            "model": models / "whisper-demo",
            "aligners": {"en": models / "aligner-demo"},
            "diarizer": models / "diarizer-demo",
            "compute_types": [compute_type],
            "batch_sizes": [4],
            "vad_method": "silero",
            "chunk_ms": CHUNK_MS,
        }
        settings = Settings(
            store=StoreSettings(data_dir=Path(folder)),
            device=DeviceSettings(threads=threads),
            transcription=TranscriptionSettings.model_validate(chosen),
        )
        engine = TranscriptionEngine(settings)
        option = engine.describe().options[0]
        engine.start()
        engine.load(option, lambda done, total: None)
        yield engine
        engine.unload()


def transcribe(
    engine: TranscriptionEngine, samples: Samples, rate_hz: int, **parameters: Any
) -> Written:
    """What the engine writes of a recording, float32 [N]."""
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / "recording.wav", Path(folder) / "out"
        output.mkdir()
        write_wav(path, samples, rate_hz)
        duration_ms = len(samples) * 1000 // rate_hz
        wanted = {"language": "en", **parameters}
        task = Task("jobs/1", StageKind.TRANSCRIBE, wanted, path, output, duration_ms)
        for _ in engine.slices(task):
            pass
        return read(output / "transcript.json")


def read(path: Path) -> Written:
    """A transcript.json."""
    transcript = json.loads(path.read_text(encoding="utf-8"))
    segments = transcript["segments"]
    entries = [word for segment in segments for word in segment.get("words", ())]
    timed = [entry for entry in entries if "start" in entry and "end" in entry]
    return Written(
        " ".join(segment["text"].strip() for segment in segments),
        tuple(Word(entry["word"], entry["start"], entry["end"]) for entry in timed),
        tuple(label for segment in segments for label in _labels(segment)),
        transcript,
    )


def _labels(segment: dict[str, Any]) -> Iterator[Label]:
    """Who speaks within a segment: from the first word of somebody to the last before another."""
    timed = [word for word in segment.get("words", ()) if "speaker" in word and "start" in word]
    for speaker, words in itertools.groupby(timed, lambda word: str(word["speaker"])):
        said = list(words)
        yield Label(said[0]["start"], said[-1]["end"], speaker)


def write_wav(path: Path, samples: Samples, rate_hz: int) -> None:
    """16 bits, mono."""
    pcm = np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(pcm.tobytes())
