"""Read what is to be analysed: a transcript of the transcription stage, plain text, or messages.

Every turn keeps its number, so that a statement of an answer can name the turns it rests on. A
model sees one line for each turn: "[12] SPEAKER_00: Good morning.".
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from coscheduler.errors import InvalidInput

BYTES_MAX = 64 * 1024 * 1024
Unit = Literal["line", "message"]  # what one turn of a plain text is
_BETWEEN_MESSAGES = re.compile(r"^-{3,}[ \t]*$", re.MULTILINE)
_SENDER = re.compile(r"^From:[ \t]*(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Turn:
    """One piece of speech, or one message; `speaker` is "" where nobody was told apart.

    `number` is its place in the file, from 0: the index of the segment. Times are milliseconds,
    None where the file has none.
    """

    text: str
    speaker: str = ""
    number: int = 0
    start_ms: int | None = None
    end_ms: int | None = None

    @property
    def line(self) -> str:
        """As the model reads it."""
        named = f"{self.speaker}: {self.text}" if self.speaker else self.text
        return f"[{self.number}] {named}"


@dataclass(frozen=True)
class Transcript:
    """What was said, in order. `language` is "" where it is not known."""

    turns: tuple[Turn, ...]
    language: str = ""

    @property
    def text(self) -> str:
        """All lines."""
        return text_of(self.turns)


def text_of(turns: Iterable[Turn]) -> str:
    """The lines of some turns, as the model reads them."""
    return "\n".join(turn.line for turn in turns)


def read(path: Path, unit: Unit = "line") -> Transcript:
    """Read a transcript (a JSON object with `segments`) or plain UTF-8 text.

    In plain text a turn is a line, or what stands between lines of three dashes or more. Turns
    without text are left out. Raises InvalidInput TRANSCRIPT_INVALID or TRANSCRIPT_TOO_LARGE.
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
        return Transcript(tuple(_from_text(text, unit)))
    try:
        return _from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise _invalid(str(error)) from None


def _from_text(text: str, unit: Unit) -> Iterable[Turn]:
    parts = _BETWEEN_MESSAGES.split(text) if unit == "message" else text.splitlines()
    stripped = (part.strip() for part in parts)
    for number, part in enumerate(part for part in stripped if part):
        sender = _SENDER.search(part) if unit == "message" else None
        yield Turn(part, sender[1].strip() if sender else "", number)


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
    return Turn(
        text=" ".join(segment["text"].split()),
        speaker=str(segment.get("speaker") or ""),
        number=index,
        start_ms=_milliseconds(segment.get("start")),
        end_ms=_milliseconds(segment.get("end")),
    )


def _milliseconds(seconds: Any) -> int | None:
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return None
    return round(seconds * 1000)


def _invalid(why: str) -> InvalidInput:
    return InvalidInput("TRANSCRIPT_INVALID", f"this is not a transcript: {why}")
