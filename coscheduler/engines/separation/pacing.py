"""Slices out of steps, and where the time went."""

import time
from collections import defaultdict
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from coscheduler.engines.base import Slice
from coscheduler.engines.separation.scheme import STEPS
from coscheduler.engines.separation.separate import Separated
from coscheduler.engines.separation.steps import Phase, Step

SLICE_MS = 50  # a slice ends at the first chance after this; the chances are layers and codec tiles

Result = TypeVar("Result")


@dataclass(frozen=True)
class Paced(Generic[Result]):
    """What the steps returned, and the seconds that each phase worked; pauses do not count."""

    result: Result
    seconds: Mapping[Phase, float]


def paced(steps: Generator[Step, None, Result]) -> Generator[Slice, None, Paced[Result]]:
    """A slice for the first step after SLICE_MS; steps that come sooner are passed over."""
    seconds: defaultdict[Phase, float] = defaultdict(float)
    phase: Phase = "read"
    begun = slice_begun = time.monotonic()
    while True:
        try:
            step = next(steps)
        except StopIteration as stop:
            seconds[phase] += time.monotonic() - begun
            return Paced(stop.value, seconds)
        now = time.monotonic()
        phase = step.phase
        seconds[phase] += now - begun
        begun = now
        if (now - slice_begun) * 1000 >= SLICE_MS:
            yield Slice(step.done, step.total, step.note)
            begun = slice_begun = time.monotonic()


def numbers(separated: Separated, seconds: Mapping[Phase, float], load_ms: int) -> dict[str, int]:
    """The report of a stage: counts, and milliseconds by phase; `step_ms` is the mean of the ODE
    steps that this attempt did, over all windows.
    """
    drawn = len(separated.judged)
    steps = max(1, drawn * STEPS - separated.resumed_steps)
    phases: tuple[Phase, ...] = ("read", "text", "encode", "sample", "decode", "mark", "write")
    milliseconds = {f"{phase}_ms": round(1000 * seconds.get(phase, 0)) for phase in phases}
    return {
        "sample_count": len(separated.mixture),
        "window_count": separated.window_count,
        "token_count": separated.token_count,
        "candidate_count": drawn,
        "empty_count": sum(judged.is_empty for judged in separated.judged),
        "chosen_seed": separated.chosen.seed,
        "resumed_step_count": separated.resumed_steps,
        "load_ms": load_ms,
        **milliseconds,
        "step_ms": round(1000 * seconds.get("sample", 0) / steps),
    }
