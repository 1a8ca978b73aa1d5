"""Who stays in memory: leases, grouping, what a higher class used, and steps after running out."""

from dataclasses import replace

import pytest

from coscheduler.core import events as ev
from coscheduler.core.commands import Load, Pause, Preempt, Run, Stop, Unload
from coscheduler.core.ledger import Part
from coscheduler.core.model import (
    Failure,
    Job,
    JobState,
    Line,
    Priority,
    RunLine,
    StageKind,
)
from coscheduler.errors import Refused
from tests.core.build import A, S, T, description, job, limits, option
from tests.core.story import OOPS, Story

FULL = Failure("OUT_OF_MEMORY", "no more")
TRANSCRIBE, ANALYZE = StageKind.TRANSCRIBE, StageKind.ANALYZE


def idle_separation(story: Story, priority: Priority = Priority.NORMAL) -> None:
    story.submit(job("jobs/first", priority=priority))
    story.loaded(S)
    story.done(S, "jobs/first")


# ---- leases --------------------------------------------------------------------------------------


def test_a_loaded_engine_first_serves_the_job_that_it_was_loaded_for() -> None:
    story = Story(lim=limits(compute_slots=1))
    story.submit(job("jobs/other", StageKind.TRANSCRIBE))
    story.submit(job("jobs/asked", arrival_ms=9))
    story.loaded(T)
    assert story.submit(job("jobs/earlier", arrival_ms=0)) == []
    assert story.loaded(S) == [], "the slot is taken"
    assert story.scheduler.ledger.bytes_of(S, Part.RUN) == 20, "its run stays reserved"
    assert "loaded for jobs/asked" in story.scheduler.waiting_for("jobs/earlier")
    assert story.done(T, "jobs/other") == [Run(S, "jobs/asked", 0)]
    assert story.done(S, "jobs/asked") == [Run(S, "jobs/earlier", 0)]


def test_a_leased_engine_is_not_evicted_by_its_like_but_by_a_higher_class() -> None:
    story = Story(capacity=260, lim=limits(compute_slots=1))
    story.submit(job("jobs/other", TRANSCRIBE), job("jobs/asked", arrival_ms=9))
    story.loaded(T)
    story.loaded(S)
    assert story.submit(job("jobs/early", ANALYZE, arrival_ms=0)) == []
    urgent = job("jobs/urgent", ANALYZE, priority=Priority.INTERACTIVE, arrival_ms=9)
    assert story.submit(urgent) == [Stop(S)]
    assert story.scheduler.ledger.bytes_of(S, Part.RUN) == 0


def test_a_lease_that_a_higher_class_breaks_is_free_for_it_and_serves_nobody() -> None:
    grows = RunLine(Line.WORKSPACE, 20, bytes_per_second=1, seconds_max=60)
    story = Story(190, separation=replace(option(), run=(grows,)), transcription=option("t", 40))
    story.submit(job("jobs/first", TRANSCRIBE))
    story.loaded(T, resident=40)
    story.done(T, "jobs/first")  # 50 held
    story.submit(job("jobs/batch", priority=Priority.BATCH))
    story.on(ev.DrainRequested())
    story.loaded(S)  # 110 held, and 30 for the run of ten seconds
    urgent = job("jobs/urgent", priority=Priority.INTERACTIVE)
    story.submit(replace(urgent, stages=(replace(urgent.stages[0], duration_ms=60_000),)))
    assert story.on(ev.DrainEnded()) == [Stop(T)], "80 are needed, of which 30 are leased"
    assert "jobs/urgent" in story.scheduler.waiting_for("jobs/batch")
    assert story.on(ev.Stopped(T)) == [Run(S, "jobs/urgent", 0)]


