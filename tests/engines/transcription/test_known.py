"""Which name belongs to which speaker, and what is refused."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coscheduler import audio
from coscheduler.engines.transcription import known
from coscheduler.engines.transcription.known import Clip, Match
from coscheduler.errors import InvalidInput
from tests.engines.transcription.conftest import MEETING

X, Y = np.array([1.0, 0.0]), np.array([0.0, 1.0])


def at(degrees: float) -> list[float]:
    """A voice in some direction, louder than a unit vector: lengths say nothing."""
    return [3 * np.cos(np.radians(degrees)), 3 * np.sin(np.radians(degrees))]


def test_each_name_goes_to_the_nearest_speaker() -> None:
    speakers = {"SPEAKER_00": at(80.0), "SPEAKER_01": at(10.0), "SPEAKER_02": at(200.0)}
    found = known.match({"Anna": X, "Bert": Y}, speakers, 0.5)
    distance = round(1 - np.cos(np.radians(10.0)), 4)
    assert found == (Match("Anna", "SPEAKER_01", distance), Match("Bert", "SPEAKER_00", distance))
    assert known.renamed(found) == {"SPEAKER_01": "Anna", "SPEAKER_00": "Bert"}


def test_who_is_too_far_away_is_not_found_and_the_distance_is_said() -> None:
    (found,) = known.match({"Anna": X}, {"SPEAKER_00": at(90.0)}, 0.5)
    assert found == Match("Anna", "", 1.0)
    assert known.renamed([found]) == {}
    assert known.as_json([found]) == [{"name": "Anna", "label": None, "distance": 1.0}]


def test_two_names_never_share_a_speaker() -> None:
    found = known.match(
        {"Anna": X, "Anne": X}, {"SPEAKER_00": at(0.0), "SPEAKER_01": at(20.0)}, 0.5
    )
    assert sorted(entry.label for entry in found) == ["SPEAKER_00", "SPEAKER_01"]
    found = known.match({"Anna": X, "Anne": X}, {"SPEAKER_00": at(0.0)}, 0.5)
    assert sorted(entry.label for entry in found) == ["", "SPEAKER_00"]


def test_nobody_heard_is_nobody_found() -> None:
    assert known.match({"Anna": X}, {}, 0.5) == (Match("Anna", "", None),)
    assert known.match({}, {"SPEAKER_00": at(0.0)}, 0.5) == ()


@pytest.mark.parametrize("vector", [[0.0, 0.0], [float("nan"), 1.0]])
def test_a_speaker_without_a_vector_is_nobody(vector: list[float]) -> None:
    assert known.match({"Anna": X}, {"SPEAKER_00": vector}, 2.0)[0].distance == 2.0
    speakers = {"SPEAKER_00": vector, "SPEAKER_01": at(30.0)}
    assert known.match({"Anna": X}, speakers, 0.5)[0].label == "SPEAKER_01"


@given(
    st.lists(st.floats(0, 359), max_size=5),
    st.lists(st.floats(0, 359), max_size=5),
    st.floats(0.01, 2),
)
def test_pairs_are_one_to_one_near_enough_and_best(
    names: list[float], speakers: list[float], distance_max: float
) -> None:
    voices = {f"n{i}": np.array(at(angle)) / 3 for i, angle in enumerate(names)}
    labels = {f"SPEAKER_{i:02d}": at(angle) for i, angle in enumerate(speakers)}
    found = known.match(voices, labels, distance_max)
    assert [entry.name for entry in found] == list(voices)
    partners = [entry.label for entry in found if entry.label]
    assert len(partners) == len(set(partners))
    for entry in found:
        assert not entry.label or (entry.distance or 0) <= distance_max + 1e-4
        if not entry.label and labels and len(names) == 1:
            assert (entry.distance or 0) > distance_max - 1e-4


# ---- clips -------------------------------------------------------------------------------------


def hears(*vectors: list[float] | None) -> Any:
    """A diarizer that gives these vectors, one call after the other."""
    left = list(vectors)

    def diarize(_samples: Any) -> Generator[tuple[int, int], None, Any]:
        yield 50, 100
        vector = left.pop(0)
        return None, None if vector is None else {"SPEAKER_00": vector}

    return diarize


def heard(clips: list[Clip], *vectors: list[float] | None) -> tuple[list[Any], known.Voices]:
    steps, seen = known.voices(clips, hears(*vectors)), []
    while True:
        try:
            seen.append(next(steps))
        except StopIteration as stop:
            return seen, stop.value


def test_several_clips_of_one_name_are_averaged_by_direction() -> None:
    clips = [Clip(name, np.zeros(8, np.float32)) for name in ("Anna", "Bert", "Anna")]
    steps, voices = heard(clips, [4.0, 0.0], [0.0, 2.0], [0.0, 1.0])
    np.testing.assert_allclose(voices["Anna"], [0.5, 0.5])
    np.testing.assert_allclose(voices["Bert"], [0.0, 1.0])
    assert steps == [(50, 300), (150, 300), (250, 300)]


@pytest.mark.parametrize("vector", [None, [0.0, 0.0], [float("nan"), 0.0]])
def test_a_clip_in_which_nobody_is_heard_is_refused(vector: list[float] | None) -> None:
    with pytest.raises(InvalidInput, match="nobody is heard in the clip of 'Anna'") as caught:
        heard([Clip("Anna", np.zeros(16, np.float32))], vector)
    assert caught.value.reason == "SPEAKER_CLIP_SILENT"


def test_silence_is_refused_before_any_work(tmp_path: Path) -> None:
    clip = tmp_path / "silence.wav"
    audio.write_wav(clip, np.zeros(16_000, np.float32), 16_000)
    with pytest.raises(InvalidInput, match="give some seconds of their voice") as caught:
        known.read([("Bert", MEETING), ("Anna", clip)], tmp_path)
    assert caught.value.numbers == {"speaker": "Anna", "sample_count": "16000"}
    assert list(tmp_path.iterdir()) == [clip]
