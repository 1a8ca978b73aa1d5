"""The scheduler one decision at a time: each test is a story of events and what they bring."""

from dataclasses import replace

import pytest

from coscheduler.core import events as ev
from coscheduler.core.commands import (
    Cancel,
    Load,
    Pause,
    Preempt,
    Resume,
    Run,
    Stop,
    Unload,
)
from coscheduler.core.engine_state import Phase
from coscheduler.core.ledger import Part
from coscheduler.core.model import (
    Failure,
    InputRef,
    JobState,
    Output,
    Priority,
    StageKind,
    StageState,
)
from coscheduler.core.scheduler import Scheduler
from coscheduler.errors import Exhausted, Refused
from tests.core.build import A, S, T, description, job, limits, option
from tests.core.story import OOPS, Story


def test_a_job_loads_runs_and_succeeds() -> None:
    story = Story()
    assert story.submit(job()) == [Load(S, "full", "jobs/1")]
    assert story.state("jobs/1") is JobState.RUNNING
    assert story.loaded(S) == [Run(S, "jobs/1", 0)]
    assert story.stored["jobs/1"].stages[0].attempt_count == 1
    assert story.done(S, "jobs/1") == []
    stage = story.stored["jobs/1"].stages[0]
    assert story.state("jobs/1") is JobState.SUCCEEDED
    assert (stage.wait_ms, stage.load_ms, stage.run_ms) == (0, 5, 100)
    assert (stage.predicted_peak_bytes, stage.measured_peak_bytes) == (120, 120)
    assert story.scheduler.ledger.used_bytes == 110  # still loaded, for the next one


def test_a_loaded_engine_serves_the_next_job_without_loading() -> None:
    story = Story()
    story.submit(job("jobs/1"), job("jobs/2"))
    story.loaded(S)
    assert story.done(S, "jobs/1") == [Run(S, "jobs/2", 0)]


def test_stages_of_different_jobs_overlap_and_outputs_are_handed_on() -> None:
    story = Story()
    both = (StageKind.SEPARATE, StageKind.TRANSCRIBE)
    story.submit(job("jobs/1", *both), job("jobs/2", *both))
    story.loaded(S)
    commands = story.done(S, "jobs/1", Output("target", "artifacts/t", "target.wav"))
    assert Load(T, "full", "jobs/1") in commands and Run(S, "jobs/2", 0) in commands
    assert story.scheduler.job("jobs/1").stages[1].input == InputRef(artifact="artifacts/t")  # type: ignore[union-attr]


def test_the_higher_class_goes_first_and_an_old_job_before_it() -> None:
    story = Story()
    story.submit(job("jobs/running"))
    story.submit(
        job("jobs/batch", priority=Priority.BATCH, arrival_ms=100_000),
        job("jobs/urgent", priority=Priority.INTERACTIVE, arrival_ms=200_000),
        job("jobs/old", priority=Priority.BATCH, arrival_ms=70_000),
    )
    story.loaded(S)
    order = []
    for name in ("jobs/running", "jobs/old", "jobs/urgent", "jobs/batch"):
        order += story.done(S, name)
    assert [command.job for command in order if isinstance(command, Run)] == [
        "jobs/old", "jobs/urgent", "jobs/batch",
    ]  # fmt: skip


def test_an_idle_engine_gives_way_and_the_job_says_so() -> None:
    story = Story(capacity=200)
    story.submit(job("jobs/1"))
    story.loaded(S)
    story.done(S, "jobs/1")
    assert story.submit(job("jobs/2", StageKind.TRANSCRIBE)) == [Unload(S)]
    assert "give way" in story.scheduler.waiting_for("jobs/2")
    assert story.scheduler.ledger.releasing_bytes == 100
    assert story.on(ev.Unloaded(S)) == [Load(T, "full", "jobs/2")]
    assert story.stored["jobs/2"].stages[0].evicted == ("separation: full",)


def test_a_context_goes_only_with_its_process() -> None:
    story = Story(capacity=130)
    story.submit(job("jobs/1"))
    story.loaded(S)
    story.done(S, "jobs/1")
    assert story.submit(job("jobs/2", StageKind.TRANSCRIBE)) == [Stop(S)]
    assert story.on(ev.Stopped(S)) == [Load(T, "full", "jobs/2")]