def test_a_lease_ends_with_its_job() -> None:
    story = Story(lim=limits(compute_slots=1))
    story.submit(job("jobs/other", TRANSCRIBE), job("jobs/asked", arrival_ms=9))
    story.loaded(T)
    story.loaded(S)
    story.on(ev.CancelRequested("jobs/asked"))
    assert story.scheduler.engines[S].leased_to == ""
    assert story.scheduler.ledger.bytes_of(S, Part.RUN) == 0


def test_a_lease_is_not_used_while_the_budget_is_overdrawn() -> None:
    story = Story(capacity=400, lim=limits(compute_slots=1))
    story.on(ev.LoadRequested(A))
    story.loaded(A)
    story.submit(job("jobs/other", TRANSCRIBE), job("jobs/asked", arrival_ms=9))
    story.loaded(T)
    story.loaded(S)
    assert story.scheduler.ledger.used_bytes == 110 + 130 + 130
    assert story.on(ev.CapacityChanged(300)) == [Stop(A)]
    assert story.done(T, "jobs/other") == []
    assert "the budget shrank" in story.scheduler.waiting_for("jobs/asked")
    assert story.on(ev.Stopped(A)) == [Run(S, "jobs/asked", 0)]


# ---- grouping ------------------------------------------------------------------------------------


def grouping(group_ms_max: int) -> Story:
    """Separation runs and has more work; a job that ranks before that work needs its memory."""
    story = Story(capacity=200, lim=limits(group_ms_max=group_ms_max))
    story.submit(job("jobs/1"), job("jobs/head", TRANSCRIBE, arrival_ms=2))
    story.loaded(S)
    story.submit(job("jobs/3", arrival_ms=3), job("jobs/4", arrival_ms=4))
    return story


def test_work_for_an_engine_in_memory_goes_before_its_eviction_within_the_limit() -> None:
    story = grouping(group_ms_max=150)
    assert story.done(S, "jobs/1") == [Run(S, "jobs/3", 0)]
    assert "to do other work first" in story.scheduler.waiting_for("jobs/head")
    assert story.done(S, "jobs/3") == [Run(S, "jobs/4", 0)], "100 ms are over"
    story.submit(job("jobs/5", arrival_ms=5))
    assert story.done(S, "jobs/4") == [Unload(S)], "210 ms are over, and jobs/5 waits"
    assert story.on(ev.Unloaded(S)) == [Load(T, "full", "jobs/head")]


def test_without_a_limit_to_group_within_the_head_goes_first() -> None:
    assert grouping(group_ms_max=0).done(S, "jobs/1") == [Unload(S)]


def test_a_head_is_not_held_up_by_work_of_a_lower_class() -> None:
    story = Story(capacity=200, lim=limits(group_ms_max=10_000))
    story.submit(job("jobs/1"), job("jobs/head", TRANSCRIBE, arrival_ms=2))
    story.loaded(S)
    story.submit(job("jobs/batch", priority=Priority.BATCH, arrival_ms=3))
    assert story.done(S, "jobs/1") == [Unload(S)]


def test_the_end_of_a_hold_wakes_the_scheduler() -> None:
    story = grouping(group_ms_max=150)
    story.done(S, "jobs/1")
    assert story.scheduler.next_wakeup_ms == story.now_ms + 150


# ---- what a higher class used --------------------------------------------------------------------


def test_what_a_higher_class_used_is_kept_from_lower_ones_for_a_while() -> None:
    story = Story(capacity=200, lim=limits(resident_ms_min=2_000))
    idle_separation(story, Priority.INTERACTIVE)
    batch = job("jobs/batch", TRANSCRIBE, priority=Priority.BATCH)
    assert story.submit(batch) == []
    assert "separation is kept a little" in story.scheduler.waiting_for("jobs/batch")
    assert story.scheduler.next_wakeup_ms == story.now_ms - 10 + 2_000
    assert story.on(ev.Ticked(), after_ms=1_989) == []
    assert story.on(ev.Ticked(), after_ms=1) == [Unload(S)]


