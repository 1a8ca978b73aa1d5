"""`coscheduler plan`: what each stage would have of the device and the host, from sizes alone."""

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from coscheduler.cli import say
from coscheduler.cli.sizes import parse_size
from coscheduler.config import load
from coscheduler.errors import InvalidInput, Refused
from coscheduler.planning import stages
from coscheduler.planning.analysis import RAM_BYTES_PER_MS
from coscheduler.planning.stages import Asked, EngineShare, Plan, StagePlan

GB = 1_000_000_000
LINK = re.compile(r"(.+?)\s*/\s*s", re.IGNORECASE)


def show(
    config: Path, budget: str | None, link: str, minutes: int, as_json: bool, plot: Path | None
) -> None:
    """Print the plan and, where asked for, draw it.

    Raises InvalidInput CONFIG_*, SIZE_INVALID, LINK_INVALID, BUDGET_*, SIZES_UNKNOWN or
    OUT_UNWRITABLE, Refused NEVER_FITS or PLOT_UNAVAILABLE.
    """
    asked = Asked(
        parse_size(budget) if budget else 0, parse_link(link), duration_ms=60_000 * minutes
    )
    found = stages.plan(load(config), asked)
    if plot is not None:
        _drawer()(plot, found)
    if as_json:
        say.print_json(stages.as_json(found))
    else:
        _print(say.console(), found, minutes)


def _drawer() -> Callable[[Path, Plan], None]:
    """`plan_plot.draw`. Raises Refused PLOT_UNAVAILABLE: matplotlib is no part of the install."""
    try:
        draw: Callable[[Path, Plan], None] = import_module("coscheduler.cli.plan_plot").draw
    except ImportError as error:
        raise Refused(
            "PLOT_UNAVAILABLE",
            f"--plot draws with matplotlib, and there is no {error.name}: pip install matplotlib, "
            "or leave --plot out",
            missing=error.name,
        ) from None
    return draw


def parse_link(text: str) -> int:
    """Bytes per millisecond of "24 GB/s". Raises InvalidInput LINK_INVALID."""
    match = LINK.fullmatch(text.strip())
    try:
        speed = parse_size(match[1]) // 1000 if match else 0
    except InvalidInput:
        speed = 0
    if speed < 1:
        message = f'{text!r} is no speed of a link; write it as "24 GB/s"'
        raise InvalidInput("LINK_INVALID", message, link=text)
    return speed


def _print(console: Console, found: Plan, minutes: int) -> None:
    console.print(
        f"{say.size(found.capacity_bytes)} to share out, beside {say.size(found.headroom_bytes)} "
        f"of headroom; times for {minutes} min of audio, {_speeds(found)}"
    )
    for stage in found.stages:
        console.print()
        console.print(_headline(stage, found))
        console.print(_table(stage))
        for sentence in _sentences(stage):
            console.print(f"  {sentence}")


def _speeds(found: Plan) -> str:
    link = found.asked.link_bytes_per_ms * 1000 / GB
    return f"over a link of {link:g} GB/s and with RAM of {RAM_BYTES_PER_MS * 1000 / GB:g} GB/s"


def _headline(stage: StagePlan, found: Plan) -> Text:
    free = found.capacity_bytes - stage.total_bytes
    text = Text(str(stage.stage), style="bold")
    text.append(
        f": {say.size(stage.total_bytes)} on the device ({say.size(free)} free), "
        f"{say.size(stage.host_bytes)} on the host, quality tier {stage.quality_tier}, "
        f"about {say.duration(stage.predicted_ms)}",
        style="not bold",
    )
    return text


def _table(stage: StagePlan) -> Table:
    table = Table("engine", "how", "device", "host")
    for share in stage.shares:
        name = f"{share.engine}\n{say.printable(share.model)}"
        device = "\n".join(f"{entry.line} {say.size(entry.bytes)}" for entry in share.lines)
        host = "\n".join(f"{line} {say.size(size)}" for line, size in share.host)
        table.add_row(Text(name), Text("\n".join(_how(share))), Text(device), Text(host))
    return table


def _how(share: EngineShare) -> Iterator[str]:
    """What of the engine is there, in lines."""
    if share.found is None:
        yield "out: no process, nothing on the device"
        return
    yield "runs" if share.runs else "keeps"
    facts = share.found.facts
    if "layers_resident" in facts:
        yield f"{facts['precision']}, {facts['layers_resident']} of {facts['layers']} layers stay"
        streamed = int(facts["streamed_bytes_per_pass"])
        if streamed and share.runs:
            windows = facts["windows_per_pass"]
            each = "window" if windows == 1 else f"{windows} windows"
            yield f"{say.size(streamed)} stream in each pass, for each {each}"
    elif "n_gpu_layers" in facts:
        rest = "" if facts["n_gpu_layers"] == facts["layers"] else ", the others in RAM"
        yield f"n_gpu_layers {facts['n_gpu_layers']} of {facts['layers']}{rest}"
        yield f"n_ctx {facts['n_ctx']}, KV {facts['kv_type']}"
    else:
        yield f"{facts['compute_type']}, batch {facts['batch_size']}"
        if facts["in_use"]:
            yield f"only while in use: {facts['in_use']}"


def _sentences(stage: StagePlan) -> Iterator[str]:
    """What gives way, and what a larger budget would better."""
    for share in stage.shares:
        if share.gives_way_bytes:
            size, back = say.size(share.gives_way_bytes), say.duration(share.return_ms)
            yield f"{share.engine} gives way: {size} less than in its own stage, back in {back}"
        if share.runs and share.better_bytes:
            size = say.size(share.better_bytes)
            yield f"{share.engine} would run at a better tier from {size} to share out"
        if share.runs and share.faster_bytes:
            size = say.size(share.faster_bytes)
            yield f"{share.engine} would run faster from {size} to share out"
