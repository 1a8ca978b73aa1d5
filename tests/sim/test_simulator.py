"""Many seeded worlds: what must hold in every one of them."""

import os

import pytest

from coscheduler.core.model import JobState, StageState
from coscheduler.core.scheduler import Scheduler
from tests.sim.scenarios import random_world
from tests.sim.simulator import World

WORLDS = int(os.environ.get("SIMULATED_WORLDS", "200"))
SEEDS_CALM = range(WORLDS * 3 // 10)
SEEDS_BAD = range(1000, 1000 + WORLDS - len(SEEDS_CALM))


@pytest.mark.parametrize("seed", SEEDS_CALM)
def test_where_nothing_fails_every_job_that_is_accepted_succeeds(seed: int) -> None:
    world = random_world(seed, faults=0)
    world.run()
    assert len(world.stored) + len(world.refused) == 25
    for job in world.stored.values():
        assert job.state is JobState.SUCCEEDED, job
    assert set(world.refused.values()) <= {"NEVER_FITS", "QUALITY_TOO_LOW"}


@pytest.mark.parametrize("seed", SEEDS_BAD)
def test_where_much_fails_every_job_still_ends_and_says_how(seed: int) -> None:
    world = random_world(seed, faults=1)
    world.run()
    check_ends(world)


def check_ends(world: World) -> None:
    """Every job of a bad world has ended, for a reason, within the bounds of its attempts."""
    assert world.unfinished() == []
    limits = world.limits
    for job in world.stored.values():
        if job.state is JobState.FAILED:
            assert job.failure is not None
        if job.state is JobState.CANCELLED:
            assert job.name in world.cancelled
        if job.state is JobState.SUCCEEDED:
            assert all(stage.state is StageState.SUCCEEDED for stage in job.stages)
        for stage in job.stages:
            # An attempt that gave way or ran out of memory does not count, nor one that a
            # restart cut.
            failures_max = limits.attempts_max + world.tally.restarts
            spared = stage.preempt_count + stage.oom_count
            assert stage.attempt_count - spared <= failures_max
            earned = stage.run_ms // limits.ageing_ms
            assert stage.preempt_count <= limits.preempts_max + earned + world.shrink_count
            assert stage.oom_count <= limits.oom_steps_max
            assert min(stage.wait_ms, stage.load_ms, stage.run_ms) >= 0


def test_a_seed_is_a_run() -> None:
    def history(seed: int) -> dict[str, object]:
        world = random_world(seed, faults=1)
        world.run()
        return dict(world.stored)

    assert history(7) == history(7)
    assert history(7) != history(8)


@pytest.mark.parametrize("seed", range(2000, 2020))
def test_what_happened_decides_the_same_again(seed: int) -> None:
    world = random_world(seed, faults=1)
    world.run()
    if not world.history:
        return  # a restart was the last that happened to it
    state = world.history[0][0]
    assert state is not None
    again = Scheduler.from_state(state)
    for _, at_ms, event, outcome in world.history:
        assert again.handle(event, at_ms) == outcome
    assert again.state() == world.scheduler.state()