def test_a_busy_engine_is_not_evicted_and_nobody_slips_past_the_waiting_head() -> None:
    story = Story(capacity=250, analysis=option(weights=50, run=5))
    story.submit(job("jobs/1"))
    story.loaded(S)  # 130 held while it runs, 120 free
    assert story.submit(job("jobs/head", StageKind.TRANSCRIBE)) == []
    assert "memory" in story.scheduler.waiting_for("jobs/head")
    assert story.submit(job("jobs/small", StageKind.ANALYZE, arrival_ms=5)) == []
    assert story.done(S, "jobs/1")[0] == Load(T, "full", "jobs/head")


def test_a_small_job_overtakes_where_it_delays_nobody() -> None:
    story = Story(capacity=250)
    story.submit(job("jobs/1"))
    story.loaded(S)
    story.submit(job("jobs/2"))  # waits for the same engine, needs no more memory
    assert story.submit(job("jobs/3", StageKind.ANALYZE, arrival_ms=9)) == []
    bigger = Story(capacity=300)
    bigger.submit(job("jobs/1"))
    bigger.loaded(S)
    bigger.submit(job("jobs/2"))
    commands = bigger.submit(job("jobs/3", StageKind.ANALYZE, arrival_ms=9))
    assert commands == [Load(A, "full", "jobs/3")]


def test_compute_slots_bound_what_runs_at_once() -> None:
    story = Story(lim=limits(compute_slots=1))
    story.submit(job("jobs/1"), job("jobs/2", StageKind.TRANSCRIBE, arrival_ms=2))
    story.loaded(S)
    assert story.loaded(T) == []
    assert "compute slot" in story.scheduler.waiting_for("jobs/2")
    assert story.done(S, "jobs/1") == [Run(T, "jobs/2", 0)]


def test_a_higher_class_pauses_a_lower_one_for_its_slot_and_gives_it_back() -> None:
    story = Story(lim=limits(compute_slots=1))
    story.submit(job("jobs/batch", priority=Priority.BATCH))
    story.loaded(S)
    urgent = job("jobs/urgent", StageKind.TRANSCRIBE, priority=Priority.INTERACTIVE)
    assert story.submit(urgent) == [Load(T, "full", "jobs/urgent")]
    assert story.loaded(T) == [Pause(S, "jobs/batch")]
    assert story.on(ev.Ticked()) == []  # asked once
    assert story.on(ev.Paused(S, "jobs/batch")) == [Run(T, "jobs/urgent", 0)]
    assert story.stored["jobs/batch"].stages[0].state is StageState.PAUSED
    assert story.done(T, "jobs/urgent") == [Resume(S, "jobs/batch")]
    story.done(S, "jobs/batch")
    stage = story.stored["jobs/batch"].stages[0]
    assert stage.state is StageState.SUCCEEDED
    assert (stage.wait_ms, stage.run_ms) == (100, 5 + 10 + 5 + 10 + 10 + 100 - 5)


def test_the_same_class_is_never_paused_nor_stopped() -> None:
    story = Story(lim=limits(compute_slots=1))
    story.submit(job("jobs/1"))
    story.loaded(S)
    story.submit(job("jobs/2", StageKind.TRANSCRIBE, arrival_ms=0))
    assert story.loaded(T) == []
    assert story.submit(job("jobs/0", arrival_ms=0)) == []


def test_a_higher_class_takes_the_engine_itself_and_the_stage_comes_again() -> None:
    story = Story()
    story.submit(job("jobs/batch", priority=Priority.BATCH))
    story.loaded(S)
    urgent = job("jobs/urgent", priority=Priority.INTERACTIVE)
    assert story.submit(urgent) == [Preempt(S, "jobs/batch")]
    assert story.on(ev.StageStopped(S, "jobs/batch")) == [Run(S, "jobs/urgent", 0)]
    assert story.done(S, "jobs/urgent") == [Run(S, "jobs/batch", 0)]
    stage = story.stored["jobs/batch"].stages[0]
    assert (stage.preempt_count, stage.attempt_count) == (1, 2)


def test_an_aged_job_is_not_stopped_for_a_later_one() -> None:
    story = Story()
    story.submit(job("jobs/batch", priority=Priority.BATCH))
    story.loaded(S)
    later = job("jobs/urgent", priority=Priority.INTERACTIVE, arrival_ms=2 * 60_000 + 1_000)
    assert story.submit(later) == []


def test_a_stage_is_stopped_a_bounded_number_of_times() -> None:
    story = Story(lim=limits(preempts_max=0))
    story.submit(job("jobs/batch", priority=Priority.BATCH))
    story.loaded(S)
    assert story.submit(job("jobs/urgent", priority=Priority.INTERACTIVE)) == []


