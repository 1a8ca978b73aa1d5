"""What several commands have in common: the --json option, the foot of their help."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")]


def examples(*lines: str) -> str:
    """The foot of a command's help; an empty line keeps each example on a line of its own."""
    return "\n\n".join(["Examples:", *lines])
