"""How the command line speaks: where text goes, how errors, sizes and times read."""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from coscheduler.cli import EXIT_FAILED, EXIT_UNREACHABLE, EXIT_USAGE
from coscheduler.errors import CoschedulerError, InvalidInput, Unavailable

FILE_COLUMNS = 160  # of tables in a file or pipe, where nobody's window sets the width
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def console(*, as_json: bool = False) -> Console:
    """For people: standard output, or standard error when JSON has standard output to itself."""
    made = Console(stderr=as_json, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = FILE_COLUMNS
    return made


def notice(text: str) -> None:
    """A line for people on standard error, whatever is printed elsewhere."""
    Console(stderr=True, highlight=False).print(Text(printable(text)), soft_wrap=True)


def printable(text: str) -> str:
    """The text without what a terminal would obey or cannot show; names may hold any bytes."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def explain(error: CoschedulerError) -> None:
    """Say an error: its sentence, its reason, its numbers."""
    notice(f"error: {sentence(error.reason, error.message, error.numbers)}")


def sentence(reason: str, message: str, numbers: Mapping[str, str]) -> str:
    """One line: the message, then in brackets the reason and the numbers it does not mention."""
    told = [f"{key}={value}" for key, value in numbers.items() if value not in message]
    return f"{message} [{', '.join([reason, *told])}]"


def exit_status(error: CoschedulerError) -> int:
    """The exit code that says what kind of error it was."""
    if isinstance(error, Unavailable):
        return EXIT_UNREACHABLE
    return EXIT_USAGE if isinstance(error, InvalidInput) else EXIT_FAILED


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on one line of standard output, in ASCII: file names may hold any bytes."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def size(size_bytes: int) -> str:
    """Bytes for people, three significant digits: 1.25 GiB."""
    value, unit = float(size_bytes), UNITS[0]
    for unit in UNITS:
        if abs(value) < 1000 or unit == UNITS[-1]:
            break
        value /= 1024
    digits = 0 if unit == UNITS[0] or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def duration(duration_ms: int) -> str:
    """Milliseconds for people: 850 ms, 12.3 s, 4:07 min, 1:02 h."""
    if duration_ms < 1000:
        return f"{duration_ms} ms"
    if duration_ms < 60_000:
        return f"{duration_ms / 1000:.1f} s"
    seconds = duration_ms // 1000
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02} min"
    return f"{seconds // 3600}:{seconds % 3600 // 60:02} h"
