"""Options that load the same, and safe ones for the time after an engine died."""

from dataclasses import replace

import pytest

from coscheduler.core import events as ev
from coscheduler.core.commands import Load, Run, Unload
from coscheduler.core.model import Failure, JobState, Line, LineBytes, Option, RunLine, StageKind
from tests.core.build import A, description, job, limits
from tests.core.story import Story

ANALYZE = StageKind.ANALYZE
CRASH = Failure("ENGINE_CRASHED", "it aborted")


def variant(name: str, tier: int, run_bytes: int, base: str = "weights") -> Option:
    """100 bytes of weights, and a cache of its own size while something runs."""
    return Option(
        name=name,
        resident=(LineBytes(Line.WEIGHTS, 100),),
        run=(RunLine(Line.KV_CACHE, run_bytes),),
        quality_tier=tier,
        load_ms=100,
        run_ms_per_second=10,
        slice_ms_max=250,
        base=base,
    )


LARGE, SMALL = variant("large", 0, 200), variant("small", 3, 20)
SAFE = replace(variant("safe", 0, 150), is_safe=True, run_ms_per_second=20)


def story(*options: Option, capacity: int = 1000, **changes: int) -> Story:
    told = Story(capacity, limits(**changes))
    told.on(ev.Described(A, description(A, *options)))
    return told


def shrink(told: Story, capacity: int) -> None:
    told.on(ev.CapacityChanged(capacity, capacity))


def test_a_smaller_budget_takes_the_cache_alone() -> None:
    told = story(LARGE, SMALL)
    assert told.submit(job("jobs/1", ANALYZE)) == [Load(A, "large", "jobs/1")]
    assert told.loaded(A) == [Run(A, "jobs/1", 0)]
    told.done(A, "jobs/1")
    assert told.scheduler.ledger.bytes_of(A) == 110, "between runs only the weights are there"
    shrink(told, 200)
    assert told.submit(job("jobs/2", ANALYZE)) == [Run(A, "jobs/2", 0, "small")]
    assert told.scheduler.ledger.bytes_of(A) == 130
    told.done(A, "jobs/2")
    assert told.stored["jobs/2"].stages[0].option == "small"
    shrink(told, 1000)
    assert told.submit(job("jobs/3", ANALYZE)) == [Run(A, "jobs/3", 0, "large")]


@pytest.mark.parametrize("base", ["", "other weights"])
def test_options_of_another_base_need_a_load(base: str) -> None:
    told = story(LARGE, replace(SMALL, base=base))
    told.submit(job("jobs/1", ANALYZE))
    told.loaded(A)
    told.done(A, "jobs/1")
    shrink(told, 200)
    assert told.submit(job("jobs/2", ANALYZE)) == [Unload(A)]


def test_after_a_crash_the_safe_option_is_tried_once() -> None:
    told = story(LARGE, SMALL, SAFE, attempts_max=5)
    told.submit(job("jobs/1", ANALYZE))
    told.loaded(A)
    assert told.on(ev.EngineDied(A, CRASH)) == [Load(A, "safe", "jobs/1")]
    told.loaded(A)
    assert told.on(ev.EngineDied(A, CRASH)) == []
    assert told.state("jobs/1") is JobState.FAILED
    assert told.stored["jobs/1"].failure == CRASH


def test_the_first_option_is_trusted_again_after_a_while() -> None:
    told = story(LARGE, SAFE, oom_memory_ms=5000)
    told.submit(job("jobs/1", ANALYZE))
    told.loaded(A)
    told.on(ev.EngineDied(A, CRASH))
    told.loaded(A)
    told.done(A, "jobs/1")
    assert told.submit(job("jobs/2", ANALYZE)) == [Run(A, "jobs/2", 0)]
    told.done(A, "jobs/2")
    assert told.stored["jobs/2"].stages[0].option == "safe"
    assert told.scheduler.next_wakeup_ms is not None
    told.on(ev.Ticked(), after_ms=5000)
    assert told.submit(job("jobs/3", ANALYZE)) == [Run(A, "jobs/3", 0)]
    told.done(A, "jobs/3")
    told.on(ev.UnloadRequested(A))
    told.on(ev.Stopped(A))
    assert told.submit(job("jobs/4", ANALYZE)) == [Load(A, "large", "jobs/4")]


def test_an_engine_that_hung_is_tried_again_as_it_was() -> None:
    told = story(LARGE, SAFE)
    told.submit(job("jobs/1", ANALYZE))
    told.loaded(A)
    hung = Failure("ENGINE_HUNG", "silent")
    assert told.on(ev.EngineDied(A, hung)) == [Load(A, "large", "jobs/1")]
