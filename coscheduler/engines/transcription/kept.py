"""What an interrupted attempt leaves for the next one: where the speech is, and its text so far.

A file of JSON, replaced as a whole after every batch. Its key stands for everything that decides
the text; a file with another key, or a damaged one, counts for nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coscheduler.engines.transcription.speech import Chunk

FILENAME = "transcription.json"


@dataclass(frozen=True)
class Progress:
    """Every chunk of speech, the language, and WhisperX's segments of the first chunks."""

    chunks: tuple[Chunk, ...]
    language: str
    segments: tuple[dict[str, Any], ...] = ()


class Kept:
    """The progress of one stage. Without a folder nothing is kept."""

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        self._path = folder / FILENAME if folder else None
        text = json.dumps(identity, sort_keys=True)
        self._key = hashlib.sha256(text.encode()).hexdigest()

    def read(self) -> Progress | None:
        """What an earlier attempt left that holds for this one."""
        try:
            found = json.loads(self._path.read_bytes()) if self._path else {}
            if found.get("key") != self._key:
                return None
            chunks = tuple(Chunk(**entry) for entry in found["chunks"])
            return Progress(chunks, found["language"], tuple(found["segments"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, progress: Progress) -> None:
        """Replace what is kept."""
        if self._path is None:
            return
        text = json.dumps({"key": self._key, **asdict(progress)})
        scratch = self._path.with_suffix(".part")
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(self._path)
