"""Answers that an interrupted attempt has already drawn, so that the next one need not.

Each is a file named by a hash of all that decides it: model, option, prompt, schema, sampling. So
nothing is ever taken for an answer that it is not, whatever has changed since.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coscheduler.engines.analysis.answering import Answer, Call

WHOLE, BEGUN = ".json", ".begun"


class Kept:
    """A folder of answers; None keeps nothing. `identity` names the model and how it is loaded."""

    def __init__(self, folder: Path | None, identity: dict[str, Any]) -> None:
        self._folder = folder
        self._identity = identity

    def get(self, call: Call) -> Answer | None:
        """The answer to this very call, if there is one that is whole."""
        return _read(self._path(call))

    def put(self, call: Call, answer: Answer) -> None:
        """Keep an answer; it is there whole or not at all."""
        _write(self._path(call), answer)

    def begun(self, call: Call) -> Answer | None:
        """What was drawn of the answer when it was interrupted."""
        return _read(self._path(call, BEGUN))

    def put_begun(self, call: Call, answer: Answer) -> None:
        """Keep what was drawn so far."""
        _write(self._path(call, BEGUN), answer)

    def key(self, call: Call) -> str:
        """The name under which the state of an interrupted call is saved; "" keeps none."""
        path = self._path(call)
        return f"call:{path}" if path else ""

    def _path(self, call: Call, suffix: str = WHOLE) -> Path | None:
        if self._folder is None:
            return None
        decides = json.dumps([self._identity, asdict(call)], sort_keys=True)
        return self._folder / f"{hashlib.sha256(decides.encode()).hexdigest()}{suffix}"


def _read(path: Path | None) -> Answer | None:
    if path is None or not path.is_file():
        return None
    try:
        values = json.loads(path.read_bytes())
        data = bytearray.fromhex(values["data"])
        return Answer(data, [int(token) for token in values["tokens"]], values["finish"])
    except (ValueError, KeyError, TypeError):
        return None  # not ours, or damaged: it will be drawn again


def _write(path: Path | None, answer: Answer) -> None:
    if path is None:
        return
    values = asdict(answer) | {"data": answer.data.hex()}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values), encoding="ascii")
    part.replace(path)
