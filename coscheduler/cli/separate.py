"""`coscheduler separate`: one recording, one sound, with everything that can be said about it."""

import asyncio
import importlib
import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from coscheduler.cli.options import ConfigOfCall, Json, PriorityClass
from coscheduler.core.model import Priority
from coscheduler.errors import InvalidInput, Refused

PHASES = {
    "load_ms": "load",
    "read_ms": "read",
    "text_ms": "text encoder",
    "encode_ms": "encode",
    "step_ms": "each ODE step",
    "decode_ms": "decode",
    "mark_ms": "watermark",
    "write_ms": "write",
}
STAGE_FIELDS = (
    "option", "quality_tier", "wait_ms", "run_ms", "real_time_factor", "predicted_peak_bytes",
    "measured_peak_bytes", "attempt_count", "evicted", "notes",
)  # fmt: skip


class ResidualKind(StrEnum):
    """What the residual is."""

    GENERATED = "generated"
    MIXTURE_MINUS_TARGET = "mixture-minus-target"


def separate(
    context: typer.Context,
    audio: Annotated[
        Path,
        typer.Argument(
            metavar="AUDIO",
            exists=True,
            dir_okay=False,
            readable=True,
            help="A recording; of a video file the audio track is taken.",
        ),
    ],
    desc: Annotated[str, typer.Option(metavar="TEXT", help="The sound: 'a woman speaking'.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Results go to DIR/<stem>/.")],
    spans: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPANS",
            help="Seconds where the sound is, 6.3-7.0, or is not, -1.0-2.5; commas between.",
        ),
    ] = None,
    candidates: Annotated[
        int, typer.Option(min=1, max=16, metavar="K", help="Draw K times, keep the best.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the noise.")] = 0,
    redraws: Annotated[
        int,
        typer.Option(min=0, max=4, metavar="N", help="Further seeds while the target is empty."),
    ] = 1,
    residual: Annotated[ResidualKind, typer.Option(help="What the rest is.")] = (
        ResidualKind.GENERATED
    ),
    watermark: Annotated[
        bool,
        typer.Option(help="Mark the results inaudibly as made by the model, as Meta's code does."),
    ] = True,
    sample_rate: Annotated[
        int | None, typer.Option(metavar="HZ", help="Of the results. (default: the model's)")
    ] = None,
    priority: Annotated[PriorityClass, typer.Option(help="The class of the job.")] = (
        PriorityClass.NORMAL
    ),
    metrics_json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write times and bytes to FILE.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw recording, target and residual as a PNG."),
    ] = None,
    config: ConfigOfCall = None,
    as_json: Json = False,
) -> None:
    """Pull one sound out of a recording: target.wav, residual.wav, both mono, and a report.

    The model hears the mean over the channels. Both results carry an inaudible watermark, as those
    of Meta's code do, unless --no-watermark is given. Ctrl-C cancels the job. Exit status: 0 done,
    1 the job failed, 2 wrong usage, 3 no daemon.
    """
    from coscheduler.cli import private, say
    from coscheduler.cli import run as runs
    from coscheduler.cli.view import Watching, outcome
    from coscheduler.client import Plan

    draw = drawer() if plot else None
    separation = {
        "spans": [text for given in spans or () for text in given.split(",")],
        "candidates": candidates,
        "seed": seed,
        "redraws_max": redraws,
        "residual": residual.value,
        "watermark": watermark,
        "sample_rate_hz": sample_rate,
    }
    priority_class = Priority[priority.name]
    plan = Plan(desc, transcribe=False, separation=separation, priority=priority_class)
    recordings = runs.prepare([audio], out, plan)
    (recording,) = recordings
    console = say.console(as_json=as_json)
    with private.reachable(context.obj, config) as address, Watching(console) as view:
        interrupted = asyncio.run(runs.run_all(address, recordings, plan, view))
    console.print(outcome(recording.metrics))
    found = report(recording.metrics, audio, desc)
    if recording.state == "SUCCEEDED":
        console.print(table(found))
        if draw and plot:
            draw(plot, {"recording": audio, **_signals(recording.files)})
    if metrics_json:
        write(metrics_json, found)
    if as_json:
        say.print_json(found)
    raise typer.Exit(runs.exit_code(recordings, interrupted))


def drawer() -> Any:
    """`plot.draw`, before any work is done. Raises Refused PLOT_UNAVAILABLE, naming what lacks."""
    try:
        return importlib.import_module("coscheduler.cli.plot").draw
    except ImportError as error:
        raise Refused(
            "PLOT_UNAVAILABLE",
            f"--plot draws with matplotlib, numpy and av, and there is no {error.name}: "
            "pip install matplotlib 'coscheduler[separation]', or leave --plot out",
            missing=error.name,
        ) from None


def report(metrics: Mapping[str, Any], audio: Path, desc: str) -> dict[str, Any]:
    """The separation's times, bytes and counts in one flat object, from a job's metrics.

    `load_ms` is how long this job waited for the model to be loaded, 0 where it was there;
    `step_ms` the mean of the ODE steps over all windows.
    """
    found: dict[str, Any] = {
        "audio": str(audio),
        "description": desc,
        "job": metrics["job"],
        "state": metrics["state"],
        "failure": metrics["failure"],
        "files": metrics["files"],
    }
    for stage in metrics["stages"]:
        numbers = {**stage["numbers"], "load_ms": stage["load_ms"]}
        found |= {name: stage[name] for name in STAGE_FIELDS} | numbers
    return found


def table(found: Mapping[str, Any]) -> Table:
    """Where the time and the memory went."""
    from coscheduler.cli.say import duration, size

    made = Table("report", "", box=None)
    for name, title in PHASES.items():
        made.add_row(title, duration(found.get(name, 0)))
    made.add_row("predicted peak", size(found["predicted_peak_bytes"]))
    made.add_row("measured peak", size(found["measured_peak_bytes"]))
    made.add_row("candidates", str(found.get("candidate_count", "")))
    made.add_row("seed of the one kept", str(found.get("chosen_seed", "")))
    return made


def write(path: Path, found: Mapping[str, Any]) -> None:
    """The report as JSON. Raises InvalidInput OUT_UNWRITABLE."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="ascii")
    except OSError as error:
        text = f"cannot write {path}: {error.strerror}"
        raise InvalidInput("OUT_UNWRITABLE", text, out=path) from None


def _signals(files: Mapping[str, Path]) -> dict[str, Path]:
    return {role: files[role] for role in ("target", "residual") if role in files}
