"""A small diarizer: stretches of speech, a vector for each voice, clusters of what is alike.

It is a pyannote pipeline, so a folder whose config.yaml names it stands wherever a published
pipeline may, and the engine has no other way for it:

    pipeline:
      name: coscheduler.engines.transcription.voices.VoiceClustering
      params: {model: $model/voices, threshold: 1.0}

`voices/model.safetensors` holds `mean` [F] and `projection` [F, D]: linear discriminants of the
statistics that `vectors.statistics` takes of a stretch. One voice at a time: where two people
speak at once, the louder one is heard. Imports pyannote: only for child processes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyannote.audio import Pipeline
from pyannote.core import Annotation, Segment
from safetensors.numpy import load_file

from coscheduler.engines.transcription import silero
from coscheduler.engines.transcription.speech import SAMPLE_RATE_HZ, Thresholds
from coscheduler.engines.transcription.vectors import Array, Stretch, clustered, statistics

_ONSET, _STRETCH_SECONDS_MAX = 0.5, 4.0


@dataclass(frozen=True)
class Speakers:
    """What WhisperX reads of a diarization."""

    speaker_diarization: Annotation
    speaker_embeddings: Array  # [speakers, D], in the order of the labels


class VoiceClustering(Pipeline):
    """Speech by Silero, vectors by statistics of the spectrum and the pitch, Ward's clusters."""

    def __init__(
        self,
        model: dict[str, Any],
        threshold: float,
        token: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        """`threshold` is the distance from which two voices are two; `token` and `cache_dir` are
        what pyannote gives to every pipeline. Raises OSError or KeyError for a bad folder.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        path = Path(model["checkpoint"]) / model["subfolder"] / "model.safetensors"
        tensors = load_file(path)
        self._mean, self._projection = tensors["mean"], tensors["projection"]
        self._threshold = threshold

    def apply(
        self,
        file: dict[str, Any],
        num_speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
        hook: Callable[..., None] | None = None,
    ) -> Speakers:
        """Who speaks when in `file["waveform"]`, a tensor [1, N] at 16 kHz."""
        stretches, vectors = self.heard(file["waveform"][0].numpy(), hook or _unheard)
        if not stretches:
            return Speakers(Annotation(), vectors)
        least, most = num_speakers or min_speakers or 1, num_speakers or max_speakers
        labels = clustered(stretches, vectors, self._threshold, least, most)
        return _speakers(stretches, vectors, labels)

    def heard(self, samples: Array, hook: Callable[..., None]) -> tuple[list[Stretch], Array]:
        """Stretches of speech in `samples` [N], and a vector [D] for the voice of each."""
        stretches = _stretches(samples, hook)
        vectors = [np.zeros((0, self._projection.shape[1]), np.float32)]
        for done, (start, end) in enumerate(stretches, start=1):
            row = (statistics(samples[start:end]) - self._mean) @ self._projection
            vectors.append(row[None])
            hook("embeddings", None, total=len(stretches), completed=done)
        return stretches, np.concatenate(vectors)


def _unheard(*args: object, **options: object) -> None:
    """Where nobody asks for progress."""


def _stretches(samples: Array, hook: Callable[..., None]) -> list[Stretch]:
    """Speech in pieces that hold one voice, it is assumed: from pause to pause, at most 4 s."""
    steps = silero.spans(samples, Thresholds(_ONSET, _ONSET, _STRETCH_SECONDS_MAX))
    while True:
        try:
            done, total = next(steps)
        except StopIteration as stop:
            found: list[Stretch] = stop.value
            return found
        hook("segmentation", None, total=total, completed=done)


def _speakers(stretches: list[Stretch], vectors: Array, labels: list[int]) -> Speakers:
    """Speakers are numbered as they are first heard."""
    order = list(dict.fromkeys(labels))
    turns = Annotation()
    for index, ((start, end), label) in enumerate(zip(stretches, labels, strict=True)):
        place = Segment(start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ)
        turns[place, index] = f"SPEAKER_{order.index(label):02d}"
    chosen = np.array(labels)
    return Speakers(turns, np.stack([vectors[chosen == label].mean(0) for label in order]))
