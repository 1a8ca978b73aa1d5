"""Show what the demonstration's job left: transcript, analysis, metrics, what to try next."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from coscheduler.cli.view import outcome
from coscheduler.client import RunResult

LINES_MAX = 20

NEXT_STEPS = """\
These models were trained on synthetic speech and know some 250 words; what is not among
them they do not hear. coscheduler/demo/trained/README.md says how good they are. With others:

  1. put them where configs/cpu.toml, 24gb.toml or 4gb.toml says, or edit a copy
  2. .venv/bin/coscheduler serve --config configs/24gb.toml
  3. .venv/bin/coscheduler run TALK.flac --out results --separate speech --analyze summary

While it works: .venv/bin/coscheduler gpu --watch"""


def show(console: Console, result: RunResult) -> None:
    """Print transcript, analysis and the table of the metrics; what is missing is left out."""
    if path := result.files.get("txt"):
        console.print(_panel("Transcript", path.read_text(encoding="utf-8")))
    if path := result.files.get("analysis"):
        console.print(_panel("Analysis", _result_of(path)))
    console.print(outcome(result.metrics))


def next_steps() -> Panel:
    """What to try after the demonstration."""
    return Panel(Text(NEXT_STEPS), title="What to try next", expand=False)


def _result_of(path: Path) -> str:
    """The answer in an analysis file, without how it came about: actions as lines, else JSON."""
    result = json.loads(path.read_text("utf-8"))["result"]
    if isinstance(result, dict) and "actions" in result:
        return "\n".join(_action(action) for action in result["actions"])
    return json.dumps(result, indent=2, ensure_ascii=False)


def _action(action: dict[str, Any]) -> str:
    """Who does what by when, and where in the recording that was said."""
    due = f" (by {action['due']})" if action["due"] else ""
    starts = [place["start_ms"] for place in action["cites"] if place["start_ms"] is not None]
    at = f"{starts[0] // 60_000}:{starts[0] // 1000 % 60:02d}  " if starts else ""
    return f"{at}{action['owner'] or 'somebody'}: {action['task']}{due}"


def _panel(title: str, text: str) -> Panel:
    lines = text.strip().splitlines()
    if len(lines) > LINES_MAX:
        lines = [*lines[:LINES_MAX], f"... and {len(lines) - LINES_MAX} lines more"]
    return Panel(Text("\n".join(lines) or "(empty)"), title=title, expand=False)
