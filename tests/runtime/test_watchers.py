from dataclasses import replace

import pytest

from coscheduler.core.model import JobState
from coscheduler.errors import Exhausted
from coscheduler.runtime.api import JobSnapshot
from coscheduler.runtime.watchers import Watchers
from tests.core.build import job
from tests.runtime.support import run

FIRST = JobSnapshot(job())
FINAL = JobSnapshot(replace(job(), state=JobState.SUCCEEDED))


async def read_first() -> JobSnapshot:
    return FIRST


def test_a_slow_reader_misses_old_snapshots_but_never_the_last() -> None:
    async def story() -> None:
        watchers = Watchers(1)
        watch = watchers.watch("jobs/1", read_first)
        assert await anext(watch) == FIRST
        for waiting_for in ("a", "b", "c"):
            watchers.publish(replace(FIRST, waiting_for=waiting_for))
        assert (await anext(watch)).waiting_for == "c"
        watchers.publish(FIRST)
        watchers.publish(FINAL)
        assert [snapshot async for snapshot in watch] == [FINAL]
        assert watchers.count == 0

    run(story())


def test_what_happens_while_the_first_is_read_is_not_lost() -> None:
    async def story() -> None:
        watchers = Watchers(1)

        async def read_while_it_ends() -> JobSnapshot:
            watchers.publish(FINAL)
            return FIRST

        seen = [snapshot async for snapshot in watchers.watch("jobs/1", read_while_it_ends)]
        assert seen == [FIRST, FINAL]

    run(story())


def test_the_number_of_watchers_is_bounded() -> None:
    async def story() -> None:
        watchers = Watchers(1)
        watch = watchers.watch("jobs/1", read_first)
        await anext(watch)
        with pytest.raises(Exhausted, match="1 watches are open"):
            await anext(watchers.watch("jobs/1", read_first))
        await watch.aclose()
        assert watchers.count == 0

    run(story())