def test_memory_is_taken_from_a_running_lower_class() -> None:
    story = Story(capacity=200)
    story.submit(job("jobs/batch", priority=Priority.BATCH))
    story.loaded(S)
    urgent = job("jobs/urgent", StageKind.TRANSCRIBE, priority=Priority.INTERACTIVE)
    assert story.submit(urgent) == [Preempt(S, "jobs/batch")]
    assert story.on(ev.StageStopped(S, "jobs/batch")) == [Unload(S)]
    assert story.on(ev.Unloaded(S)) == [Load(T, "full", "jobs/urgent")]


def test_a_shrunken_budget_stops_running_stages_too() -> None:
    story = Story()
    story.submit(job())
    story.loaded(S)
    assert story.on(ev.CapacityChanged(100)) == [Preempt(S, "jobs/1")]
    assert story.on(ev.StageStopped(S, "jobs/1")) == [Stop(S)]
    story.on(ev.Stopped(S))
    final = story.stored["jobs/1"].failure
    assert final is not None and final.reason == "NEVER_FITS"


def test_a_stored_job_whose_engine_left_the_config_fails_and_the_rest_goes_on() -> None:
    scheduler = Scheduler(1000, (S,), limits())
    scheduler.handle(ev.Described(S, description(S)), 1)
    changed = scheduler.handle(ev.Submitted(job("jobs/1", StageKind.ANALYZE)), 2).changed
    assert changed[0].failure is not None
    assert changed[0].failure.reason == "ENGINE_NOT_CONFIGURED"
    assert scheduler.handle(ev.Submitted(job("jobs/2")), 3).commands


def test_what_never_fits_is_refused_with_the_numbers() -> None:
    story = Story(capacity=129)
    with pytest.raises(Refused) as refusal:
        story.scheduler.admit(job())
    assert refusal.value.reason == "NEVER_FITS"
    assert refusal.value.numbers == {"required_bytes": "130", "available_bytes": "129"}


def test_a_full_queue_is_refused() -> None:
    story = Story(lim=limits(queue_max=1))
    story.submit(job("jobs/1"))
    with pytest.raises(Exhausted) as refusal:
        story.scheduler.admit(job("jobs/2"))
    assert refusal.value.numbers["queue_max"] == "1"


def test_an_engine_that_is_not_configured_or_unusable_is_named() -> None:
    scheduler = Scheduler(1000, (S,), limits())
    scheduler.handle(ev.DescribeFailed(S, Failure("MODEL_MISSING", "no /m/x", ())), 1)
    with pytest.raises(Refused, match="no /m/x"):
        scheduler.admit(job())
    with pytest.raises(Refused, match=r"\[transcription\] section"):
        scheduler.admit(job("jobs/2", StageKind.TRANSCRIBE))


def test_a_stored_job_of_an_unusable_engine_fails_with_its_reason() -> None:
    scheduler = Scheduler(1000, (S,), limits())
    scheduler.handle(ev.Submitted(job()), 1)
    changed = scheduler.handle(ev.DescribeFailed(S, Failure("MODEL_MISSING", "no x")), 2).changed
    assert changed[0].state is JobState.FAILED and changed[0].failure is not None
    assert changed[0].failure.reason == "MODEL_MISSING"


def test_a_crash_returns_the_bytes_and_the_stage_is_tried_again_within_the_bound() -> None:
    story = Story()
    story.submit(job())
    for attempt in (1, 2):
        assert story.loaded(S) == [Run(S, "jobs/1", 0)]
        assert story.on(ev.EngineDied(S, OOPS)) == [Load(S, "full", "jobs/1")]
        assert story.scheduler.ledger.bytes_of(S, Part.SLACK) == 0
        assert story.stored["jobs/1"].stages[0].attempt_count == attempt
    story.loaded(S)
    assert story.on(ev.EngineDied(S, OOPS)) == []
    assert story.stored["jobs/1"].state is JobState.FAILED
    assert story.scheduler.ledger.used_bytes == 0


def test_a_failure_that_would_come_again_is_not_tried_again() -> None:
    story = Story()
    story.submit(job())
    story.loaded(S)
    story.on(ev.StageFailed(S, "jobs/1", OOPS, False, 110))
    final = story.stored["jobs/1"]
    assert final.state is JobState.FAILED and final.failure == OOPS
    assert final.stages[0].measured_peak_bytes == 110
    assert story.scheduler.engines[S].phase is Phase.LOADED