def test_what_a_higher_class_used_goes_at_once_for_its_like() -> None:
    story = Story(capacity=200, lim=limits(resident_ms_min=2_000))
    idle_separation(story, Priority.INTERACTIVE)
    assert story.submit(job("jobs/2", TRANSCRIBE, priority=Priority.INTERACTIVE)) == [Unload(S)]


def test_an_engine_that_loads_long_is_kept_for_three_loads() -> None:
    story = Story(capacity=2_100, lim=limits(resident_ms_min=2_000), separation=option("b", 2_000))
    story.submit(job("jobs/first", priority=Priority.INTERACTIVE))
    story.loaded(S, resident=2_000)
    story.done(S, "jobs/first")
    story.submit(job("jobs/batch", TRANSCRIBE, priority=Priority.BATCH))
    assert story.on(ev.Ticked(), after_ms=5_980) == []
    assert story.on(ev.Ticked(), after_ms=10) == [Unload(S)]


# ---- who gives way -------------------------------------------------------------------------------

OLD = job("jobs/old", priority=Priority.BATCH)
LATE_MS = 2 * 60_000 + 1_000  # a job of the highest class that comes then ranks after OLD


def late(kind: StageKind) -> Job:
    return job("jobs/late", kind, priority=Priority.INTERACTIVE, arrival_ms=LATE_MS)


def test_an_aged_stage_is_not_stopped_for_memory_nor_paused_for_a_slot() -> None:
    narrow = Story(capacity=200)
    narrow.submit(OLD)
    narrow.loaded(S)
    assert narrow.submit(late(TRANSCRIBE)) == []
    single = Story(lim=limits(compute_slots=1))
    single.submit(OLD)
    single.loaded(S)
    assert single.submit(late(TRANSCRIBE)) == [Load(T, "full", "jobs/late")]
    assert single.loaded(T) == []


def test_a_stage_gives_way_once_it_has_run_for_as_long_as_it_ranks_before() -> None:
    narrow = Story(capacity=200)
    narrow.submit(OLD)
    narrow.loaded(S)
    assert narrow.submit(late(TRANSCRIBE)) == []
    assert narrow.on(ev.Ticked(), after_ms=900) == []
    assert narrow.on(ev.Ticked(), after_ms=200) == [Preempt(S, "jobs/old")]
    assert narrow.on(ev.StageStopped(S, "jobs/old")) == [Unload(S)]
    assert narrow.on(ev.Unloaded(S)) == [Load(T, "full", "jobs/late")], "and the other comes first"


def test_a_long_stage_gives_way_once_more_for_every_ageing_time_that_it_has_run() -> None:
    story = Story(capacity=200, lim=limits(preempts_max=0, ageing_ms=1_000))
    story.submit(job("jobs/old", priority=Priority.BATCH, arrival_ms=1_000))
    story.loaded(S)
    urgent = job("jobs/urgent", TRANSCRIBE, priority=Priority.INTERACTIVE, arrival_ms=1_100)
    assert story.submit(urgent) == []
    assert story.on(ev.Ticked(), after_ms=900) == []
    assert story.on(ev.Ticked(), after_ms=100) == [Preempt(S, "jobs/old")]


def test_one_stage_is_paused_for_one_slot() -> None:
    story = Story(lim=limits(compute_slots=2))
    story.submit(OLD, job("jobs/batch", TRANSCRIBE, priority=Priority.BATCH, arrival_ms=99))
    story.loaded(S)
    story.loaded(T)
    story.submit(job("jobs/urgent", ANALYZE, priority=Priority.INTERACTIVE))
    assert story.loaded(A) == [Pause(T, "jobs/batch")], "the last in rank"
    assert story.on(ev.Ticked()) == []


