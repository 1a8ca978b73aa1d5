"""What a decision costs: microseconds per event of the real scheduler, by the length of the queue.

Times are of the processor: the scheduler waits for nothing.
Engines answer at once and a job that ends is followed by a new one, so the queue keeps its length.
Two cards are looked at: one where all engines fit side by side, and one where they must take turns,
so that nearly every event is a question of who gives way.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coscheduler.core import commands as cm
from coscheduler.core import events as ev
from coscheduler.core.engine_state import Limits
from coscheduler.core.model import (
    EngineDescription,
    EngineName,
    InputRef,
    Job,
    Line,
    LineBytes,
    Option,
    Output,
    Priority,
    RunLine,
    Stage,
    StageKind,
)
from coscheduler.core.scheduler import Scheduler

GIB = 2**30
DURATION_MS = 60_000
ROLES = {StageKind.SEPARATE: "target", StageKind.TRANSCRIBE: "transcript"}
CARDS = {"all engines fit": 40 * GIB, "engines take turns": 14 * GIB}
WEIGHTS_GIB = {EngineName.SEPARATION: 6, EngineName.TRANSCRIPTION: 4, EngineName.ANALYSIS: 10}


def main(arguments: list[str]) -> int:
    """Print the table; exit status 0."""
    chosen = parse(arguments)
    rows = [
        measured(card, capacity, count, chosen.rounds, chosen.events)
        for card, capacity in CARDS.items()
        for count in chosen.jobs
    ]
    print("card                 jobs   us of processor per event (median, lowest to highest round)")
    for row in rows:
        low, high = min(row["us_per_event"]), max(row["us_per_event"])
        print(
            f"{row['card']:20} {row['job_count']:5} {row['median_us']:8.1f}   {low:.1f}-{high:.1f}"
        )
    if chosen.out:
        chosen.out.write_text(json.dumps({"python": sys.version, "rows": rows}, indent=1) + "\n")
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/measure scheduling", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--jobs", type=int, nargs="+", default=[10, 100, 1000], help="queued")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--events", type=int, default=600, help="in each round")
    parser.add_argument("--out", type=Path, help="write the raw numbers as JSON")
    return parser.parse_args(arguments)


def measured(
    card: str, capacity_bytes: int, job_count: int, rounds: int, event_count: int
) -> dict[str, Any]:
    """One row of the table."""
    world = World(capacity_bytes, job_count)
    world.go(event_count)  # until the queue is in its usual order
    times = [world.go(event_count) for _ in range(rounds)]
    return {
        "card": card,
        "capacity_bytes": capacity_bytes,
        "job_count": job_count,
        "events_per_round": event_count,
        "us_per_event": [round(time_us, 2) for time_us in times],
        "median_us": round(statistics.median(times), 2),
    }


class World:
    """A scheduler with a queue that never gets shorter, and engines that answer at once."""

    def __init__(self, capacity_bytes: int, job_count: int) -> None:
        self._scheduler = Scheduler(capacity_bytes, tuple(EngineName), limits(job_count))
        self._jobs = numbered_jobs()
        self._answers: deque[ev.Event] = deque()
        self._now_ms = 1_000_000
        for engine in EngineName:
            self._take(ev.Described(engine, description(engine)))
        for _ in range(job_count):
            self._take(ev.Submitted(next(self._jobs)))

    def go(self, event_count: int) -> float:
        """So many events; microseconds of the scheduler for each."""
        return sum(self._take(self._next()) for _ in range(event_count)) / event_count

    @property
    def jobs(self) -> tuple[Job, ...]:
        """What is queued or running."""
        return self._scheduler.jobs

    def _next(self) -> ev.Event:
        return self._answers.popleft() if self._answers else ev.Ticked()

    def _take(self, event: ev.Event) -> float:
        self._now_ms += 20
        started = time.thread_time()
        outcome = self._scheduler.handle(event, self._now_ms)
        taken_us = 1e6 * (time.thread_time() - started)
        self._answers.extend(filter(None, map(self._answer, outcome.commands)))
        for job in outcome.changed:
            if job.state.is_final:
                self._answers.appendleft(ev.Submitted(next(self._jobs)))
        return taken_us

    def _answer(self, command: cm.Command) -> ev.Event | None:
        match command:
            case cm.Load(engine):
                resident = WEIGHTS_GIB[engine] * GIB
                return ev.Loaded(engine, GIB // 4, resident, load_ms=500)
            case cm.Run(engine, job, index):
                record = self._scheduler.job(job)
                assert record is not None
                role = ROLES.get(record.stages[index].kind, "analysis")
                outputs = (Output(role, f"artifacts/{job[5:]}-{index}", role),)
                return ev.StageDone(engine, job, outputs, (), GIB)
            case cm.Unload(engine):
                return ev.Unloaded(engine)
            case cm.Stop(engine):
                return ev.Stopped(engine)
        return None  # the others have no answer of their own


def limits(job_count: int) -> Limits:
    """Those of the default config, but for the length of the queue."""
    return Limits(
        queue_max=job_count + 1,
        attempts_max=3,
        preempts_max=8,
        ageing_ms=60_000,
        keep_alive_ms=300_000,
        compute_slots=2,
        processes_max=3,
        serial_loads=True,
        group_ms_max=10_000,
        resident_ms_min=2_000,
        oom_steps_max=4,
        oom_memory_ms=600_000,
        peak_tolerance_bytes=16 * 2**20,
    )


def description(engine: EngineName) -> EngineDescription:
    """Six options of the same quality, as an engine has whose layers can be streamed."""
    return EngineDescription(engine, "model", tuple(option(engine, k) for k in range(6)), GIB // 4)


def option(engine: EngineName, step: int) -> Option:
    """The fewer layers stay, the slower a run."""
    weights = WEIGHTS_GIB[engine] * GIB * (6 - step) // 6
    return Option(
        name=f"step {step}",
        resident=(LineBytes(Line.WEIGHTS, weights),),
        run=(RunLine(Line.WORKSPACE, GIB),),
        quality_tier=0,
        load_ms=500,
        run_ms_per_second=20 * (step + 1),
        slice_ms_max=250,
    )


def numbered_jobs() -> Iterator[Job]:
    """Separate, transcribe, analyze; every fifth one of a higher class."""
    for number in itertools.count(1):
        name = f"jobs/{number}"
        priority = Priority.INTERACTIVE if number % 5 == 0 else Priority.NORMAL
        stages = [Stage(StageKind.SEPARATE, "{}", InputRef(artifact="artifacts/in"), DURATION_MS)]
        for kind in (StageKind.TRANSCRIBE, StageKind.ANALYZE):
            source = InputRef(job=name, role=ROLES[stages[-1].kind])
            stages.append(Stage(kind, "{}", source, DURATION_MS))
        yield Job(name, name, priority, number, tuple(stages))