def test_failed_loads_are_counted_too() -> None:
    story = Story()
    story.submit(job())
    for _ in range(2):
        assert story.on(ev.LoadFailed(S, OOPS, True, 10)) == [Load(S, "full", "jobs/1")]
    assert story.on(ev.LoadFailed(S, OOPS, True, 10)) == []
    assert story.stored["jobs/1"].state is JobState.FAILED
    assert story.scheduler.ledger.used_bytes == 10  # the context is still there


def test_cancel_in_every_state() -> None:
    story = Story()
    story.submit(job("jobs/1"), job("jobs/2"))
    assert story.on(ev.CancelRequested("jobs/2")) == []
    assert story.stored["jobs/2"].state is JobState.CANCELLED
    story.on(ev.CancelRequested("jobs/1"))  # while loading: at once, the load goes on
    assert story.stored["jobs/1"].state is JobState.CANCELLED
    assert story.loaded(S) == []
    assert story.submit(job("jobs/3")) == [Run(S, "jobs/3", 0)]
    assert story.on(ev.CancelRequested("jobs/3")) == [Cancel(S, "jobs/3")]
    assert story.on(ev.CancelRequested("jobs/3")) == []
    assert story.state("jobs/3") is JobState.CANCELLING
    story.on(ev.StageStopped(S, "jobs/3"))
    assert story.state("jobs/3") is JobState.CANCELLED
    assert story.stored["jobs/3"].stages[0].state is StageState.CANCELLED
    assert story.on(ev.CancelRequested("jobs/nobody")) == []


def test_work_that_was_faster_than_its_cancel_counts() -> None:
    story = Story()
    story.submit(job())
    story.loaded(S)
    story.on(ev.CancelRequested("jobs/1"))
    story.done(S, "jobs/1")
    assert story.stored["jobs/1"].state is JobState.SUCCEEDED


def test_a_load_that_took_more_than_predicted_is_charged_as_slack() -> None:
    story = Story()
    story.submit(job())
    assert story.loaded(S, context=15, resident=107) == [Run(S, "jobs/1", 0)]
    assert story.scheduler.ledger.bytes_of(S) == 15 + 107 + 20


def test_a_load_that_took_more_than_there_is_is_undone_and_planned_anew() -> None:
    story = Story(capacity=135)
    story.submit(job())
    assert story.loaded(S, resident=140) == [Stop(S)]
    assert story.on(ev.Stopped(S)) == []
    final = story.stored["jobs/1"]
    assert final.failure is not None and final.failure.reason == "NEVER_FITS"
    assert story.scheduler.ledger.used_bytes == 0


def test_idle_engines_are_unloaded_then_stopped_but_not_while_wanted() -> None:
    story = Story()
    story.submit(job())
    story.loaded(S)
    story.done(S, "jobs/1")
    assert story.on(ev.Ticked(), after_ms=299_999) == []
    assert story.scheduler.next_wakeup_ms == story.now_ms + 1
    assert story.on(ev.Ticked(), after_ms=1) == [Unload(S)]
    story.on(ev.Unloaded(S))
    assert story.on(ev.Ticked(), after_ms=300_000) == [Stop(S)]


def test_an_engine_that_is_unpinned_after_its_time_leaves_at_once() -> None:
    story = Story()
    story.submit(job())
    story.loaded(S)
    story.done(S, "jobs/1")
    story.on(ev.PinRequested(S, True))
    story.on(ev.Ticked(), after_ms=400_000)
    assert story.on(ev.PinRequested(S, False)) == [Unload(S)]


def test_keep_alives_that_end_together_both_end() -> None:
    """Whatever event comes at that moment: no tick comes for a time that has passed."""
    story = Story()
    story.submit(job("jobs/1"), job("jobs/2", StageKind.TRANSCRIBE))
    story.loaded(S)
    story.done(S, "jobs/1")
    story.loaded(T)
    story.done(T, "jobs/2")
    assert story.on(ev.CancelRequested("none"), after_ms=400_000) == [Unload(S), Unload(T)]


def test_a_smaller_budget_sends_idle_engines_away() -> None:
    story = Story()
    story.submit(job())
    story.loaded(S)
    story.done(S, "jobs/1")
    assert story.on(ev.CapacityChanged(50)) == [Stop(S)]
    story.on(ev.Stopped(S))
    assert story.scheduler.ledger.overdraft_bytes == 0


