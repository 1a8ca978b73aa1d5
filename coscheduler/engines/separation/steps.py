"""How far a separation is: what is said at every chance to pause, and the sizes of the pieces."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

from coscheduler.engines.separation.sampler import Windows
from coscheduler.engines.separation.scheme import EVALUATIONS, STEPS, Limits

Phase = Literal["read", "text", "encode", "sample", "decode", "rank", "mark", "write", "point"]


@dataclass(frozen=True)
class Step:
    """Progress: `done` of `total` units (0 = not known yet) and what is being done."""

    phase: Phase
    done: int
    total: int
    note: str


Steps = Generator[Step, None, None]


class Progress:
    """Counts units over all candidates: codec tiles, and windows of the transformer.

    The total is that of the candidates asked for; a redraw adds its own when it begins.
    """

    def __init__(self, windows: Windows, limits: Limits, candidates: int) -> None:
        self._windows = len(windows.starts)
        self._encode = -(-windows.total // limits.encode_tile_frames)
        self._decode = -(-windows.total // limits.decode_tile_frames)
        self._sample = EVALUATIONS * self._windows
        self._candidates, self._candidate = candidates, 0

    @property
    def total(self) -> int:
        """Units in all, as far as is known now."""
        return self._encode + self._candidates * (self._sample + self._decode)

    def begin(self, candidate: int) -> None:
        """Go on with a candidate, the first is 0."""
        self._candidate = candidate
        self._candidates = max(self._candidates, candidate + 1)

    def encoded(self, tiles: int) -> Step:
        """So many tiles of the way in are done."""
        return Step("encode", tiles, self.total, "encoding")

    def sampled(self, step: int, windows: int) -> Step:
        """`windows` of the two evaluations of ODE step `step` (from 0) are done."""
        done = self._before() + 2 * step * self._windows + windows
        window = min(windows % self._windows + 1, self._windows)
        note = f"{self._which()}step {step + 1} of {STEPS}, window {window} of {self._windows}"
        return Step("sample", done, self.total, note)

    def decoded(self, tiles: int) -> Step:
        """So many tiles of the way out are done."""
        done = self._before() + self._sample + tiles
        return Step("decode", done, self.total, f"{self._which()}decoding")

    def waiting(self, phase: Phase, note: str) -> Step:
        """Work that counts no units, with the candidate's own all done."""
        done = self._before() + self._sample + self._decode
        return Step(phase, done, self.total, f"{self._which()}{note}")

    def _before(self) -> int:
        return self._encode + self._candidate * (self._sample + self._decode)

    def _which(self) -> str:
        if self._candidates == 1:
            return ""
        return f"candidate {self._candidate + 1} of {self._candidates}, "
