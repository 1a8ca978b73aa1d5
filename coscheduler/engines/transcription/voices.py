"""A small diarizer: stretches of speech, a vector for each voice, clusters of what is alike.

It is a pyannote pipeline, so a folder whose config.yaml names it stands wherever a published
pipeline may, and the engine has no other way for it:

    pipeline:
      name: coscheduler.engines.transcription.voices.VoiceClustering
      params: {model: $model/voices, threshold: 1.0}

`voices/model.safetensors` holds `mean` [F] and `projection` [F, D]: linear discriminants of the
statistics that `statistics` takes of a stretch. One voice at a time; where two people speak at once
the louder one is heard. Imports pyannote: only for child processes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from pyannote.audio import Pipeline
from pyannote.core import Annotation, Segment
from safetensors.numpy import load_file
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from coscheduler.engines.transcription import silero
from coscheduler.engines.transcription.speech import SAMPLE_RATE_HZ, Thresholds

Array = NDArray[np.float32]
Stretch = tuple[int, int]  # from sample to sample

_ONSET, _STRETCH_SECONDS_MAX = 0.5, 4.0
_STRETCH_SAMPLES_MIN = 3200
_JUDGED_SECONDS_MIN = 1.0
_SHARE_MIN = 0.05
SPEAKERS_MAX = 8  # where nobody says how many there are
FRAME, HOP, N_FFT = 400, 160, 512
BAND_COUNT, CEPSTRUM_COUNT = 40, 24
_LOUD_DB = 25.0  # below the loudest frame; what is softer is pause or background
_FLOOR = 1e-4  # of the loudest band: silence is as soft in all recordings
_PITCH_FRAME = 1024
_LAG_MIN, _LAG_MAX = SAMPLE_RATE_HZ // 400, SAMPLE_RATE_HZ // 65
_VOICED = 0.4  # of the energy, at the best lag


@dataclass(frozen=True)
class Speakers:
    """What WhisperX reads of a diarization."""

    speaker_diarization: Annotation
    speaker_embeddings: Array  # [speakers, D], in the order of the labels


class VoiceClustering(Pipeline):
    """Speech by Silero, vectors by statistics of the spectrum and the pitch, average linkage."""

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


def clustered(
    stretches: list[Stretch],
    vectors: Array,
    threshold: float,
    least: int = 1,
    most: int | None = None,
) -> list[int]:
    """A label for each of `vectors` [N, D].

    Ward's clusters of the stretches that are long enough to judge by, as many as there can be with
    at least `threshold` between any two of their means and a twentieth of the time in each; but at
    least `least` and at most `most`. The short stretches go to the nearest mean.
    """
    seconds = np.array([end - start for start, end in stretches]) / SAMPLE_RATE_HZ
    judged = seconds >= min(_JUDGED_SECONDS_MIN, float(np.median(seconds)))
    sound, weights = vectors[judged], seconds[judged]
    tree = linkage(sound, "ward") if len(sound) > 1 else None
    means = sound.mean(0, keepdims=True)
    for count in range(min(least, len(sound)), min(most or SPEAKERS_MAX, len(sound)) + 1):
        if tree is None or count < 2:
            continue
        labels = fcluster(tree, count, "maxclust")
        found = [labels == label for label in sorted(set(labels))]
        wider = np.stack([sound[chosen].mean(0) for chosen in found])
        share = min(weights[chosen].sum() for chosen in found) / weights.sum()
        apart = share >= _SHARE_MIN and pdist(wider).min() >= threshold
        if apart or count <= least:
            means = wider
    distances = np.linalg.norm(vectors[:, None] - means[None], axis=2)
    return [int(label) for label in distances.argmin(1)]


def statistics(samples: Array) -> Array:
    """What a stretch of speech sounds like, whatever is said: float32 [2 CEPSTRUM_COUNT + 3].

    Means and deviations of the mel cepstrum without its first coefficient, the level; median and
    deviation of the pitch in octaves, and how much is voiced.
    """
    padded = np.pad(samples, (0, max(0, _STRETCH_SAMPLES_MIN - len(samples))))
    mel = _log_mel(padded)
    level = mel.mean(1)
    loud = mel[level > level.max() - _LOUD_DB / 10 * np.log(10)]
    cepstrum = scipy.fft.dct(loud, norm="ortho")[:, 1 : 1 + CEPSTRUM_COUNT]
    parts = [cepstrum.mean(0), cepstrum.std(0), _pitch(padded)]
    return np.concatenate(parts).astype(np.float32)


def _log_mel(samples: Array) -> Array:
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP]
    spectrum = scipy.fft.rfft(frames * np.hanning(FRAME).astype(np.float32), N_FFT)
    power = np.square(np.abs(spectrum)) @ _bands().T
    return np.asarray(np.log(power + _FLOOR * power.max() + 1e-12), np.float32)


def _bands() -> Array:
    """Triangles, evenly spaced on the mel scale (O'Shaughnessy 1987): [BAND_COUNT, bins]."""
    edges_mel = np.linspace(_mel(60.0), _mel(7600.0), BAND_COUNT + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)
    hz = np.fft.rfftfreq(N_FFT, 1 / SAMPLE_RATE_HZ)
    rising = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.clip(np.minimum(rising, falling), 0, None), np.float32)


def _mel(hz: float) -> float:
    return float(2595 * np.log10(1 + hz / 700))


def _pitch(samples: Array) -> NDArray[np.float64]:
    """Median and deviation of log2 of the pitch in Hz, and the share of voiced frames, by
    autocorrelation; 0 octaves stand for 128 Hz.
    """
    frames = np.lib.stride_tricks.sliding_window_view(samples, _PITCH_FRAME)[:: 2 * HOP]
    frames = frames - frames.mean(1, keepdims=True)
    power = np.square(np.abs(scipy.fft.rfft(frames, 2 * _PITCH_FRAME)))
    correlation = scipy.fft.irfft(power)[:, :_LAG_MAX] / (power.mean(1, keepdims=True) + 1e-9)
    lags = correlation[:, _LAG_MIN:].argmax(1) + _LAG_MIN
    best = np.take_along_axis(correlation, lags[:, None], 1)[:, 0] / (correlation[:, 0] + 1e-9)
    voiced = best > _VOICED
    if not voiced.any():
        return np.zeros(3)
    octaves = np.log2(SAMPLE_RATE_HZ / lags[voiced] / 128)
    return np.array([np.median(octaves), octaves.std(), voiced.mean()])
