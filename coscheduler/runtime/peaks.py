"""Peaks that were measured above the prediction, kept from one daemon to the next in one file.

Kept is what an option took on top of what was predicted, and only that. A peak below the prediction
is not learned: it says what one recording took, and another language, more speakers or a longer one
may take what was predicted.

An entry is found again only for the same option with the same prediction, of model files with the
same sizes and times, with libraries of the same versions. So what is stale is not used, and a file
that is lost or deleted costs an out-of-memory at most. It holds no names but those of options.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coscheduler.core.engine_state import EngineState
from coscheduler.core.learning import KnownPeak
from coscheduler.core.model import EngineDescription, EngineName, Option

FILENAME = "peaks.json"
ENTRIES_MAX = 512
FILE_BYTES_MAX = 1024 * 1024
LIBRARIES = (
    "coscheduler",
    "torch",
    "ctranslate2",
    "whisperx",
    "pyannote-audio",
    "llama-cpp-python",
)
Bytes = Annotated[int, Field(ge=0, le=2**50)]

log = logging.getLogger(__name__)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    engine: str
    option: str
    resident_bytes: Bytes
    run_bytes: Bytes
    run_count: Annotated[int, Field(ge=1)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[1] = 1
    peaks: dict[str, _Entry] = {}


class Peaks:
    """The file in `folder`. `device` says what else measurements depend on. A disk that fails, or
    a file that is not ours, costs what was learned and is warned of.
    """

    def __init__(self, folder: Path, device: Mapping[str, object]) -> None:
        self._path = folder / FILENAME
        self._where = {**device, "libraries": dict(versions(LIBRARIES))}
        self._known = _read(self._path)
        self._keys: dict[EngineName, dict[str, str]] = {}

    def recall(self, description: EngineDescription) -> tuple[KnownPeak, ...]:
        """What earlier daemons learned of these options."""
        keys = {
            option.name: self._key(description.engine, option) for option in description.options
        }
        self._keys[description.engine] = keys
        entries = ((name, self._known.get(key)) for name, key in keys.items())
        return tuple(
            KnownPeak(name, entry.resident_bytes, entry.run_bytes, entry.run_count)
            for name, entry in entries
            if entry is not None
        )

    def keep(self, state: EngineState) -> None:
        """Write down what the engine's work has taught, where that is something new."""
        keys = self._keys.get(state.name, {})
        learned = state.learned
        names = [name for name in keys if name in {*learned.resident_bytes, *learned.run_bytes}]
        changed = [name for name in names if self._note(state, name, keys[name])]
        if changed:
            _write(self._path, self._known)

    def _note(self, state: EngineState, name: str, key: str) -> bool:
        resident = state.learned.resident_bytes.get(name, 0)
        run = state.learned.run_bytes.get(name, 0)
        old = self._known.pop(key, None)
        is_new = old is None or (old.resident_bytes, old.run_bytes) != (resident, run)
        count = (old.run_count if old else 0) + is_new
        self._known[key] = _Entry(
            engine=state.name, option=name, resident_bytes=resident, run_bytes=run, run_count=count
        )
        while len(self._known) > ENTRIES_MAX:
            del self._known[next(iter(self._known))]  # the one that was used longest ago
        return is_new

    def _key(self, engine: EngineName, option: Option) -> str:
        files = [(file, *_size_and_time(Path(file))) for file in option.files]
        said = {"engine": engine, "option": asdict(option), "files": files, **self._where}
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def versions(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The installed versions of those that are installed."""
    for name in names:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _read(path: Path) -> dict[str, _Entry]:
    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
        if len(text) > FILE_BYTES_MAX:
            raise ValueError(f"it is larger than {FILE_BYTES_MAX} bytes")
        return _File.model_validate_json(text).peaks
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        why = "; ".join(entry["msg"] for entry in error.errors()[:3])
    except (OSError, ValueError) as error:
        why = str(error)
    log.warning("peaks of earlier runs are not used: %s cannot be read: %s", path, why)
    return {}


def _write(path: Path, known: dict[str, _Entry]) -> None:
    """Atomically: the whole file or what was there."""
    part = path.with_suffix(".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(_File(peaks=known).model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        log.warning("peaks cannot be kept for the next start: %s", error)
