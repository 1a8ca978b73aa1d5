"""Worlds drawn from a seed: their engines, limits, jobs, and what disturbs them."""

import random
from dataclasses import replace

from coscheduler.core import events as ev
from coscheduler.core.engine_state import Limits
from coscheduler.core.model import (
    EngineDescription,
    EngineName,
    Line,
    LineBytes,
    Option,
    Priority,
    RunLine,
    StageKind,
    total_bytes,
)
from tests.core.build import job
from tests.sim.simulator import Setup, World

KINDS = tuple(StageKind)


def random_world(seed: int, faults: float, count: int = 25) -> World:
    """A world with `count` jobs; with `faults` also cancels, neighbours, controls and crashes."""
    rng = random.Random(seed)
    setup = Setup(
        capacity=rng.randint(150, 600),
        limits=random_limits(rng),
        descriptions={engine: random_description(engine, rng) for engine in EngineName},
        faults=faults,
    )
    world = World(setup, rng)
    end_ms = add_jobs(world, count)
    if faults:
        disturb(world, end_ms)
    return world


def random_limits(rng: random.Random) -> Limits:
    return Limits(
        queue_max=1000,
        attempts_max=3,
        preempts_max=rng.choice((0, 2, 8)),
        ageing_ms=rng.choice((1_000, 60_000)),
        keep_alive_ms=rng.choice((500, 300_000)),
        compute_slots=rng.randint(1, 3),
        processes_max=rng.randint(1, 3),
        serial_loads=rng.random() < 0.3,
        group_ms_max=rng.choice((0, 3_000)),
        resident_ms_min=rng.choice((0, 2_000)),
        oom_steps_max=rng.choice((0, 4)),
        oom_memory_ms=60_000,
        peak_tolerance_bytes=rng.choice((0, 5)),
    )


def random_description(engine: EngineName, rng: random.Random) -> EngineDescription:
    def option(index: int) -> Option:
        return Option(
            name=f"option {index}",
            resident=(LineBytes(Line.WEIGHTS, rng.randint(10, 120)),),
            run=random_run(rng),
            quality_tier=rng.choice((0, 0, 1)),
            load_ms=rng.randint(1, 500),
            run_ms_per_second=rng.randint(1, 50),
            slice_ms_max=250,
        )

    options = [option(index) for index in range(rng.randint(1, 4))]
    if rng.random() < 0.6:
        options = family(options[0], rng) + options[2:]
    return EngineDescription(engine, "simulated", tuple(options), rng.randint(1, 20))


def random_run(rng: random.Random) -> tuple[RunLine, ...]:
    """In every other option it grows with the recording, up to a window of half a minute."""
    growth = rng.choice((0, 1))
    return (RunLine(Line.WORKSPACE, rng.randint(1, 40), growth, seconds_max=30),)


def family(whole: Option, rng: random.Random) -> list[Option]:
    """`whole` and others with fewer layers, each slower and with a run of its own size."""
    size = total_bytes(whole.resident)
    return [
        replace(
            whole,
            name=f"{whole.name}, {eighths} eighths",
            family="layers",
            resident=(LineBytes(Line.WEIGHTS, max(1, size * eighths // 8)),),
            run=random_run(rng),
            run_ms_per_second=whole.run_ms_per_second + 10 * (8 - eighths),
        )
        for eighths in (8, 5, 3, 1)
    ]


def add_jobs(world: World, count: int) -> int:
    """Jobs at random times; returns when the last one comes."""
    rng, at_ms = world.random, 0
    for index in range(count):
        at_ms += rng.choice((0, 1, 50, 2_000))
        first, last = sorted((rng.randrange(3), rng.randrange(3)))
        made = job(
            f"jobs/{index:03d}",
            *KINDS[first : last + 1],
            priority=rng.choice(list(Priority)),
            arrival_ms=at_ms,
        )
        length_ms = rng.choice((1_000, 10_000, 60_000))
        stages = tuple(replace(stage, duration_ms=length_ms) for stage in made.stages)
        made = replace(made, stages=stages)
        if rng.random() < 0.2:
            made = replace(made, quality_min=rng.choice((0, 1)), deadline_ms=at_ms + 5_000)
        world.at(at_ms, ev.Submitted(made))
    return at_ms


def disturb(world: World, end_ms: int) -> None:
    """Cancels, a neighbour that takes memory, an operator; all is as before at `end_ms`."""
    rng = world.random
    for index in range(end_ms // 1_000):
        at_ms = 1_000 * index
        if rng.random() < 0.3:
            name = f"jobs/{rng.randrange(25):03d}"
            world.cancelled.add(name)
            for _ in range(rng.choice((1, 2))):
                world.at(at_ms + rng.randint(0, 5_000), ev.CancelRequested(name))
        if rng.random() < 0.2:
            capacity = world.capacity * rng.choice((25, 50, 75, 100)) // 100
            budget = rng.choice((None, world.capacity))
            world.at(at_ms, ev.CapacityChanged(capacity, budget))
        if rng.random() < 0.2:
            world.at(at_ms, _operator(rng))
    world.at(end_ms, ev.CapacityChanged(world.capacity))
    world.at(end_ms, ev.DrainEnded())
    for engine in EngineName:
        world.at(end_ms, ev.PinRequested(engine, False))


def _operator(rng: random.Random) -> ev.Event:
    engine = rng.choice(list(EngineName))
    return rng.choice(
        (
            ev.PinRequested(engine, True),
            ev.PinRequested(engine, False),
            ev.LoadRequested(engine),
            ev.UnloadRequested(engine),
            ev.DrainRequested(),
            ev.DrainEnded(),
        )
    )