def test_an_engine_that_a_job_before_it_waits_to_use_is_no_victim() -> None:
    story = Story(capacity=280, lim=limits(compute_slots=1))
    idle_separation(story)
    story.submit(job("jobs/long", TRANSCRIBE))
    story.loaded(T)
    story.submit(job("jobs/next", arrival_ms=5))
    assert "compute slot" in story.scheduler.waiting_for("jobs/next")
    assert story.submit(job("jobs/behind", ANALYZE, arrival_ms=9)) == []


def test_what_is_on_its_way_back_leaves_room_for_those_behind_the_head() -> None:
    story = Story(capacity=290, analysis=option(weights=30, run=20))
    idle_separation(story)
    story.on(ev.LoadRequested(A))
    story.loaded(A, resident=30)
    story.on(ev.PinRequested(A, True))
    assert story.scheduler.ledger.free_bytes == 290 - 110 - 40
    story.on(ev.Described(T, description(T, option(weights=140))))
    assert story.submit(job("jobs/head", TRANSCRIBE)) == [Unload(S)]
    assert story.submit(job("jobs/small", ANALYZE, arrival_ms=9)) == [Run(A, "jobs/small", 0)]


def test_an_engine_stays_for_its_own_run_when_what_is_on_its_way_back_will_do() -> None:
    story = Story(230, transcription=option("t", run=5))
    story.on(ev.Described(S, description(S, option("big"), option("small", 60, speed=20))))
    story.submit(job("jobs/1"), job("jobs/2", TRANSCRIBE))
    for engine, name in ((S, "jobs/1"), (T, "jobs/2")):
        story.loaded(engine)
        story.done(engine, name)
    assert story.on(ev.UnloadRequested(T)) == [Stop(T)]
    assert story.submit(job("jobs/3")) == [], "20 are needed, 10 are free"
    assert story.on(ev.Stopped(T)) == [Run(S, "jobs/3", 0)]


def test_an_engine_whose_option_does_not_even_fit_alone_goes_though_others_must_too() -> None:
    grows = RunLine(Line.WORKSPACE, 10, bytes_per_second=1, seconds_max=60)
    wide = replace(option("wide", 10), run=(grows,))
    story = Story(75, transcription=option("t", 13, run=1))
    story.on(ev.Described(S, description(S, wide, option("lean", 40))))
    assert story.submit(job("jobs/short")) == [Load(S, "wide", "jobs/short")]
    story.loaded(S, resident=10)
    story.done(S, "jobs/short")
    story.submit(job("jobs/other", TRANSCRIBE))
    story.loaded(T, resident=13)
    story.done(T, "jobs/other")
    long = job("jobs/long")
    long = replace(long, stages=(replace(long.stages[0], duration_ms=60_000),))
    assert story.submit(long) == [Unload(S)], "as it is, 90 would be needed"
    assert story.on(ev.Unloaded(S)) == [Stop(T)]
    assert story.on(ev.Stopped(T)) == [Load(S, "lean", "jobs/long")]


def test_an_engine_comes_again_as_less_beside_one_that_stays() -> None:
    story = Story(225, transcription=option("t", run=5))
    story.on(ev.Described(S, description(S, option("big"), option("small", 60, speed=20))))
    story.submit(job("jobs/1"), job("jobs/2", TRANSCRIBE))
    for engine, name in ((S, "jobs/1"), (T, "jobs/2")):
        story.loaded(engine)
        story.done(engine, name)
    story.on(ev.PinRequested(T, True))
    assert story.submit(job("jobs/3")) == [Unload(S)], "20 are needed, 5 are free"
    assert story.on(ev.Unloaded(S)) == [Load(S, "small", "jobs/3")]


def test_an_engine_stays_for_its_own_run_while_a_lower_class_is_being_stopped_for_it() -> None:
    story = Story(250)
    story.on(ev.Described(S, description(S, option("big"), option("small", 60, speed=20))))
    idle_separation(story)
    story.submit(job("jobs/batch", TRANSCRIBE, priority=Priority.BATCH))
    story.loaded(T)
    urgent = job("jobs/urgent", priority=Priority.INTERACTIVE)
    assert story.submit(urgent) == [Preempt(T, "jobs/batch")], "20 are needed, 10 are free"
    assert story.on(ev.Ticked()) == []
    assert story.on(ev.StageStopped(T, "jobs/batch")) == [Run(S, "jobs/urgent", 0)]


