"""Many seeded worlds: what must hold in every one of them."""

import pytest

from coscheduler.core.model import JobState, StageState
from tests.sim.simulator import World

SEEDS_CALM = range(100)
SEEDS_BAD = range(1000, 1200)


@pytest.mark.parametrize("seed", SEEDS_CALM)
def test_where_nothing_fails_every_job_that_can_fit_succeeds(seed: int) -> None:
    world = World(seed, faults=0)
    world.arrive(25)
    world.run()
    assert world.stored
    for job in world.stored.values():
        never_fits = job.failure is not None and job.failure.reason == "NEVER_FITS"
        assert job.state is JobState.SUCCEEDED or never_fits, job


@pytest.mark.parametrize("seed", SEEDS_BAD)
def test_where_much_fails_every_job_still_ends_and_says_how(seed: int) -> None:
    world = World(seed, faults=1)
    world.arrive(25)
    world.run()
    assert world.unfinished() == []
    for job in world.stored.values():
        if job.state is JobState.FAILED:
            assert job.failure is not None
        if job.state is JobState.CANCELLED:
            assert job.name in world.cancelled
        if job.state is JobState.SUCCEEDED:
            assert all(stage.state is StageState.SUCCEEDED for stage in job.stages)
        for stage in job.stages:
            # A preempted attempt does not count, nor does one that a restart cut.
            failures_max = world.limits.attempts_max + 1
            assert stage.attempt_count - stage.preempt_count <= failures_max
            assert stage.preempt_count <= world.limits.preempts_max + world.shrink_count
            assert min(stage.wait_ms, stage.load_ms, stage.run_ms) >= 0


def test_a_seed_is_a_run() -> None:
    def history(seed: int) -> dict[str, object]:
        world = World(seed, faults=1)
        world.arrive(25)
        world.run()
        return dict(world.stored)

    assert history(7) == history(7)
    assert history(7) != history(8)
