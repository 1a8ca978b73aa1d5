"""Spectrograms of recordings, one below the other, as one PNG.

Imported only when a picture is asked for: matplotlib, numpy and av are no part of the base install.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from coscheduler import audio
from coscheduler.errors import InvalidInput

RATE_HZ = 48_000
FRAME = 2048  # samples of one transform
COLUMNS_MAX = 2400  # more than a picture is wide
DECIBELS = 80.0  # from the loudest point of all pictures down

Array = NDArray[np.float32]


class Columns:
    """Power over time and frequency that grows to COLUMNS_MAX columns and no further: beyond that
    neighbours are merged, each keeping the louder of the two at every frequency.
    """

    def __init__(self) -> None:
        self._window = np.hanning(FRAME).astype(np.float32)
        self._rest = np.zeros(0, np.float32)
        self._columns: list[Array] = []
        self._group: list[Array] = []
        self._per_column = 1
        self.sample_count = 0

    def add(self, block: Array) -> None:
        """The next samples, float32 [n]."""
        self.sample_count += len(block)
        samples = np.concatenate((self._rest, block))
        whole = len(samples) // FRAME
        for frame in samples[: whole * FRAME].reshape(whole, FRAME):
            self._take(frame)
        self._rest = samples[whole * FRAME :]

    def decibels(self) -> Array:
        """[FRAME / 2 + 1, columns], relative to a full-scale sine."""
        self._take(np.pad(self._rest, (0, FRAME - len(self._rest))))
        columns = [*self._columns, *([np.max(self._group, axis=0)] if self._group else [])]
        power = np.stack(columns, axis=1)
        levels: Array = (10 * np.log10(np.maximum(power, 1e-12))).astype(np.float32)
        return levels

    def _take(self, frame: Array) -> None:
        amplitude = np.abs(np.fft.rfft(frame * self._window)) * (4 / FRAME)
        self._group.append(np.square(amplitude).astype(np.float32))
        if len(self._group) < self._per_column:
            return
        self._columns.append(np.max(self._group, axis=0))
        self._group = []
        if len(self._columns) == COLUMNS_MAX:
            pairs = zip(self._columns[::2], self._columns[1::2], strict=True)
            self._columns = [np.maximum(left, right) for left, right in pairs]
            self._per_column *= 2


def draw(path: Path, sources: Mapping[str, Path]) -> None:
    """Write the PNG: a spectrogram for each title and recording, all on one scale of colours.

    Raises InvalidInput OUT_UNWRITABLE, or what `audio` raises for a recording.
    """
    figure = Figure(figsize=(12, 3 * len(sources)), layout="constrained")
    axes = np.atleast_1d(np.asarray(figure.subplots(len(sources), 1, sharex=True)))
    pictures = [_columns(source) for source in sources.values()]
    levels = [picture.decibels() for picture in pictures]
    loudest = max(float(level.max()) for level in levels)
    image: Any = None
    for axis, title, picture, level in zip(axes, sources, pictures, levels, strict=True):
        image = axis.imshow(
            level, origin="lower", aspect="auto", interpolation="nearest", cmap="magma",
            vmin=loudest - DECIBELS, vmax=loudest,
            extent=(0, picture.sample_count / RATE_HZ, 0, RATE_HZ / 2000),
        )  # fmt: skip
        axis.set_title(title, loc="left")
        axis.set_ylabel("kHz")
    axes[-1].set_xlabel("seconds")
    figure.colorbar(image, ax=list(axes), label="dB of full scale")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=100)
    except OSError as error:
        text = f"cannot write {path}: {error.strerror}"
        raise InvalidInput("OUT_UNWRITABLE", text, out=path) from None


def _columns(source: Path) -> Columns:
    columns = Columns()
    for block in audio.mono_blocks(source, RATE_HZ):
        columns.add(block)
    return columns
