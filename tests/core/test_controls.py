"""What an operator asks for: engines loaded, unloaded and pinned, drains, another budget."""

from dataclasses import replace

import pytest

from coscheduler.core import events as ev
from coscheduler.core.commands import Load, Pause, Preempt, Resume, Run, Stop, Unload
from coscheduler.core.engine_state import Phase
from coscheduler.core.ledger import Part
from coscheduler.core.model import Failure, JobState, Priority, StageKind
from coscheduler.core.scheduler import Scheduler
from coscheduler.errors import InvalidInput, Refused
from tests.core.build import A, S, T, description, job, limits, option
from tests.core.story import OOPS, Story

URGENT = job("jobs/urgent", StageKind.TRANSCRIBE, priority=Priority.INTERACTIVE)


def served(story: Story, name: str = "jobs/1") -> None:
    """Separation is loaded, has served a job, and is idle."""
    story.submit(job(name))
    story.loaded(S)
    story.done(S, name)


def test_an_engine_is_loaded_without_a_job_and_serves_the_next_at_once() -> None:
    story = Story()
    assert story.on(ev.LoadRequested(S)) == [Load(S, "full", "")]
    assert story.scheduler.ledger.bytes_of(S) == 10 + 100 + 20
    assert story.loaded(S) == []
    assert story.scheduler.ledger.bytes_of(S, Part.RUN) == 0
    assert story.scheduler.engines[S].wish is None
    assert story.submit(job()) == [Run(S, "jobs/1", 0)]


def test_a_named_option_takes_the_place_of_another() -> None:
    big, small = option("big", 100, speed=1), option("small", 40, speed=50)
    story = Story()
    story.on(ev.Described(S, description(S, big, small)))
    assert story.on(ev.LoadRequested(S)) == [Load(S, "big", "")]
    story.loaded(S)
    assert story.on(ev.LoadRequested(S, "big")) == []
    assert story.on(ev.LoadRequested(S, "small")) == [Unload(S)]
    assert story.on(ev.Unloaded(S)) == [Load(S, "small", "")]


def test_a_load_that_was_asked_for_comes_after_jobs_and_says_what_it_waits_for() -> None:
    story = Story(capacity=200)
    story.submit(job())
    assert story.on(ev.LoadRequested(T)) == []
    assert "memory" in story.scheduler.engines[T].note
    assert story.loaded(S) == [Run(S, "jobs/1", 0)]
    assert story.done(S, "jobs/1") == [Unload(S)]
    assert story.on(ev.Unloaded(S)) == [Load(T, "full", "")]


def test_a_load_that_was_asked_for_and_fails_is_told_and_not_tried_for_ever() -> None:
    for failed in (ev.LoadFailed(S, OOPS, True, 10), ev.EngineDied(S, OOPS)):
        story = Story()
        story.on(ev.LoadRequested(S))
        assert story.on(failed) == []
        assert "ENGINE_ERROR" in story.scheduler.engines[S].note
        assert story.on(ev.Ticked()) == []


def test_what_cannot_be_loaded_is_refused_with_the_reason() -> None:
    story = Story(capacity=129)
    with pytest.raises(Refused) as refusal:
        story.scheduler.controls.check_load(S, "")
    assert refusal.value.reason == "NEVER_FITS"
    assert refusal.value.numbers["required_bytes"] == "130"
    with pytest.raises(InvalidInput) as unknown:
        story.scheduler.controls.check_load(S, "huge")
    assert unknown.value.numbers == {"option": "huge", "known": "full"}
    alone = Scheduler(1000, (S,), limits())
    alone.handle(ev.DescribeFailed(S, Failure("MODEL_MISSING", "no /m/x")), 1)
    for engine, reason in ((S, "MODEL_MISSING"), (T, "ENGINE_NOT_CONFIGURED")):
        with pytest.raises(Refused) as refusal:
            alone.controls.usable(engine)
        assert refusal.value.reason == reason


def test_an_idle_engine_is_ended_when_asked_and_a_busy_one_after_its_stage() -> None:
    story = Story()
    served(story)
    assert story.on(ev.UnloadRequested(S)) == [Stop(S)]
    assert story.on(ev.Stopped(S)) == []
    assert story.on(ev.UnloadRequested(S)) == []
    assert story.submit(job("jobs/2"), job("jobs/3")) == [Load(S, "full", "jobs/2")]
    story.loaded(S)
    assert story.on(ev.UnloadRequested(S)) == []
    assert story.done(S, "jobs/2") == [Stop(S)], "nobody is served by an engine that is to leave"
    assert story.on(ev.Stopped(S)) == [Load(S, "full", "jobs/3")]


def test_a_pin_ends_a_request_to_leave() -> None:
    story = Story()
    story.submit(job())
    story.loaded(S)
    story.on(ev.UnloadRequested(S))
    story.on(ev.PinRequested(S, True))
    assert story.done(S, "jobs/1") == []