def test_nobody_evicts_behind_a_head_that_may_not() -> None:
    story = Story(capacity=240, lim=limits(resident_ms_min=2_000))
    idle_separation(story, Priority.INTERACTIVE)
    story.submit(job("jobs/second", ANALYZE, priority=Priority.INTERACTIVE))
    story.loaded(A)
    story.done(A, "jobs/second")
    story.on(ev.CapacityChanged(235))
    story.submit(job("jobs/old", TRANSCRIBE, priority=Priority.BATCH))
    assert "kept a little" in story.scheduler.waiting_for("jobs/old")
    assert story.submit(late(StageKind.SEPARATE)) == []
    assert story.on(ev.CancelRequested("jobs/old")) == [Unload(A)]


def test_an_engine_that_a_waiting_job_wants_does_not_leave_for_being_idle() -> None:
    story = Story(lim=limits(compute_slots=1))
    idle_separation(story)
    story.submit(job("jobs/long", TRANSCRIBE))
    story.loaded(T)
    story.submit(job("jobs/next", arrival_ms=5))
    assert story.on(ev.Ticked(), after_ms=400_000) == []
    assert story.on(ev.CancelRequested("jobs/next")) == [Unload(S)]


# ---- running out of memory -----------------------------------------------------------------------

BIG, SMALL = option("big", 100, 20, speed=1), option("small", 40, 20, speed=50)


def ladder(*options: object, **lim: int) -> Story:
    story = Story(capacity=200, lim=limits(**lim))
    story.on(ev.Described(S, description(S, *options)))  # type: ignore[arg-type]
    story.submit(job())
    return story


def test_a_stage_that_runs_out_of_memory_comes_again_with_a_smaller_option() -> None:
    story = ladder(BIG, SMALL)
    assert story.loaded(S) == [Run(S, "jobs/1", 0)]
    assert story.on(ev.StageFailed(S, "jobs/1", FULL, True, 120)) == [Unload(S)]
    assert story.on(ev.Unloaded(S)) == [Load(S, "small", "jobs/1")]
    assert story.loaded(S, resident=40) == [Run(S, "jobs/1", 0)]
    story.done(S, "jobs/1")
    stage = story.stored["jobs/1"].stages[0]
    assert (stage.option, stage.oom_count, stage.attempt_count) == ("small", 1, 2)
    assert "step 1 down: 'big' ran out of memory" in stage.waited_for


def test_others_make_room_where_that_is_cheaper_than_a_smaller_option() -> None:
    story = Story(capacity=260)
    idle_separation(story)
    story.submit(job("jobs/2", TRANSCRIBE))
    story.loaded(T)
    assert story.on(ev.StageFailed(T, "jobs/2", FULL, True, 120)) == [Unload(S)]
    assert story.on(ev.Unloaded(S)) == [Run(T, "jobs/2", 0)]


def test_a_load_that_runs_out_of_memory_steps_down_too() -> None:
    story = ladder(BIG, SMALL)
    assert story.on(ev.LoadFailed(S, FULL, True, 10)) == [Load(S, "small", "jobs/1")]
    stage = story.stored["jobs/1"].stages[0]
    assert (stage.oom_count, stage.attempt_count) == (1, 1)


def test_the_last_option_is_tried_again_within_the_bound_and_trusted_for_the_next_job() -> None:
    story = ladder(BIG)
    story.loaded(S)
    for _ in range(2):
        assert story.on(ev.StageFailed(S, "jobs/1", FULL, True, 120)) == [Run(S, "jobs/1", 0)]
    story.on(ev.StageFailed(S, "jobs/1", FULL, True, 120))
    failure = story.stored["jobs/1"].failure
    assert failure is not None and failure.reason == "OUT_OF_MEMORY"
    story.scheduler.admit(job("jobs/2"))


