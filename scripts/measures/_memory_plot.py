"""The picture of `memory`: for each cap a panel with the private memory over time below the cap."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

MIB = 1024 * 1024
COLUMNS = 3


def draw(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the picture, in the format that the name ends with."""
    count = -(-len(rows) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 2.6 * count), layout="constrained")
    axes = figure.subplots(count, COLUMNS, sharey=True, squeeze=False).flat
    for axis, row in zip(axes, rows, strict=False):
        seconds = [point[0] for point in row["curve"]]
        axis.fill_between(seconds, [point[1] / MIB for point in row["curve"]], alpha=0.6)
        predicted = row["context_bytes"] + row["predicted_peak_bytes"]
        axis.axhline(row["cap_bytes"] / MIB, color="black", linestyle="--", label="cap")
        axis.axhline(predicted / MIB, color="tab:red", linewidth=1, label="predicted peak")
        axis.set_title(f"{row['option']} under {row['cap_bytes'] / MIB:.0f} MiB", fontsize=10)
        axis.set_xlabel("seconds")
    figure.axes[0].legend(fontsize=8, loc="lower right")
    for axis in figure.axes[::COLUMNS]:
        axis.set_ylabel("private memory, MiB")
    for axis in figure.axes[len(rows) :]:
        axis.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