def test_another_quality_is_loaded_when_the_recording_needs_it() -> None:
    fine, coarse = option("fine", 100, 20), option("coarse", 50, 20, tier=1)
    story = Story(capacity=200)
    story.on(ev.Described(S, description(S, fine, coarse)))
    assert story.submit(job("jobs/1")) == [Load(S, "fine", "jobs/1")]
    story.loaded(S)
    story.done(S, "jobs/1")
    story.on(ev.CapacityChanged(125))
    assert story.submit(job("jobs/2")) == [Unload(S)]
    assert story.on(ev.Unloaded(S)) == [Load(S, "coarse", "jobs/2")]
    story.loaded(S, resident=50)
    assert story.stored["jobs/2"].stages[0].quality_tier == 1


def test_jobs_that_wait_for_another_job_get_its_output_or_fail_with_it() -> None:
    waiting = replace(
        job("jobs/2", StageKind.TRANSCRIBE),
        stages=(replace(job("jobs/2", StageKind.TRANSCRIBE).stages[0],
                        input=InputRef(job="jobs/1", role="target")),),
    )  # fmt: skip
    story = Story()
    story.submit(job("jobs/1"), waiting)
    assert story.scheduler.waiting_for("jobs/2") == "the target of jobs/1"
    story.loaded(S)
    assert story.done(S, "jobs/1", Output("target", "artifacts/t", "t.wav")) == [
        Load(T, "full", "jobs/2")
    ]
    failing = Story()
    failing.submit(job("jobs/1"), waiting)
    failing.on(ev.CancelRequested("jobs/1"))
    final = failing.stored["jobs/2"]
    assert final.failure is not None and final.failure.reason == "INPUT_JOB_FAILED"


def test_draining_starts_nothing() -> None:
    story = Story()
    story.submit(job("jobs/1"))
    story.on(ev.DrainRequested())
    assert not story.scheduler.is_quiet
    assert story.loaded(S) == []
    assert story.scheduler.is_quiet


def test_loads_are_serialised_where_the_meter_needs_it() -> None:
    story = Story(lim=replace(limits(), serial_loads=True))
    story.submit(job("jobs/1"))
    assert story.submit(job("jobs/2", StageKind.TRANSCRIBE)) == []
    assert Load(T, "full", "jobs/2") in story.loaded(S)


def test_the_same_submission_twice_is_one_job() -> None:
    story = Story()
    assert story.submit(job(), job()) == [Load(S, "full", "jobs/1")]
    assert len(story.scheduler.jobs) == 1


def test_those_who_wait_in_line_say_so_at_once_and_in_their_record() -> None:
    story = Story()
    story.submit(job("jobs/1"), job("jobs/2"), job("jobs/3"))
    why = "separation is wanted by a job that comes first"
    assert story.scheduler.waiting_for("jobs/3") == why
    assert story.stored["jobs/3"].stages[0].waited_for == (why,)
    assert story.scheduler.waiting_for("jobs/1") == story.scheduler.waiting_for("none") == ""


def test_all_jobs_of_an_engine_that_turns_out_unusable_fail_in_one_round() -> None:
    scheduler = Scheduler(1000, (S,), limits())
    for name in ("jobs/1", "jobs/2", "jobs/3"):
        scheduler.handle(ev.Submitted(job(name)), 1)
    changed = scheduler.handle(ev.DescribeFailed(S, Failure("MODEL_MISSING", "no x")), 2).changed
    assert {each.name for each in changed if each.state is JobState.FAILED} == {
        "jobs/1", "jobs/2", "jobs/3",
    }  # fmt: skip


def test_rank_order_is_kept_as_jobs_come_and_go() -> None:
    story = Story()
    names = ["jobs/3", "jobs/1", "jobs/5", "jobs/2", "jobs/4"]
    story.submit(*(job(name, arrival_ms=int(name[-1])) for name in names))
    story.on(ev.CancelRequested("jobs/3"))
    assert [each.name for each in story.scheduler.jobs] == ["jobs/1", "jobs/2", "jobs/4", "jobs/5"]


def test_who_wants_an_engine_waits_behind_those_who_want_it_before() -> None:
    story = Story(capacity=200)
    story.submit(job("jobs/1", StageKind.TRANSCRIBE))
    story.loaded(T)
    story.submit(job("jobs/2", arrival_ms=2), job("jobs/3", arrival_ms=3))
    assert "memory" in story.scheduler.waiting_for("jobs/2")
    assert story.scheduler.waiting_for("jobs/3") == (
        "separation is wanted by a job that comes first"
    )