def test_steps_down_are_bounded() -> None:
    story = ladder(BIG, SMALL, oom_steps_max=0)
    story.loaded(S)
    story.on(ev.StageFailed(S, "jobs/1", FULL, True, 120))
    assert story.state("jobs/1") is JobState.FAILED


def test_what_ran_out_of_memory_is_tried_again_later() -> None:
    story = ladder(BIG, SMALL, oom_memory_ms=60_000)
    story.loaded(S)
    story.on(ev.StageFailed(S, "jobs/1", FULL, True, 120))
    story.on(ev.Unloaded(S))
    story.loaded(S, resident=40)
    story.done(S, "jobs/1")
    story.on(ev.UnloadRequested(S))
    story.on(ev.Stopped(S))
    assert story.scheduler.next_wakeup_ms is not None
    story.on(ev.Ticked(), after_ms=60_000)
    assert story.submit(job("jobs/2")) == [Load(S, "big", "jobs/2")]


def test_attempts_that_gave_way_or_ran_out_of_memory_do_not_use_up_the_others() -> None:
    story = ladder(BIG, SMALL, attempts_max=2)
    story.loaded(S)
    for _ in range(2):
        story.on(ev.CapacityChanged(10, budget_bytes=200))
        story.on(ev.StageStopped(S, "jobs/1"))
        story.on(ev.Stopped(S))
        story.on(ev.CapacityChanged(200))
        assert story.loaded(S) == [Run(S, "jobs/1", 0)]
    story.on(ev.StageFailed(S, "jobs/1", FULL, True, 120))
    story.on(ev.Unloaded(S))
    story.loaded(S, resident=40)
    assert story.on(ev.StageFailed(S, "jobs/1", OOPS, True, 60)) == [Run(S, "jobs/1", 0)]
    stage = story.stored["jobs/1"].stages[0]
    assert (stage.attempt_count, stage.preempt_count, stage.oom_count) == (5, 2, 1)
    story.on(ev.StageFailed(S, "jobs/1", OOPS, True, 60))
    assert story.state("jobs/1") is JobState.FAILED


# ---- peaks above the prediction ------------------------------------------------------------------


def test_a_peak_above_the_prediction_is_planned_with_from_then_on() -> None:
    story = Story(lim=limits(peak_tolerance_bytes=4))
    story.submit(job("jobs/1"), job("jobs/2"), job("jobs/3"))
    story.loaded(S)
    story.on(ev.StageDone(S, "jobs/1", (), (), 124))
    assert story.scheduler.ledger.bytes_of(S, Part.RUN) == 20, "within the tolerance"
    story.on(ev.StageDone(S, "jobs/2", (), (), 127))
    assert story.scheduler.ledger.bytes_of(S, Part.RUN) == 27
    assert story.stored["jobs/3"].stages[0].predicted_peak_bytes == 127


def test_what_was_seen_to_fit_is_never_learned_to_be_too_much() -> None:
    story = Story(capacity=132)
    story.submit(job("jobs/1"))
    story.loaded(S)
    story.on(ev.StageDone(S, "jobs/1", (), (), 190))
    assert story.submit(job("jobs/2")) == [Run(S, "jobs/2", 0)]
    assert story.scheduler.ledger.free_bytes == 0


# ---- quality -------------------------------------------------------------------------------------


