"""Models that a job names: a daemon has those of its config, and says so when asked for more."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coscheduler.config import TranscriptionSettings
from coscheduler.errors import Refused

HUB = "hub:"
FIELDS = {"model": "model", "diarize_model": "diarizer"}  # of a job, of the config


def resolved(values: Mapping[str, Any], section: TranscriptionSettings) -> dict[str, Any]:
    """A transcription's checked parameters, with the aligner by its key in the config.

    Raises Refused MODEL_NOT_CONFIGURED for a model that the config does not name.
    """
    for field, name in FIELDS.items():
        place = getattr(section, name)
        if values[field] and (place is None or values[field] not in names_of(place)):
            raise _not_configured(name, values[field], str(place or "none"))
    wanted = values["align_model"]
    return {**values, "align_model": _aligner(wanted, section.aligners) if wanted else ""}


def names_of(place: Path) -> set[str]:
    """How a model of the config may be called: its path, its repository with or without owner and
    revision, its folder's name; a Whisper also by its size alone ("small").
    """
    text = str(place)
    whole = text.removeprefix(HUB)
    plain = whole.partition("@")[0] if text.startswith(HUB) else whole
    short = plain.rpartition("/")[2]
    names = {text, whole, plain, short, short.removeprefix("faster-whisper-")}
    return names | {f"{HUB}{plain}"} if text.startswith(HUB) else names


def _aligner(wanted: str, aligners: Mapping[str, Path]) -> str:
    for key, place in aligners.items():
        if wanted == key or wanted in names_of(place):
            return key
    known = ", ".join(f"{key} = {place}" for key, place in aligners.items()) or "none"
    raise _not_configured("aligners", wanted, known)


def _not_configured(name: str, wanted: str, there: str) -> Refused:
    return Refused(
        "MODEL_NOT_CONFIGURED",
        f"the job asks for {wanted!r}, and {name} in this daemon's [transcription] is {there}; "
        "change the config and start the daemon again, or leave the model out",
        field=name,
        asked=wanted,
        configured=there,
    )
