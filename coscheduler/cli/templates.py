"""`coscheduler templates`, and templates of one's own for `run --analyze FILE.toml`."""

import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rich.table import Table

from coscheduler.cli import say
from coscheduler.errors import InvalidInput
from coscheduler.stages import TEMPLATES

FOLDER = ("engines", "analysis", "templates")  # data files: the engine itself is not imported
SUFFIX = ".toml"


def show(as_json: bool) -> None:
    """Print the templates, sorted."""
    found = [_facts(name) for name in sorted(TEMPLATES)]
    if as_json:
        say.print_json({"templates": found})
        return
    table = Table("template", "version", "what it gives", "variables")
    for facts in found:
        variables = ", ".join(f"{key}={text}" for key, text in facts["variables"].items())
        table.add_row(facts["name"], str(facts["version"]), facts["description"], variables)
    say.console().print(table)


def asked(analyze: str | None, variables: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """The template's name, if it is one of the daemon's, and parameters for the stage.

    Raises InvalidInput TEMPLATE_UNREADABLE or VARIABLE_INVALID.
    """
    parameters: dict[str, Any] = {}
    if variables:
        parameters["variables"] = dict(_variable(text) for text in variables)
    if analyze is None or not analyze.endswith(SUFFIX):
        return analyze, parameters
    try:
        parameters["template_text"] = Path(analyze).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            "TEMPLATE_UNREADABLE", f"cannot read the template {analyze}: {error}", path=analyze
        ) from None
    return None, parameters


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidInput("VARIABLE_INVALID", f"{text!r} is not NAME=TEXT", variable=text)
    return name, value


def _facts(name: str) -> dict[str, Any]:
    path = resources.files("coscheduler").joinpath(*FOLDER, name + SUFFIX)
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        "name": name,
        "version": values["version"],
        "description": values["description"],
        "variables": values.get("variables", {}),
    }
