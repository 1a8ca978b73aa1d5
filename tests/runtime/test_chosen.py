"""Models that a job may name are those of the config, however they are called."""

from pathlib import Path
from typing import Any

import pytest

from coscheduler import config
from coscheduler.core.model import StageKind
from coscheduler.errors import InvalidInput, Refused
from coscheduler.runtime import chosen
from coscheduler.stages import parse


def section(**values: Any) -> config.TranscriptionSettings:
    raw = {"model": "hub:Systran/faster-whisper-small@main", **values}
    found = config.parse({"transcription": raw}, Path("/etc")).transcription
    assert found is not None
    return found


FULL = section(
    aligners={"en": "aligners/base", "en-large": "hub:jonatasgrosman/xlsr-english"},
    diarizer="hub:pyannote/community-1",
)


def resolved(there: config.TranscriptionSettings, **asked: str) -> dict[str, Any]:
    values = parse(StageKind.TRANSCRIBE, dict(asked)).model_dump(mode="json")
    return chosen.resolved(values, there)


@pytest.mark.parametrize(
    "name",
    [
        "", "small", "faster-whisper-small", "Systran/faster-whisper-small",
        "hub:Systran/faster-whisper-small", "hub:Systran/faster-whisper-small@main",
    ],
)  # fmt: skip
def test_a_repository_has_many_names(name: str) -> None:
    assert resolved(FULL, model=name)["model"] == name


def test_a_folder_is_named_by_its_path_or_its_last_part() -> None:
    there = section(model="models/large-v3")
    for name in ("/etc/models/large-v3", "large-v3"):
        resolved(there, model=name)
    with pytest.raises(Refused):
        resolved(there, model="models/large-v3")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("", ""), ("en", "en"), ("base", "en"), ("/etc/aligners/base", "en"),
        ("en-large", "en-large"), ("xlsr-english", "en-large"),
    ],
)  # fmt: skip
def test_an_aligner_is_kept_by_its_key(name: str, key: str) -> None:
    assert resolved(FULL, align_model=name)["align_model"] == key


@pytest.mark.parametrize(
    ("there", "asked", "configured"),
    [
        (FULL, {"model": "large-v3"}, "hub:Systran/faster-whisper-small@main"),
        (FULL, {"diarize_model": "3.1"}, "hub:pyannote/community-1"),
        (section(), {"diarize_model": "3.1"}, "none"),
        (section(), {"align_model": "en"}, "none"),
        (
            FULL, {"align_model": "de"},
            "en = /etc/aligners/base, en-large = hub:jonatasgrosman/xlsr-english",
        ),
    ],
)  # fmt: skip
def test_another_model_is_refused_with_what_there_is(
    there: config.TranscriptionSettings, asked: dict[str, str], configured: str
) -> None:
    with pytest.raises(Refused, match="leave the model out") as caught:
        resolved(there, **asked)
    assert caught.value.reason == "MODEL_NOT_CONFIGURED"
    assert caught.value.numbers["configured"] == configured


def test_a_config_can_have_another_whisper() -> None:
    settings = config.parse({"transcription": {"model": "a", "beam_size": 2}}, Path("/etc"))
    changed = config.with_whisper(settings, "hub:Systran/faster-whisper-tiny")
    assert changed.transcription is not None
    assert str(changed.transcription.model) == "hub:Systran/faster-whisper-tiny"
    assert changed.transcription.beam_size == 2
    with pytest.raises(InvalidInput, match=r"no \[transcription\] section"):
        config.with_whisper(config.Settings(), "a")
