"""Show people what a job left: the transcript, the analysis, a table of the metrics."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

MIB = 1024 * 1024
LINES_MAX = 20
COLUMNS = ("stage", "state", "wait", "load", "run", "real time", "predicted", "measured", "option")


def show(console: Console, metrics: dict[str, Any], folder: Path) -> None:
    """Print the results in `folder` and the `metrics` of the job that wrote them."""
    _show_file(console, folder / "transcript.txt", "Transcript")
    _show_file(console, folder / "analysis.json", "Analysis")
    console.print(_table(metrics["stages"]))
    for stage in metrics["stages"]:
        for note in stage.get("notes", ()):
            console.print(Text(f"{stage['stage']}: {note}"))
    console.print(Text(f"Job {metrics.get('job', '')}: {metrics['state']}. Files in {folder}:"))
    for path in sorted(folder.glob("*")):
        console.print(Text(f"  {path.name:18} {path.stat().st_size:>10,} bytes"))


def _show_file(console: Console, path: Path, title: str) -> None:
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        text = json.dumps(json.loads(text)["result"], indent=2, ensure_ascii=False)
    lines = text.strip().splitlines()
    if len(lines) > LINES_MAX:
        lines = [*lines[:LINES_MAX], f"... and {len(lines) - LINES_MAX} lines more"]
    console.print(Panel(Text("\n".join(lines) or "(empty)"), title=title, expand=False))


def _table(stages: list[dict[str, Any]]) -> Table:
    table = Table(title="What each stage took", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in COLUMNS[:2] else "right")
    for stage in stages:
        table.add_row(*_row(stage))
    return table


def _row(stage: dict[str, Any]) -> list[str]:
    times = [f"{stage[key] / 1000:.1f} s" for key in ("wait_ms", "load_ms", "run_ms")]
    bytes_ = [f"{stage[f'{key}_peak_bytes'] / MIB:.0f} MiB" for key in ("predicted", "measured")]
    factor = stage.get("real_time_factor")
    real_time = f"{factor:.2f} x" if factor else "-"
    return [stage["stage"], stage["state"], *times, real_time, *bytes_, stage["option"]]