def test_a_job_that_asks_for_better_than_the_budget_allows_is_refused_with_the_numbers() -> None:
    fine, coarse = option("fine", 100, 20), option("coarse", 50, 20, tier=1)
    story = Story(capacity=125)
    story.on(ev.Described(S, description(S, fine, coarse)))
    story.scheduler.admit(job())
    story.scheduler.admit(replace(job(), quality_min=1))
    with pytest.raises(Refused) as refusal:
        story.scheduler.admit(replace(job(), quality_min=0))
    assert refusal.value.reason == "QUALITY_TOO_LOW"
    assert refusal.value.numbers == {
        "quality_tier": "1", "quality_min": "0", "required_bytes": "130", "available_bytes": "125",
    }  # fmt: skip


def test_a_job_waits_for_its_quality_while_other_programs_hold_memory() -> None:
    fine, coarse = option("fine", 100, 20), option("coarse", 50, 20, tier=1)
    story = Story(capacity=130)
    story.on(ev.Described(S, description(S, fine, coarse)))
    story.on(ev.CapacityChanged(125, budget_bytes=130))
    assert story.submit(replace(job("jobs/1"), quality_min=0)) == []
    assert "other programs" in story.scheduler.waiting_for("jobs/1")
    assert story.on(ev.CapacityChanged(130, 130)) == [Load(S, "fine", "jobs/1")]


def test_who_waits_for_other_programs_holds_nobody_up_and_goes_first_when_they_leave() -> None:
    fine, coarse = option("fine", 100, 20), option("coarse", 50, 20, tier=1)
    story = Story(capacity=130)
    story.on(ev.Described(S, description(S, fine, coarse)))
    story.on(ev.CapacityChanged(125, budget_bytes=130))
    assert story.submit(replace(job("jobs/1"), quality_min=0)) == []
    assert story.submit(job("jobs/2"), job("jobs/3")) == [Load(S, "coarse", "jobs/2")]
    assert story.loaded(S, resident=50) == [Run(S, "jobs/2", 0)]
    assert story.on(ev.CapacityChanged(130, 130)) == []
    assert story.done(S, "jobs/2") == [Unload(S)]
    assert story.on(ev.Unloaded(S)) == [Load(S, "fine", "jobs/1")]


def test_nobody_stops_for_a_job_that_waits_for_other_programs() -> None:
    fine, coarse = option("fine", 100, 20), option("coarse", 50, 20, tier=1)
    story = Story(capacity=130)
    story.on(ev.Described(S, description(S, fine, coarse)))
    story.on(ev.CapacityChanged(125, budget_bytes=130))
    story.submit(job("jobs/batch", priority=Priority.BATCH))
    story.loaded(S, resident=50)
    urgent = replace(job("jobs/urgent", priority=Priority.INTERACTIVE), quality_min=0)
    assert story.submit(urgent) == []
    assert "other programs" in story.scheduler.waiting_for("jobs/urgent")
    assert story.on(ev.CapacityChanged(130, 130)) == [Preempt(S, "jobs/batch")]


def test_nobody_stops_for_a_job_that_never_fits() -> None:
    story = Story(capacity=130)
    story.submit(job("jobs/batch", priority=Priority.BATCH))
    story.loaded(S)
    story.on(ev.Described(S, description(S, option("fine", 121, 20), option(tier=1))))
    urgent = replace(job("jobs/urgent", priority=Priority.INTERACTIVE), quality_min=0)
    assert story.submit(urgent) == []
    assert story.state("jobs/urgent") is JobState.FAILED


def test_a_higher_class_that_takes_a_slot_from_nobody_needs_no_preemption() -> None:
    story = Story(capacity=200)
    story.submit(job("jobs/batch", priority=Priority.BATCH))
    story.loaded(S)
    story.on(ev.UnloadRequested(S))
    urgent = job("jobs/urgent", priority=Priority.INTERACTIVE)
    assert story.submit(urgent) == [Preempt(S, "jobs/batch")]
    assert story.on(ev.StageStopped(S, "jobs/batch")) == [Stop(S)], "it was to leave"
    assert story.on(ev.Stopped(S)) == [Load(S, "full", "jobs/urgent")]
    assert A not in {command.engine for command in story.on(ev.Ticked())}
