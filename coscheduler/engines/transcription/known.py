"""Names for speakers: whose voice in a clip is most like which speaker of the recording.

A clip is heard by the diarizer itself, as a recording of one speaker, so that its vector is made as
those of the recording's speakers are, whatever the diarizer is.
"""

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from coscheduler import audio
from coscheduler.engines.transcription import silero
from coscheduler.engines.transcription.samples import Spool
from coscheduler.engines.transcription.speech import SAMPLE_RATE_HZ, Thresholds
from coscheduler.errors import InvalidInput

Vectors = Mapping[str, Sequence[float]]
Heard = tuple[Any, Mapping[str, list[float]] | None]  # what `speakers.diarize` returns
Steps = Generator[tuple[int, int], None, Heard]
Voices = dict[str, NDArray[np.float64]]  # by name: [D], of length 1

_FARTHEST = 2.0  # of all cosine distances; also to a vector that is not there
_AUDIBLE = Thresholds(onset=0.5, offset=0.35, chunk_seconds=30.0)


@dataclass(frozen=True)
class Clip:
    """A name, and samples of nobody but them: float32 [N] at 16 kHz."""

    name: str
    samples: NDArray[np.float32]


@dataclass(frozen=True)
class Match:
    """The speaker that a name is nearest to, by its label; "" when all are too far away."""

    name: str
    label: str
    distance: float | None  # cosine, 0 to 2; None when there is nobody to compare with


def read(clips: Iterable[tuple[str, Path]], folder: Path) -> tuple[Clip, ...]:
    """The clips as (name, file); their samples lie in nameless files below `folder`.

    Raises InvalidInput SPEAKER_CLIP_SILENT where nobody speaks, AUDIO_UNREADABLE.
    """
    found = tuple(Clip(name, _samples(path, folder)) for name, path in clips)
    for clip in found:
        if not _speaks(clip.samples):
            raise _silent(clip)
    return found


def voices(
    clips: Sequence[Clip], diarize: Callable[[NDArray[np.float32]], Steps]
) -> Generator[tuple[int, int], None, Voices]:
    """What each name sounds like; of several clips the mean. Yields (done, total).

    `diarize` is `speakers.diarize` for one speaker. Raises InvalidInput SPEAKER_CLIP_SILENT.
    """
    heard: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for index, clip in enumerate(clips):
        steps = diarize(clip.samples)
        try:
            while True:
                done, total = next(steps)
                yield index * total + done, len(clips) * total
        except StopIteration as stop:
            heard[clip.name].append(_voice(clip, stop.value[1]))
        finally:
            steps.close()
    return {name: np.mean(vectors, axis=0) for name, vectors in heard.items()}


def match(known: Voices, speakers: Vectors, distance_max: float) -> tuple[Match, ...]:
    """Who is who: each name has at most one speaker and each speaker at most one name.

    Of all ways to pair them the one with the least sum of distances, where having no partner counts
    as `distance_max`. In the order of `known`.
    """
    labels, names = list(speakers), list(known)
    if not labels or not names:
        return tuple(Match(name, "", None) for name in names)
    distances = np.stack([_distances(known[name], speakers.values()) for name in names])
    rows, columns = linear_sum_assignment(np.minimum(distances, distance_max))
    found = [_alone(name, row) for name, row in zip(names, distances, strict=True)]
    for row, column in zip(rows, columns, strict=True):
        distance = float(distances[row, column])
        if distance <= distance_max:
            found[row] = Match(names[row], labels[column], round(distance, 4))
    return tuple(found)


def renamed(matches: Iterable[Match]) -> dict[str, str]:
    """Label -> name, of those that were found."""
    return {found.label: found.name for found in matches if found.label}


def as_json(matches: Iterable[Match]) -> list[dict[str, Any]]:
    """For the transcript: the label that each name stands for, or null, and the distance."""
    return [
        {"name": found.name, "label": found.label or None, "distance": found.distance}
        for found in matches
    ]


def _samples(path: Path, folder: Path) -> NDArray[np.float32]:
    spool = Spool(folder)
    for block in audio.mono_blocks(path, SAMPLE_RATE_HZ):
        spool.add(block)
    return spool.samples()


def _speaks(samples: NDArray[np.float32]) -> bool:
    steps = silero.spans(samples, _AUDIBLE)
    try:
        while True:
            next(steps)
    except StopIteration as stop:
        return bool(stop.value)


def _voice(clip: Clip, vectors: Mapping[str, list[float]] | None) -> NDArray[np.float64]:
    for values in (vectors or {}).values():
        vector = np.asarray(values, np.float64)
        length = float(np.linalg.norm(vector))
        if np.isfinite(length) and length > 0:
            return vector / length
    raise _silent(clip)


def _distances(voice: NDArray[np.float64], others: Iterable[Sequence[float]]) -> Any:
    """Cosine distances [speakers]; a speaker without a vector is as far away as can be."""
    vectors = np.array(list(others), np.float64)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(voice)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = vectors @ voice / lengths
    return np.where(np.isfinite(cosines), 1 - cosines, _FARTHEST)


def _alone(name: str, distances: Any) -> Match:
    """What is said of a name that has no partner: how far away the nearest speaker is."""
    return Match(name, "", round(float(distances.min()), 4))


def _silent(clip: Clip) -> InvalidInput:
    return InvalidInput(
        "SPEAKER_CLIP_SILENT",
        f"nobody is heard in the clip of {clip.name!r} ({len(clip.samples)} samples at 16 kHz); "
        "give some seconds of their voice, alone",
        speaker=clip.name,
        sample_count=len(clip.samples),
    )
