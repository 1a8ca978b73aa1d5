"""Read what is to be analysed: a transcript of the transcription stage, or plain text."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coscheduler.errors import InvalidInput

BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True)
class Turn:
    """One piece of speech; `speaker` is "" where nobody was told apart."""

    text: str
    speaker: str = ""


@dataclass(frozen=True)
class Transcript:
    """What was said, in order. `language` is "" where it is not known."""

    turns: tuple[Turn, ...]
    language: str = ""

    @property
    def text(self) -> str:
        """One line for each turn, as the model reads it: "SPEAKER_00: Good morning."."""
        return "\n".join(
            f"{turn.speaker}: {turn.text}" if turn.speaker else turn.text for turn in self.turns
        )


def read(path: Path) -> Transcript:
    """Read a transcript (a JSON object with `segments`) or plain UTF-8 text.

    Turns without text are left out. Raises InvalidInput TRANSCRIPT_INVALID or TRANSCRIPT_TOO_LARGE.
    """
    size = path.stat().st_size
    if size > BYTES_MAX:
        raise InvalidInput(
            "TRANSCRIPT_TOO_LARGE",
            f"the transcript has {size} bytes; at most {BYTES_MAX} are read",
            size_bytes=size,
            bytes_max=BYTES_MAX,
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _invalid(f"it is not UTF-8 text: {error}") from None
    if not text.lstrip().startswith("{"):
        lines = (line.strip() for line in text.splitlines())
        return Transcript(tuple(Turn(line) for line in lines if line))
    try:
        return _from_json(json.loads(text))
    except ValueError as error:
        raise _invalid(str(error)) from None


def _from_json(document: dict[str, Any]) -> Transcript:
    segments = document.get("segments")
    if not isinstance(segments, list):
        raise ValueError("it has no list of segments")
    turns = (_turn(index, segment) for index, segment in enumerate(segments))
    return Transcript(
        tuple(turn for turn in turns if turn.text), str(document.get("language") or "")
    )


def _turn(index: int, segment: Any) -> Turn:
    if not isinstance(segment, dict) or not isinstance(segment.get("text"), str):
        raise ValueError(f"segment {index} has no text")
    return Turn(" ".join(segment["text"].split()), str(segment.get("speaker") or ""))


def _invalid(why: str) -> InvalidInput:
    return InvalidInput("TRANSCRIPT_INVALID", f"this is not a transcript: {why}")
