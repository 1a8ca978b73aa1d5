"""What a transcription may be asked for, through the wire and back, and what is refused."""

from typing import Any

import pytest

from coscheduler import stages
from coscheduler.core.model import StageKind
from coscheduler.errors import InvalidInput
from coscheduler.rpc.convert.parameters import get_parameters, put_parameters
from coscheduler.v1 import job_pb2

FULL: dict[str, Any] = {
    "model": "small",
    "align_model": "hub:facebook/wav2vec2-base-960h",
    "diarize_model": "/models/community-1",
    "language": "de",
    "task": "transcribe",
    "formats": ["json", "aud"],
    "batch_size_max": 3,
    "beam_size": 2,
    "patience": 1.5,
    "length_penalty": 0.5,
    "suppress_tokens": [-1, 17],
    "suppress_numerals": True,
    "initial_prompt": "Minutes of the board.",
    "hotwords": "coscheduler",
    "vad_method": "silero",
    "vad_onset": 0.25,
    "vad_offset": 0.125,
    "chunk_ms": 15_000,
    "align": True,
    "char_alignments": True,
    "interpolate_method": "linear",
    "diarize": True,
    "speakers": 0,
    "speakers_min": 2,
    "speakers_max": 4,
    "speaker_embeddings": True,
    "known_speakers": [
        {"name": "Anna", "artifact": "artifacts/" + 32 * "0"},
        {"name": "Ørjan B.", "artifact": "artifacts/" + 32 * "f"},
    ],
    "speaker_distance_max": 0.75,
    "max_line_width": 42,
    "max_line_count": 2,
    "highlight_words": True,
}
ANNA = {"name": "Anna", "artifact": "artifacts/" + 32 * "0"}
PLAIN_LAYOUT = {"max_line_width": None, "max_line_count": None, "highlight_words": False}


def there_and_back(values: dict[str, Any]) -> dict[str, Any]:
    """The parameters after a trip as bytes, with every default filled in."""
    stage = job_pb2.Stage()
    put_parameters(stage, StageKind.TRANSCRIBE, values)
    arrived = job_pb2.Stage.FromString(stage.SerializeToString())
    kind, found = get_parameters(arrived)
    return stages.parse(kind, found).model_dump(mode="json")


def test_every_field_is_tried() -> None:
    assert set(FULL) == set(stages.TranscribeParameters.model_fields)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"task": "translate", **PLAIN_LAYOUT},
        {"align": False, **PLAIN_LAYOUT},
        {"speakers": 3, "speakers_min": 0, "speakers_max": 0},
        {
            "diarize": False,
            "known_speakers": [],
            "vad_method": "pyannote",
            "interpolate_method": "ignore",
        },
    ],
)
def test_everything_arrives(changes: dict[str, Any]) -> None:
    assert there_and_back({**FULL, **changes}) == {**FULL, **changes}


def test_what_is_left_out_has_the_defaults_of_the_stage() -> None:
    assert there_and_back({}) == stages.parse(StageKind.TRANSCRIBE, {}).model_dump(mode="json")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"max_line_width": 40, "align": False}, "need word times"),
        ({"highlight_words": True, "task": "translate"}, "need word times"),
        ({"max_line_count": 2}, "without max_line_width"),
        ({"speakers": 2, "speakers_max": 3}, "number of speakers or bounds"),
        ({"speakers_min": 4, "speakers_max": 3}, "above"),
        ({"vad_onset": 1.0}, "less than 1"),
        ({"chunk_ms": 30_001}, "30000"),
        ({"beam_size": 0}, "greater than or equal to 1"),
        ({"temperature": 0.2}, "Extra inputs"),
        ({"known_speakers": [ANNA], "diarize": False}, "diarize must be true"),
        ({"known_speakers": [{**ANNA, "name": "SPEAKER_01"}]}, "is no name"),
        ({"known_speakers": [{**ANNA, "name": " "}]}, "is no name"),
        ({"known_speakers": [{**ANNA, "name": "a\nb"}]}, "pattern"),
        ({"known_speakers": [{**ANNA, "name": "x --> y"}]}, "pattern"),
        ({"known_speakers": [{**ANNA, "artifact": "../../etc/passwd"}]}, "pattern"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as caught:
        stages.parse(StageKind.TRANSCRIBE, wrong)
    assert caught.value.reason == "PARAMETER_INVALID"
