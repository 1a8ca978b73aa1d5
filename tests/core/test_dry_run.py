"""The plan of a job is what then happens, and making it changes nothing."""

from dataclasses import replace

from coscheduler.core import events as ev
from coscheduler.core.dry_run import plan_job
from coscheduler.core.model import JobState, Priority, StageKind, StageState
from tests.core.build import S, T, description, job, limits, option
from tests.core.story import Story

ALL = tuple(StageKind)


def test_a_job_on_an_empty_device_loads_each_engine_and_ends_after_the_predicted_times() -> None:
    story = Story()
    before = story.scheduler.state()
    plan = plan_job(before, job("jobs/new", *ALL))
    assert plan.refusal is None
    assert [stage.state for stage in plan.job.stages] == [StageState.SUCCEEDED] * 3
    for stage in plan.job.stages:
        assert (stage.option, stage.load_ms, stage.run_ms) == ("full", 100, 100)
        assert stage.predicted_peak_bytes == 120 and stage.evicted == ()
    assert plan.end_ms == story.now_ms + 3 * (100 + 100)
    assert any("load separation as 'full' for jobs/new" in text for text in plan.decisions)
    assert story.scheduler.state() == before


def test_the_plan_names_what_is_evicted_and_waited_for() -> None:
    story = Story(capacity=200)
    story.submit(job("jobs/1"))
    story.loaded(S)
    plan = plan_job(story.scheduler.state(), job("jobs/2", StageKind.TRANSCRIBE))
    stage = plan.job.stages[0]
    assert stage.evicted == ("separation: full",)
    assert any("memory" in reason for reason in stage.waited_for)
    assert stage.wait_ms >= 100, "the running stage ends first"


def test_a_loaded_engine_is_used_as_it_is() -> None:
    story = Story()
    story.submit(job("jobs/1"))
    story.loaded(S)
    story.done(S, "jobs/1")
    stage = plan_job(story.scheduler.state(), job("jobs/2")).job.stages[0]
    assert (stage.load_ms, stage.wait_ms) == (0, 0)


def test_a_refusal_is_a_plan_too() -> None:
    story = Story(capacity=100)
    plan = plan_job(story.scheduler.state(), job("jobs/1"))
    assert plan.refusal is not None and plan.refusal.reason == "NEVER_FITS"
    assert dict(plan.refusal.numbers)["required_bytes"] == "130"
    assert plan.end_ms is None


def test_what_would_wait_for_ever_says_for_what() -> None:
    story = Story(capacity=200)
    story.submit(job("jobs/1"))
    story.loaded(S)
    story.done(S, "jobs/1")
    story.on(ev.PinRequested(S, True))
    plan = plan_job(story.scheduler.state(), job("jobs/2", StageKind.TRANSCRIBE))
    assert plan.end_ms is None and plan.refusal is None
    assert "separation is pinned" in " ".join(plan.job.stages[0].waited_for)


def test_a_plan_begun_while_engines_pause_and_leave_still_ends() -> None:
    story = Story(lim=limits(compute_slots=1))
    story.submit(job("jobs/batch", priority=Priority.BATCH))
    story.loaded(S)
    story.submit(job("jobs/urgent", StageKind.TRANSCRIBE, priority=Priority.INTERACTIVE))
    story.loaded(T)
    for event in (None, ev.Paused(S, "jobs/batch"), ev.UnloadRequested(S)):
        if event is not None:
            story.on(event)
        plan = plan_job(story.scheduler.state(), job("jobs/new", *ALL))
        assert plan.job.state is JobState.SUCCEEDED and plan.end_ms is not None


def test_a_plan_uses_the_times_that_were_learned() -> None:
    story = Story()
    story.submit(job("jobs/1"))
    story.loaded(S)
    story.done(S, "jobs/1")  # 100 ms after it began, for 10 s of audio; the load took 5 ms
    twice = replace(job("jobs/2").stages[0], duration_ms=20_000)
    plan = plan_job(story.scheduler.state(), replace(job("jobs/2"), stages=(twice,)))
    assert plan.job.stages[0].run_ms == 200


def test_the_smaller_option_is_planned_where_the_larger_does_not_fit() -> None:
    story = Story(capacity=100)
    story.on(ev.Described(S, description(S, option("big"), option("small", 40, speed=50))))
    stage = plan_job(story.scheduler.state(), job()).job.stages[0]
    assert (stage.option, stage.run_ms) == ("small", 500)
