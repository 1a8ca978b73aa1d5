"""The plan as a picture: for each stage a bar of ledger lines, up to the capacity.

Imported only when a picture is asked for: matplotlib is no part of the base install.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coscheduler.core.model import EngineName, Line
from coscheduler.errors import InvalidInput
from coscheduler.planning.stages import Plan, StagePlan

GIB = 1024**3
COLOURS = {
    EngineName.SEPARATION: "tab:blue",
    EngineName.TRANSCRIPTION: "tab:orange",
    EngineName.ANALYSIS: "tab:green",
}
FADE = {line: 1.0 - 0.08 * index for index, line in enumerate(Line)}  # lines of one engine


def draw(path: Path, found: Plan) -> None:
    """Write the picture; PNG, or SVG where the name ends so. Raises InvalidInput OUT_UNWRITABLE."""
    figure = Figure(figsize=(3 + 3 * len(found.stages), 6), layout="constrained")
    axis = figure.subplots()
    for place, stage in enumerate(found.stages):
        _bar(axis, place, stage)
    axis.set_xticks(
        range(len(found.stages)),
        [f"{stage.stage}\ntier {stage.quality_tier}" for stage in found.stages],
    )
    axis.axhline(found.capacity_bytes / GIB, color="black", linestyle="--", label="capacity")
    axis.set_ylabel("GiB on the device")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, path)


def _bar(axis: Axes, place: int, stage: StagePlan) -> None:
    bottom = 0.0
    for share in stage.shares:
        for entry in share.lines:
            label = f"{share.engine} {entry.line}"
            known = label in axis.get_legend_handles_labels()[1]
            axis.bar(
                place, entry.bytes / GIB, bottom=bottom, width=0.6, edgecolor="white",
                color=COLOURS[share.engine], alpha=FADE[entry.line], label="" if known else label,
            )  # fmt: skip
            bottom += entry.bytes / GIB


def _save(figure: Figure, path: Path) -> None:
    kind = "svg" if path.suffix.lower() == ".svg" else "png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format=kind, dpi=100)
    except OSError as error:
        text = f"cannot write {path}: {error.strerror}"
        raise InvalidInput("OUT_UNWRITABLE", text, out=path) from None
