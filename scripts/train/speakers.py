"""Train the demonstration's diarizer: linear discriminants of how voices sound.

    python scripts/train speakers --export coscheduler/demo/trained

Made-up speakers, each a voice with a pitch and a rate of its own, say sentences in noise and in
silence. What differs between the sentences of one speaker is shrunk, what differs between speakers
is kept (Fisher's linear discriminant analysis), so that distances count deviations within a
speaker. The threshold is the one that errs least on meetings of training voices. Seconds of work.
"""

import argparse
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from pyannote.audio import Pipeline
from rich.progress import track
from safetensors.numpy import save_file

from coscheduler.engines.transcription import vectors, voices
from train import meetings, scores, sentences, sounds, speech
from train.speech import Samples

NAME = "diarizer-demo"
MEETINGS = 16
ROOMS, SPEAKERS, SENTENCES = 40, 4, 10
DIMENSIONS = 6
_SNR_DB = (5.0, 25.0)
_CLEAN_SHARE, _NARROW_SHARE = 0.35, 0.3
_RIDGE = 1.0  # of the variance within speakers

CONFIG = """\
pipeline:
  name: coscheduler.engines.transcription.voices.VoiceClustering
  params:
    model: $model/voices
    threshold: {threshold:.2f}
"""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Discriminants:
    """What `voices.VoiceClustering` reads."""

    mean: Array  # [F]
    projection: Array  # [F, DIMENSIONS]


def trained(seed: int = 0, rooms: int = ROOMS) -> Discriminants:
    """Of made-up speakers from the training voices, who say training sentences.

    Speakers in one room share its background, so that it is not taken for a voice.
    """
    rng = np.random.default_rng(seed)
    rows = np.stack([_room(rng) for _ in track(range(rooms), "rooms")]).astype(np.float64)
    means = rows.mean(axis=2)
    within = _covariance(rows - means[:, :, None])
    between = _covariance(means - means.mean(axis=1, keepdims=True))
    ridge = _RIDGE * np.diag(np.diag(within))
    _, basis = scipy.linalg.eigh(between, within + ridge)
    projection = basis[:, ::-1][:, :DIMENSIONS]
    return Discriminants(means.mean((0, 1)).astype(np.float32), projection.astype(np.float32))


def _covariance(deviations: NDArray[Any]) -> NDArray[np.float64]:
    rows = deviations.reshape(-1, deviations.shape[-1])
    covariance: NDArray[np.float64] = rows.T @ rows / len(rows)
    return covariance


def _room(rng: np.random.Generator) -> Array:
    """Statistics of what is said in one room: [SPEAKERS, SENTENCES, F]."""
    kind = sounds.KINDS[rng.integers(len(sounds.KINDS))] if rng.random() > _CLEAN_SHARE else None
    snr_db = rng.uniform(*_SNR_DB)
    band_hz = rng.uniform(3200.0, 6500.0) if rng.random() < _NARROW_SHARE else speech.RATE_HZ / 2

    def said(voice: speech.Voice) -> Array:
        samples = speech.say(sentences.draw(rng, "train").text, voice).samples
        if kind:
            seconds = len(samples) / speech.RATE_HZ
            clip = sounds.clip(kind, "train", int(rng.integers(2**31)), seconds)
            samples = sounds.mixed(samples, clip, snr_db)
        return vectors.statistics(narrowed(samples, band_hz))

    people = [speech.draw_voice(rng) for _ in range(SPEAKERS)]
    return np.stack([np.stack([said(voice) for _ in range(SENTENCES)]) for voice in people])


def narrowed(samples: Samples, hz: float) -> Samples:
    """Without what lies above `hz`, as after a codec with few bands."""
    spectrum = np.fft.rfft(samples)
    spectrum[int(hz / speech.RATE_HZ * len(samples)) :] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def write(found: Discriminants, threshold: float, folder: Path) -> None:
    """A diarization folder as the config's `diarizer` names it."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "voices").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(threshold=threshold), encoding="utf-8")
    rows = np.ascontiguousarray(found.projection)  # a view would be written in another order
    tensors = {"mean": found.mean, "projection": rows}
    save_file(tensors, folder / "voices" / "model.safetensors")


@dataclass(frozen=True)
class Heard:
    """A meeting, and the vectors of its stretches of speech."""

    meeting: meetings.Meeting
    stretches: list[vectors.Stretch]
    heard: Array

    def error(self, threshold: float, count: int | None = None) -> float:
        """`scores.speaker_error` with this threshold; with `count`, that many speakers."""
        labels = vectors.clustered(self.stretches, self.heard, threshold, count or 1, count)
        found = [
            scores.Label(start / speech.RATE_HZ, end / speech.RATE_HZ, str(label))
            for (start, end), label in zip(self.stretches, labels, strict=True)
        ]
        return scores.speaker_error(self.meeting.turns, found)


def heard(
    diarizer: voices.VoiceClustering, seed: int, count: int, names: tuple[str, ...]
) -> list[Heard]:
    """Meetings of 40 s by two of `names`, each with a background of its own or none."""
    found = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        kinds = (None, *sounds.KINDS)[index % 4]
        background = meetings.Background((kinds,) if kinds else (), rng.uniform(10.0, 25.0))
        meeting = meetings.make(rng, 40.0, meetings.two_voices(rng, names), background)
        found.append(Heard(meeting, *diarizer.heard(meeting.mixture, lambda *a, **k: None)))
    return found


def best_threshold(found: list[Heard]) -> float:
    """Of a row of candidates, the middle of those that err least on average."""
    candidates = np.arange(1.0, 12.0, 0.25)
    errors = np.array([np.mean([one.error(t) for one in found]) for t in candidates])
    return float(np.median(candidates[errors <= errors.min() + 1e-9]))


def main(arguments: list[str]) -> int:
    """Train, choose the threshold, export."""
    made = argparse.ArgumentParser(
        prog="python scripts/train speakers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--export", type=Path, required=True, help="the folder of the models")
    made.add_argument("--seed", type=int, default=0)
    options = made.parse_args(arguments)
    found = trained(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        write(found, 1.0, Path(scratch))
        held = heard(opened(Path(scratch)), options.seed + 1, MEETINGS, speech.TRAIN_VOICES)
    threshold = best_threshold(held)
    write(found, threshold, options.export / NAME)
    error = float(np.mean([one.error(threshold) for one in held]))
    print(f"threshold {threshold:.2f}: {100 * error:.1f} % wrong on {MEETINGS} training meetings")
    return 0


def opened(folder: Path) -> voices.VoiceClustering:
    """The pipeline of a folder, as WhisperX opens it."""
    found: voices.VoiceClustering = cast(Any, Pipeline).from_pretrained(folder)
    return found
