"""Which of several candidates is kept: a score for each, the higher the better.

A ranker sees a candidate block by block, so that hours of samples need no memory and the work can
pause. One that listens to the meaning of the sound (CLAP) joins by one more entry in RANKERS.
"""

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from coscheduler.engines.separation.config import ModelConfig

BLOCK_SAMPLES = 1 << 20
SILENCE_RMS = 1e-4  # -80 dB of full scale
EMPTY_SHARE = 1e-3  # of the mixture's rms, -60 dB


class Ranker(Protocol):
    """One candidate on its way to a score."""

    def add(self, mixture: Tensor, target: Tensor, residual: Tensor) -> None:
        """The next block of all three signals, float32 [n] each, on the host."""
        ...

    def score(self) -> float:
        """The score of all blocks so far; only comparisons between candidates have a meaning."""
        ...


class Consistency:
    """How well target and residual together rebuild the mixture: a ratio of energies in dB.

    Both are generated, so their sum is the mixture only as far as the model separated cleanly.
    """

    def __init__(self, config: ModelConfig, prompt: str) -> None:
        del config, prompt  # what a ranker that understands the prompt will need
        self._mixture = self._error = 0.0

    def add(self, mixture: Tensor, target: Tensor, residual: Tensor) -> None:
        """Sum the energies of a block, in float64: hours of squares lose digits in float32."""
        self._mixture += _energy(mixture)
        self._error += _energy(mixture - target - residual)

    def score(self) -> float:
        """10 log10(mixture / (mixture - target - residual)), dB; inf where nothing is missing."""
        if self._error == 0:
            return math.inf
        return 10 * math.log10(max(self._mixture, 1e-30) / self._error)


MakeRanker = Callable[[ModelConfig, str], Ranker]
RANKERS: Mapping[str, MakeRanker] = {"consistency": Consistency}


@dataclass(frozen=True)
class Judged:
    """What is known of a finished candidate. Levels are root mean squares of full scale 1."""

    seed: int
    score: float
    mixture_rms: float
    target_rms: float

    @property
    def is_silent(self) -> bool:
        """The recording itself has nothing in it."""
        return self.mixture_rms < SILENCE_RMS

    @property
    def is_empty(self) -> bool:
        """The recording has sound and the target has none of it."""
        return not self.is_silent and self.target_rms < EMPTY_SHARE * self.mixture_rms

    def beats(self, other: "Judged") -> bool:
        """A target with sound before an empty one, then by the score; of equals the first stays."""
        return (not self.is_empty, self.score) > (not other.is_empty, other.score)


def judge(
    ranker: Ranker, seed: int, mixture: Tensor, signals: Tensor
) -> Generator[None, None, Judged]:
    """Score signals [2, N] (target, residual) against the mixture [N]; pauses after each block."""
    energies = [0.0, 0.0]
    for start in range(0, len(mixture), BLOCK_SAMPLES):
        block = slice(start, start + BLOCK_SAMPLES)
        target, residual = signals[:, block]
        ranker.add(mixture[block], target, residual)
        energies[0] += _energy(mixture[block])
        energies[1] += _energy(target)
        yield
    mixture_rms, target_rms = (math.sqrt(energy / len(mixture)) for energy in energies)
    return Judged(seed, ranker.score(), mixture_rms, target_rms)


def _energy(samples: Tensor) -> float:
    return float(torch.sum(samples.square(), dtype=torch.float64))
