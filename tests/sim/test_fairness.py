"""Bounds under the worst arrivals: how long anybody waits, and how often engines are loaded."""

import random

import pytest

from coscheduler.core import events as ev
from coscheduler.core.engine_state import KEEP_LOADS, Limits
from coscheduler.core.model import EngineName, JobState, Priority, StageKind
from tests.core.build import description, job, limits, option
from tests.sim.scenarios import KINDS
from tests.sim.simulator import RELEASE_MS, SLICE_MS, STOP_MS, STOPPING_MS, Setup, World

LOAD_MS, RUN_MS = 100, 100  # of `option()`, for the ten seconds of `job()`
CLASSES = tuple(Priority)


def narrow_world(seed: int, lim: Limits) -> World:
    """Three engines of which one fits at a time; nothing fails."""
    engines = {engine: description(engine, option()) for engine in EngineName}
    return World(Setup(capacity=145, limits=lim, descriptions=engines), random.Random(seed))


def wait_ms_max(ahead_count: int, lim: Limits) -> int:
    """The bound of DESIGN.md: what is ahead of a job, with each stage at its worst.

    For each stage ahead of it, and for each of its own: the work that it found running and the work
    that an engine in memory was allowed to finish first, a hold, an eviction, a load, and the run.
    """
    leave = RELEASE_MS + STOP_MS + STOPPING_MS + SLICE_MS
    kept = max(lim.resident_ms_min, KEEP_LOADS * LOAD_MS)
    stage = 2 * (LOAD_MS + RUN_MS + leave) + lim.group_ms_max + RUN_MS + kept
    return len(KINDS) * (ahead_count + 1) * stage


@pytest.mark.parametrize("group_ms_max", [0, 2_000])
@pytest.mark.parametrize("seed", range(6))
def test_nobody_waits_longer_than_the_bound_whatever_arrives(seed: int, group_ms_max: int) -> None:
    lim = limits(
        ageing_ms=5_000, preempts_max=2, compute_slots=2, group_ms_max=group_ms_max,
        resident_ms_min=500,
    )  # fmt: skip
    world = narrow_world(seed, lim)
    victim = job("jobs/victim", *KINDS, priority=Priority.BATCH, arrival_ms=1_000)
    world.at(1_000, ev.Submitted(victim))
    horizon_ms = 60_000
    ahead = 0
    for index in range(horizon_ms // 250):  # more than can ever be done, of the higher classes
        at_ms = 250 * index
        priority = world.random.choice((Priority.NORMAL, Priority.INTERACTIVE))
        kind = world.random.choice(KINDS)
        rival = job(f"jobs/{index:04d}", kind, priority=priority, arrival_ms=at_ms)
        ahead += at_ms - int(priority) * lim.ageing_ms <= victim.arrival_ms + RUN_MS
        world.at(at_ms, ev.Submitted(rival))
    world.run()
    ended = world.stored["jobs/victim"]
    assert ended.state is JobState.SUCCEEDED
    assert ended.finished_ms - victim.arrival_ms <= wait_ms_max(ahead, lim)
    assert ended.finished_ms < max(each.finished_ms for each in world.stored.values())


@pytest.mark.parametrize("group_ms_max", [0, 3_000])
def test_two_streams_of_work_do_not_thrash(group_ms_max: int) -> None:
    """Every load serves a stage; with grouping, as many as there is time for."""
    world = narrow_world(1, limits(group_ms_max=group_ms_max))
    kinds = (StageKind.SEPARATE, StageKind.TRANSCRIBE)
    for index in range(60):
        made = job(f"jobs/{index:03d}", kinds[index % 2], arrival_ms=index)
        world.at(index, ev.Submitted(made))
    world.run()
    assert world.tally.runs == 60
    assert world.tally.loads <= world.tally.runs
    assert world.tally.preemptions == 0
    if group_ms_max:
        span_ms = max(each.finished_ms for each in world.stored.values())
        turns = span_ms // group_ms_max + 2
        assert world.tally.loads <= 2 * turns < world.tally.runs // 4
    else:
        assert world.tally.loads == world.tally.runs


def test_classes_force_loads_only_within_the_bound_of_preemptions() -> None:
    lim = limits(preempts_max=2, resident_ms_min=1_000, ageing_ms=600_000)
    world = narrow_world(1, lim)
    world.at(0, ev.Submitted(job("jobs/batch", priority=Priority.BATCH, arrival_ms=0)))
    for index in range(20):
        at_ms = 60 + 700 * index
        urgent = job(
            f"jobs/{index:03d}", StageKind.TRANSCRIBE, priority=Priority.INTERACTIVE,
            arrival_ms=at_ms,
        )  # fmt: skip
        world.at(at_ms, ev.Submitted(urgent))
    world.run()
    batch = world.stored["jobs/batch"]
    assert batch.state is JobState.SUCCEEDED
    assert batch.stages[0].preempt_count <= 2
    assert world.tally.loads <= 2 * (2 + 2), "what the higher class uses is kept for it"


@pytest.mark.parametrize("seed", range(10))
def test_a_higher_class_waits_for_a_slice_and_a_load_and_not_for_the_stage(seed: int) -> None:
    """Whatever of a lower class is under way: it stops or pauses, leaves, and the engine comes."""
    slow = {engine: description(engine, option(speed=1_000)) for engine in EngineName}
    world = World(Setup(145, limits(compute_slots=1), slow), random.Random(seed))
    world.at(0, ev.Submitted(job("jobs/batch", priority=Priority.BATCH, arrival_ms=0)))
    at_ms = world.random.randint(0, 5_000)
    kind = world.random.choice(KINDS)
    urgent = job("jobs/urgent", kind, priority=Priority.INTERACTIVE, arrival_ms=at_ms)
    world.at(at_ms, ev.Submitted(urgent))
    world.run()
    stage = world.stored["jobs/urgent"].stages[0]
    assert stage.wait_ms <= LOAD_MS + SLICE_MS + STOPPING_MS + RELEASE_MS + STOP_MS
    assert world.stored["jobs/batch"].state is JobState.SUCCEEDED


def test_cancels_in_every_state_any_number_of_times_leave_nothing() -> None:
    for at_ms in range(0, 700, 7):
        world = narrow_world(at_ms, limits())
        world.at(0, ev.Submitted(job("jobs/1", *KINDS, arrival_ms=0)))
        for late_ms in (0, 1, 60):
            world.at(at_ms + late_ms, ev.CancelRequested("jobs/1"))
        world.run()
        assert world.stored["jobs/1"].state is JobState.CANCELLED
