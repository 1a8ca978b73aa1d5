"""What several commands have in common: some of their options, the foot of their help."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")]

ConfigOfCall = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        envvar="COSCHEDULER_CONFIG",
        help="Config of the daemon that is started for this call where none is running.",
    ),
]


class PriorityClass(StrEnum):
    """A job's class, as it is written on the command line."""

    BATCH = "batch"
    NORMAL = "normal"
    INTERACTIVE = "interactive"


def examples(*lines: str) -> str:
    """The foot of a command's help; an empty line keeps each example on a line of its own."""
    return "\n\n".join(["Examples:", *lines])
