"""Two ways of doing the same, measured in turns: the ratio and how sure it is."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """The median of ratios of rounds, with the 95 % interval of a seeded bootstrap."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f}, {self.rounds} rounds)"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Ours / theirs, round by round: what disturbs a round disturbs both of its halves."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    rng = random.Random(0)  # noqa: S311 resampling, not secrets
    medians = sorted(
        statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES)
    )
    low, high = medians[RESAMPLES * 25 // 1000], medians[RESAMPLES * 975 // 1000]
    return Ratio(statistics.median(ratios), low, high, len(ratios))
