"""Every event and what it led to, as JSON lines; and taking the same decisions again from them.

A journal is a file of bounded size and one older file beside it. Each begins with the scheduler's
whole state, as does each start of a daemon, so that any of them can be replayed by itself.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from coscheduler.core.events import Event
from coscheduler.core.scheduler import Outcome, Scheduler, State
from coscheduler.errors import InvalidInput

FILENAME = "journal.jsonl"
OLDER_FILENAME = "journal.1.jsonl"
EVENTS: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(Event)}
_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}  # made once: making one takes milliseconds

log = logging.getLogger(__name__)


class Journal:
    """Appends to the journal in `folder`; the entries of the two files together take about
    `bytes_max` at most, the state at the head of each not counted.

    A disk that fails costs the journal, never the daemon.
    """

    def __init__(self, folder: Path, bytes_max: int, read_state: Callable[[], State]) -> None:
        self._path = folder / FILENAME
        self._older = folder / OLDER_FILENAME
        self._file_bytes_max = bytes_max // 2
        self._read_state = read_state
        self._fd: int | None = None
        self._size_bytes = 0
        self._try(self._open)

    def note(self, at_ms: int, event: Event, outcome: Outcome) -> None:
        """One event, after it has been handled."""
        if self._fd is None:
            return
        entry = {
            "at_ms": at_ms,
            **_plain(event),
            "commands": [_plain(command) for command in outcome.commands],
            "decisions": outcome.decisions,
        }
        self._try(lambda: self._append(json.dumps(entry).encode() + b"\n"))

    def close(self) -> None:
        """No entry comes any more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> None:
        if self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
            self._path.replace(self._older)  # a crash cut its last line short
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        self._size_bytes = os.fstat(self._fd).st_size
        state = _adapter(State).dump_json(self._read_state())
        os.write(self._fd, b'{"state": ' + state + b"}\n")

    def _append(self, line: bytes) -> None:
        assert self._fd is not None
        os.write(self._fd, line)
        self._size_bytes += len(line)
        if self._size_bytes > self._file_bytes_max:
            self.close()
            self._path.replace(self._older)
            self._open()

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            log.warning("the journal ends here: %s", error)
            self.close()


@dataclass(frozen=True)
class Difference:
    """A line whose event led to something else when it was replayed. JSON values."""

    line: int
    at_ms: int
    event: str
    recorded: Any
    replayed: Any


@dataclass
class Replay:
    """Takes the decisions of a journal again. Iterate over `differences` to the end."""

    lines: Iterable[bytes]
    event_count: int = 0

    def differences(self) -> Iterator[Difference]:
        """Each line that came out otherwise; decisions after the first one may all differ.

        Raises InvalidInput JOURNAL_CORRUPT. A last line that a crash cut short is left out.
        """
        scheduler: Scheduler | None = None
        for number, entry in _entries(self.lines):
            if "state" in entry:
                scheduler = Scheduler.from_state(_adapter(State).validate_python(entry["state"]))
                continue
            if scheduler is None:
                raise _corrupt(number, "the journal does not begin with a state")
            outcome = scheduler.handle(_event(number, entry), entry["at_ms"])
            self.event_count += 1
            commands = [_plain(command) for command in outcome.commands]
            replayed = {"commands": commands, "decisions": list(outcome.decisions)}
            recorded = {key: entry[key] for key in replayed}
            if recorded != replayed:
                yield Difference(number, entry["at_ms"], entry["is"], recorded, replayed)


def _entries(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line with its number; a broken one only raises when another follows it."""
    broken: tuple[int, str] | None = None
    for number, line in enumerate(lines, start=1):
        if broken is not None:
            raise _corrupt(*broken)
        try:
            yield number, json.loads(line)
        except ValueError as error:
            broken = (number, str(error))


def _event(number: int, entry: dict[str, Any]) -> Event:
    try:
        event: Event = _adapter(EVENTS[entry["is"]]).validate_python(entry["with"])
    except (KeyError, ValidationError) as error:
        raise _corrupt(number, f"no event: {error}") from None
    return event


def _corrupt(number: int, why: str) -> InvalidInput:
    return InvalidInput("JOURNAL_CORRUPT", f"line {number}: {why}", line=number)


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _plain(noun: Any) -> dict[str, Any]:
    """An event or a command as JSON values, with its kind's name."""
    kind = type(noun)
    return {"is": kind.__name__, "with": _adapter(kind).dump_python(noun, mode="json")}