def test_a_pinned_engine_is_no_victim_and_stays_when_idle() -> None:
    story = Story(capacity=200)
    served(story)
    story.on(ev.PinRequested(S, True))
    assert story.on(ev.Ticked(), after_ms=1_000_000) == []
    assert story.scheduler.next_wakeup_ms is None
    assert story.submit(job("jobs/2", StageKind.TRANSCRIBE)) == []
    assert "separation is pinned" in story.scheduler.waiting_for("jobs/2")
    assert story.on(ev.LoadRequested(A)) == []
    with pytest.raises(Refused) as refusal:
        story.scheduler.controls.check_unload(S)
    assert refusal.value.reason == "ENGINE_PINNED"
    assert story.on(ev.PinRequested(S, False)) == [Unload(S)]


def test_a_pinned_engine_is_not_taken_from_a_running_stage_of_a_lower_class() -> None:
    story = Story(capacity=200)
    story.submit(job("jobs/batch", priority=Priority.BATCH))
    story.loaded(S)
    story.on(ev.PinRequested(S, True))
    assert story.submit(URGENT) == []
    assert story.on(ev.PinRequested(S, False)) == [Preempt(S, "jobs/batch")]


def test_a_budget_that_shrinks_takes_pinned_engines_last() -> None:
    story = Story()
    served(story)
    story.on(ev.PinRequested(S, True))
    story.on(ev.LoadRequested(T))
    story.loaded(T)
    assert story.on(ev.CapacityChanged(150)) == [Stop(T)]
    story.on(ev.Stopped(T))
    assert story.on(ev.CapacityChanged(50)) == [Stop(S)]


def test_a_drain_lets_paused_stages_end_and_its_end_starts_the_rest() -> None:
    story = Story(lim=limits(compute_slots=1))
    story.submit(job("jobs/batch", priority=Priority.BATCH))
    story.loaded(S)
    story.submit(URGENT)
    assert story.loaded(T) == [Pause(S, "jobs/batch")]
    assert story.on(ev.Paused(S, "jobs/batch")) == [Run(T, "jobs/urgent", 0)]
    story.on(ev.DrainRequested())
    assert story.submit(job("jobs/later", StageKind.ANALYZE)) == []
    assert story.scheduler.waiting_for("jobs/later") == "the drain to end"
    assert story.done(T, "jobs/urgent") == [Resume(S, "jobs/batch")]
    assert not story.scheduler.is_quiet
    assert story.done(S, "jobs/batch") == []
    assert story.scheduler.is_quiet and story.scheduler.is_draining
    assert story.on(ev.LoadRequested(A)) == []
    assert story.on(ev.DrainEnded()) == [Load(A, "full", "jobs/later")]


def test_a_drained_daemon_still_gives_memory_back() -> None:
    story = Story()
    served(story)
    story.on(ev.DrainRequested())
    assert story.on(ev.UnloadRequested(S)) == [Stop(S)]


def test_what_other_programs_hold_is_waited_for_and_what_the_budget_lacks_is_refused() -> None:
    story = Story()
    story.on(ev.CapacityChanged(50, budget_bytes=1000))
    assert story.submit(job()) == []
    assert "other programs" in story.scheduler.waiting_for("jobs/1")
    story.scheduler.admit(job("jobs/2"))
    assert story.on(ev.CapacityChanged(1000, 1000)) == [Load(S, "full", "jobs/1")]
    story.on(ev.CapacityChanged(50, 50))
    with pytest.raises(Refused, match="at least 130"):
        story.scheduler.admit(job("jobs/2"))


def test_a_scheduler_from_a_state_decides_as_the_one_that_it_was_taken_from() -> None:
    story = Story(capacity=200)
    story.submit(job("jobs/1"), job("jobs/2", StageKind.TRANSCRIBE))
    story.on(ev.PinRequested(T, True))
    state = story.scheduler.state()
    twin = Scheduler.from_state(state)
    for event in (ev.Loaded(S, 10, 100, 5), ev.StageDone(S, "jobs/1", (), (), 120)):
        mine, other = story.scheduler.handle(event, 2000), twin.handle(event, 2000)
        assert mine == other
    assert story.scheduler.state() == twin.state() != state
    assert state.engines[0].phase is Phase.LOADING, "a state is a copy"
    assert replace(state, jobs=()) != state
    assert story.stored["jobs/1"].state is JobState.RUNNING


def test_a_state_comes_back_whole() -> None:
    story = Story()
    served(story)
    story.on(ev.CapacityChanged(500, budget_bytes=900))
    story.on(ev.PinRequested(S, True))
    story.on(ev.DrainRequested())
    story.submit(job("jobs/2"))
    state = story.scheduler.state()
    assert (state.budget_bytes, state.is_draining) == (900, True)
    assert Scheduler.from_state(state).state() == state


def test_a_load_that_was_asked_for_takes_nothing_from_jobs_that_wait() -> None:
    story = Story(capacity=300, lim=limits(compute_slots=1))
    story.on(ev.LoadRequested(S))
    story.loaded(S)
    story.submit(job("jobs/1", StageKind.TRANSCRIBE))
    story.loaded(T)
    story.submit(job("jobs/2"))
    assert "compute slot" in story.scheduler.waiting_for("jobs/2")
    assert story.on(ev.LoadRequested(A)) == [], "jobs/2 will want separation"
    assert story.done(T, "jobs/1") == [Run(S, "jobs/2", 0), Unload(T)]
