"""The ODE from noise (t = 0) to sound (t = 1): midpoint rule, 16 steps, 32 evaluations.

A recording longer than a window runs in overlapping windows of equal length whose velocities are
averaged, tapered, at every evaluation; so the joints are decided together and leave no seam.
Windows are evaluated in cohorts of consecutive ones: what a cohort has in common (a layer that had
to be copied to the device) is needed once for all of it, and the bits do not depend on its size.
"""

import hashlib
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coscheduler.engines.separation.scheme import EVALUATIONS, STEPS

NOISE_BLOCK_FRAMES = 256
OVERLAP_PER_WINDOW = 6  # neighbours share at least a sixth of a window

Velocity = Callable[[Sequence[Tensor], range, int], Generator[None, None, list[Tensor]]]
"""(states [B, frames, channels] of windows, which windows, evaluation) -> velocities, in slices."""


@dataclass(frozen=True)
class Windows:
    """Windows of `frames` frames each that start at `starts` and cover 0 .. total."""

    total: int
    frames: int
    starts: tuple[int, ...]

    def slice(self, index: int) -> slice:
        """The frames of a window."""
        return slice(self.starts[index], self.starts[index] + self.frames)

    def cohorts(self, size: int) -> list[range]:
        """All windows in order, `size` at a time; the last cohort may have fewer."""
        count = len(self.starts)
        return [range(first, min(first + size, count)) for first in range(0, count, size)]


def plan_windows(total: int, frames_max: int) -> Windows:
    """The fewest windows that overlap enough; the starts are spread evenly, the last one ends at
    `total`.
    """
    if total <= frames_max:
        return Windows(total, total, (0,))
    overlap = -(-frames_max // OVERLAP_PER_WINDOW)
    count = -(-(total - overlap) // (frames_max - overlap))
    span = total - frames_max
    return Windows(total, frames_max, tuple(span * i // (count - 1) for i in range(count)))


def tapers(windows: Windows) -> Tensor:
    """The weight of each window at each of its frames, float32 [windows, frames]; over all windows
    that cover a frame they sum to 1. Where two overlap one falls as cos^2 while the other rises as
    sin^2, so that neither its first frame nor a kink in its slope can be noticed.
    """
    raw = torch.zeros(len(windows.starts), windows.frames)
    for index, start in enumerate(windows.starts):
        left = windows.frames if index == 0 else windows.starts[index - 1] + windows.frames - start
        last = index == len(windows.starts) - 1
        right = windows.frames if last else start + windows.frames - windows.starts[index + 1]
        rise = torch.ones(windows.frames) if index == 0 else _rise(windows.frames, left)
        fall = torch.ones(windows.frames) if last else _rise(windows.frames, right).flip(0)
        raw[index] = torch.minimum(rise, fall)
    sums = torch.zeros(windows.total)
    for index in range(len(windows.starts)):
        sums[windows.slice(index)] += raw[index]
    for index in range(len(windows.starts)):
        raw[index] /= sums[windows.slice(index)]
    return raw


def _rise(frames: int, overlap: int) -> Tensor:
    """sin^2 from 0 to 1 over the first `overlap` frames, then 1: float32 [frames]."""
    share = ((torch.arange(frames) + 0.5) / overlap).clamp(max=1)
    return torch.sin(share * (math.pi / 2)).square_()


def evaluation_times() -> Tensor:
    """The 32 times, float32: the start and the middle of each step. All are exact."""
    return torch.arange(EVALUATIONS, dtype=torch.float32) / EVALUATIONS


def draw_noise(seed: int, out: Tensor) -> None:
    """Fill `out` (float32 [frames, channels], on the CPU) with the state at t = 0.

    It is drawn in blocks of frames, each from the seed and its own number, so that neither the
    length of the recording nor the order of the windows changes the noise at a frame.
    """
    for start in range(0, out.shape[0], NOISE_BLOCK_FRAMES):
        digest = hashlib.sha256(f"{seed}:{start // NOISE_BLOCK_FRAMES}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        block = torch.randn(NOISE_BLOCK_FRAMES, out.shape[1], generator=generator)
        out[start : start + NOISE_BLOCK_FRAMES] = block[: out.shape[0] - start]


class Integration:
    """The ODE over one recording. What it works on is as long as the recording, on the host.

    `state` [B, total, channels] (float32) is carried from t = 0 to 1 in place; `middle` and `speed`
    are scratch of the same shape. Between two steps the state alone says where it stands, so that
    a copy of it is a point from which another run gets the same bits, whatever its `cohort` (the
    number of windows that are evaluated together).
    """

    def __init__(
        self,
        state: Tensor,
        middle: Tensor,
        speed: Tensor,
        windows: Windows,
        velocity: Velocity,
        cohort: int = 1,
    ) -> None:
        self._state, self._middle, self._speed = state, middle, speed
        self._windows, self._velocity = windows, velocity
        self._cohorts = windows.cohorts(cohort)
        self._weights = tapers(windows).to(state.device)[:, :, None]

    def step(self, index: int) -> Generator[int, None, None]:
        """One of the STEPS steps. Yields after every slice how many windows are done, of twice as
        many as there are. A step that is abandoned leaves the state as it was, unless it had come
        to its last statement.
        """
        length = 1.0 / STEPS
        count = len(self._windows.starts)
        yield from self._evaluate(self._state, 2 * index)
        torch.add(self._state, self._speed, alpha=length / 2, out=self._middle)
        for done in self._evaluate(self._middle, 2 * index + 1):
            yield count + done
        self._state.add_(self._speed, alpha=length)

    def _evaluate(self, at: Tensor, number: int) -> Generator[int, None, None]:
        """The velocity at `at` into the scratch: the weighted sum over the windows."""
        self._speed.zero_()
        for cohort in self._cohorts:
            states = [at[:, self._windows.slice(window)] for window in cohort]
            run = self._velocity(states, cohort, number)
            while True:
                try:
                    next(run)
                except StopIteration as stop:
                    parts: list[Tensor] = stop.value
                    break
                yield cohort.start
            for window, part in zip(cohort, parts, strict=True):
                self._add(part, window)
            yield cohort.stop

    def _add(self, part: Tensor, window: int) -> None:
        """A window's share of the weighted sum; that of the only window is the sum."""
        if len(self._windows.starts) == 1:
            self._speed.copy_(part)
        else:
            frames = self._windows.slice(window)
            self._speed[:, frames].addcmul_(part, self._weights[window])
