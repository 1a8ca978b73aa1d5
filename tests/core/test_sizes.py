"""Engines that stay in memory with fewer layers, or with more: for whom, when, and what is charged.

Eight layers of ten bytes: "8 of 8" holds 80 and takes 10 ms a second, each layer less 10 ms more.
"""

from dataclasses import replace

import pytest

from coscheduler.core import events as ev
from coscheduler.core import planner
from coscheduler.core.books import Books
from coscheduler.core.commands import Load, Pause, Preempt, Resize, Run, Stop
from coscheduler.core.dry_run import plan_job
from coscheduler.core.engine_state import EngineState, Limits, Phase
from coscheduler.core.jobs import JobBook
from coscheduler.core.ledger import Ledger, Part
from coscheduler.core.model import (
    EngineName,
    Failure,
    Job,
    Line,
    LineBytes,
    Option,
    Priority,
    RunLine,
    StageKind,
)
from coscheduler.core.planner import Request, Room, Smaller, Tenant
from coscheduler.core.sizes import Sizes
from coscheduler.errors import LedgerRefusal
from tests.core.build import A, S, T, description, job, limits, option
from tests.core.story import Story

TRANSCRIBE = StageKind.TRANSCRIBE
BATCH, INTERACTIVE = Priority.BATCH, Priority.INTERACTIVE


def layers(kept: int, run: int = 20, load_ms: int = 80) -> Option:
    made = option(f"{kept} of 8", weights=10 * kept, run=run, speed=10 + 10 * (8 - kept))
    return replace(made, family="bf16", load_ms=load_ms)


def story(capacity: int, lim: Limits | None = None, *kept: int) -> Story:
    """Separation has layers that come and go; the others take 100 and 20 to run."""
    made = Story(capacity, lim)
    made.on(ev.Described(S, description(S, *map(layers, kept or (8, 4, 2)))))
    return made


def separate(told: Story, *jobs: Job) -> None:
    """Let separation work on the first of the jobs, all layers there."""
    told.submit(*jobs)
    told.loaded(S, resident=80)
    assert told.scheduler.engines[S].option == layers(8)


def resized(told: Story, kept: int, engine: EngineName = S) -> list[object]:
    return list(told.on(ev.Resized(engine, f"{kept} of 8")))


def bytes_of(told: Story, *parts: Part) -> int:
    return told.scheduler.ledger.bytes_of(S, *parts)


# ---- fewer ---------------------------------------------------------------------------------------


def test_an_idle_engine_gives_layers_and_stays() -> None:
    told = story(10 + 80 + 20 + 90)
    separate(told, job("jobs/1"))
    told.done(S, "jobs/1")
    assert told.submit(job("jobs/2", TRANSCRIBE)) == [Resize(S, "4 of 8", 40)]
    assert bytes_of(told) == 90, "charged until it has come back"
    assert told.scheduler.ledger.releasing_bytes == 40
    assert "separation to give way" in told.scheduler.waiting_for("jobs/2")
    assert resized(told, 4) == [Load(T, "full", "jobs/2")]
    assert bytes_of(told) == 50
    assert told.stored["jobs/2"].stages[0].evicted == ("separation: '8 of 8' becomes '4 of 8'",)


def test_of_several_ways_the_one_that_brings_back_sooner_is_taken() -> None:
    big = Tenant(S, 80, 10, 80, 1000, (Smaller("4 of 8", 40, 40), Smaller("2 of 8", 60, 60)))
    request = Request((option("big", weights=20, run=20),), 10_000, 0, needs_process=False)
    shrinks = [
        found and (found.shrink, found.unload, found.cost_ms)
        for free in (40, 0, -30)
        if (found := planner.plan(request, 0, Room(free, (big,), 3)))
    ]
    own_ms = 20 + 100
    assert shrinks == [
        ((), (), own_ms),
        (((S, "4 of 8"),), (), own_ms + 40),
        ((), (S,), own_ms + 80),
    ]
    stays = replace(big, may_leave=False)
    assert planner.plan(request, 0, Room(-30, (stays,), 3)) is None


@pytest.mark.parametrize(("slower", "ahead", "cost_ms"), [(10, 1, 40), (10, 0, 0), (0, 9, 0)])
def test_shrinking_costs_the_way_back_or_slower_runs_whatever_is_less(
    slower: int, ahead: int, cost_ms: int
) -> None:
    whole, half = layers(8), replace(layers(4), run_ms_per_second=10 + 4 * slower)
    book, ledger = JobBook(3, 60_000), Ledger(1000)
    for number in range(ahead):
        book.put(job(f"jobs/{number}"))
    ledger.reserve((S, Part.RESIDENT), whole.resident)
    engine = EngineState(S, Phase.LOADED, description(S, whole, half), option=whole)
    found = Sizes(Books(ledger, {S: engine}, book, limits())).smaller(engine, 10_000)
    assert found == (Smaller("4 of 8", 40, cost_ms),)


def test_who_stays_gives_layers_for_all_that_come_after() -> None:
    quick, fast = option("quick", weights=10, speed=2), option("fast", weights=60, speed=1)
    room = Room(30, (Tenant(S, 80, 10, 80, 1000, (Smaller("4 of 8", 50, 5),)),), 3)
    request = Request((quick, fast), 10_000, 0, needs_process=False)
    plans = [planner.plan(replace(request, runs=runs), 0, room) for runs in (1, 20)]
    assert [plan and (plan.option.name, plan.shrink) for plan in plans] == [
        ("quick", ()),
        ("fast", ((S, "4 of 8"),)),
    ]


def test_a_running_stage_that_takes_more_once_less_is_resident_is_charged_for_it() -> None:
    told = story(220)
    here = replace(layers(8), run=(RunLine(Line.WORKSPACE, 20),))
    gone = replace(layers(4), run=(RunLine(Line.WORKSPACE, 20), RunLine(Line.WEIGHTS, 15)))
    told.on(ev.Described(S, description(S, here, gone)))
    told.submit(job("jobs/batch", priority=BATCH))
    told.loaded(S, resident=80)
    urgent = job("jobs/urgent", TRANSCRIBE, priority=INTERACTIVE, arrival_ms=9)
    assert told.submit(urgent) == [Resize(S, "4 of 8", 40 + 35)]
    assert bytes_of(told) == 10 + 80 + 20, "no more than before until the answer"
    resized(told, 4)
    assert bytes_of(told, Part.RUN) == 35
    assert bytes_of(told) == 10 + 40 + 35


@pytest.mark.parametrize("slots", [3, 1])
def test_a_stage_of_a_lower_class_works_on_with_fewer_layers(slots: int) -> None:
    told = story(220, limits(compute_slots=slots))
    separate(told, job("jobs/batch", priority=BATCH))
    urgent = job("jobs/urgent", TRANSCRIBE, priority=INTERACTIVE, arrival_ms=9)
    assert told.submit(urgent) == [Resize(S, "4 of 8", 40 + 20)]
    assert told.on(ev.Ticked()) == [], "it is asked once"
    assert resized(told, 4) == [Load(T, "full", "jobs/urgent")]
    assert bytes_of(told, Part.RUN) == 20, "the run goes on as it was"
    told.done(S, "jobs/batch")
    (note,) = told.stored["jobs/batch"].stages[0].notes
    assert note == "separation: '8 of 8' becomes '4 of 8': jobs/urgent comes first"


def test_a_stage_of_a_lower_class_stops_where_fewer_layers_are_not_enough() -> None:
    told = story(150)
    separate(told, job("jobs/batch", priority=BATCH))
    urgent = job("jobs/urgent", TRANSCRIBE, priority=INTERACTIVE, arrival_ms=9)
    assert told.submit(urgent) == [Preempt(S, "jobs/batch")]


@pytest.mark.parametrize(
    ("arrival_ms", "slots", "shrinks"), [(3, 2, True), (3, 1, False), (30, 2, False)]
)
def test_among_equals_one_shrinks_for_who_comes_before_it_and_can_run_beside_it(
    arrival_ms: int, slots: int, shrinks: bool
) -> None:
    told = story(220, limits(compute_slots=slots))
    separate(told, job("jobs/1"))
    expected = [Resize(S, "4 of 8", 60)] if shrinks else []
    assert told.submit(job("jobs/2", TRANSCRIBE, arrival_ms=arrival_ms)) == expected


def test_a_pinned_engine_keeps_its_layers() -> None:
    told = story(220)
    separate(told, job("jobs/batch", priority=BATCH))
    told.on(ev.PinRequested(S, True))
    assert told.submit(job("jobs/2", TRANSCRIBE, priority=INTERACTIVE)) == []


def test_an_engine_becomes_smaller_where_its_own_run_would_not_fit() -> None:
    told = story(110)
    separate(told, job("jobs/1"))
    told.done(S, "jobs/1")
    told.on(ev.Described(S, description(S, *(layers(kept, run=30) for kept in (8, 4, 2)))))
    assert told.submit(job("jobs/2")) == [Resize(S, "4 of 8", 40)]
    assert resized(told, 4) == [Run(S, "jobs/2", 0)]


def test_nobody_else_is_evicted_for_what_is_on_its_way_back() -> None:
    told = story(90 + 110 + 40)
    separate(told, job("jobs/1"))
    told.done(S, "jobs/1")
    told.on(ev.LoadRequested(A))
    told.loaded(A)
    assert told.on(ev.UnloadRequested(S)) == [Stop(S)]
    assert told.submit(job("jobs/2", TRANSCRIBE)) == []
    assert told.on(ev.Stopped(S)) == [Load(T, "full", "jobs/2")]


def test_a_lower_budget_takes_layers_before_it_ends_anything() -> None:
    told = story(400)
    separate(told, job("jobs/1"))
    assert told.on(ev.CapacityChanged(100)) == [Resize(S, "4 of 8", 60)]
    assert told.on(ev.Ticked()) == []
    assert told.scheduler.ledger.overdraft_bytes == 10
    assert resized(told, 4) == []
    assert told.on(ev.CapacityChanged(60)) == [Resize(S, "2 of 8", 40)]
    assert resized(told, 2) == []
    assert told.on(ev.CapacityChanged(49)) == [Preempt(S, "jobs/1")]


def test_an_idle_engine_meets_a_lower_budget_with_the_most_layers_that_fit() -> None:
    told = story(400)
    separate(told, job("jobs/1"))
    told.done(S, "jobs/1")
    assert told.on(ev.CapacityChanged(50)) == [Resize(S, "4 of 8", 40)]
    assert resized(told, 4) == []
    assert told.on(ev.CapacityChanged(29)) == [Stop(S)]


def test_a_stage_is_paused_only_when_its_layers_are_where_they_should_be() -> None:
    told = story(330, limits(compute_slots=1))
    separate(told, job("jobs/batch", priority=BATCH))
    told.on(ev.LoadRequested(T))
    told.loaded(T)
    assert told.on(ev.CapacityChanged(210)) == [Stop(T)]
    told.on(ev.Stopped(T))
    told.on(ev.CapacityChanged(330))
    told.on(ev.LoadRequested(T))
    told.loaded(T)
    told.on(ev.PinRequested(T, True))
    assert told.on(ev.CapacityChanged(200)) == [Resize(S, "4 of 8", 60)]
    assert told.submit(job("jobs/urgent", TRANSCRIBE, priority=INTERACTIVE)) == []
    assert "a compute slot" in told.scheduler.waiting_for("jobs/urgent")
    assert resized(told, 4) == [Pause(S, "jobs/batch")]


# ---- more ----------------------------------------------------------------------------------------


def small(told: Story, *jobs: Job) -> None:
    """Separation runs with four layers, in a budget that had no room for more."""
    told.submit(*jobs)
    told.loaded(S, resident=40)
    assert told.scheduler.engines[S].option == layers(4)


def test_a_running_stage_takes_layers_that_nobody_else_wants() -> None:
    told = story(100)
    small(told, job("jobs/1"))
    assert told.on(ev.CapacityChanged(400)) == [Resize(S, "8 of 8", 100)]
    assert bytes_of(told) == 110, "charged before they come"
    assert resized(told, 8) == []
    told.done(S, "jobs/1")
    done = told.stored["jobs/1"].stages[0]
    assert done.predicted_peak_bytes == 100 and "memory is free" in done.notes[0]
    assert told.scheduler.engines[S].learned.pace == {}, "the time is of no one option"


def test_layers_that_could_not_come_are_not_charged_nor_asked_for_again_soon() -> None:
    told = story(100, limits(oom_memory_ms=200))
    small(told, job("jobs/1"))
    told.on(ev.CapacityChanged(400))
    assert resized(told, 4) == []
    assert bytes_of(told) == 70
    assert told.on(ev.Ticked(), after_ms=199) == []
    assert told.on(ev.Ticked(), after_ms=1) == [Resize(S, "8 of 8", 100)]


def test_a_stage_that_is_nearly_done_stays_as_it_is() -> None:
    told = story(100)
    small(told, job("jobs/1"))  # 500 ms, and 100 with all layers
    told.on(ev.Ticked(), after_ms=400)
    assert told.on(ev.CapacityChanged(400)) == [], "80 ms saved, 40 taken: not twice as much"


def test_nothing_grows_while_somebody_waits_for_memory_or_will_want_it_to_run() -> None:
    told = story(400)
    told.on(ev.CapacityChanged(100, 400))
    small(told, job("jobs/1"))
    told.submit(job("jobs/2", TRANSCRIBE, arrival_ms=9))
    assert told.on(ev.CapacityChanged(170, 400)) == [], "jobs/2 waits"
    assert told.on(ev.CancelRequested("jobs/2")) == [Resize(S, "8 of 8", 100)]


def test_the_run_of_an_engine_in_memory_keeps_its_room() -> None:
    told = story(300, limits(compute_slots=1), 4, 8)
    told.on(ev.Described(S, description(S, layers(4), layers(8, load_ms=9_999))))
    told.on(ev.LoadRequested(T))
    told.loaded(T)
    told.submit(job("jobs/1", StageKind.SEPARATE, TRANSCRIBE))
    told.loaded(S, resident=40)
    used, spare = told.scheduler.ledger.used_bytes, 40 + 20
    told.on(ev.CapacityChanged(used + spare - 1))
    assert told.on(ev.Described(S, description(S, layers(4), layers(8)))) == []
    assert told.on(ev.CapacityChanged(used + spare)) == [Resize(S, "8 of 8", 100)]


# ---- around it -----------------------------------------------------------------------------------


def test_a_stage_may_end_first_then_its_engine_serves_nobody_until_it_is_resized() -> None:
    told = story(200)
    separate(told, job("jobs/batch", priority=BATCH))
    told.submit(job("jobs/urgent", TRANSCRIBE, priority=INTERACTIVE, arrival_ms=9))
    assert told.done(S, "jobs/batch") == []
    told.submit(job("jobs/next", arrival_ms=10))
    assert "separation is resizing" in told.scheduler.waiting_for("jobs/next")
    assert not told.scheduler.is_quiet and not told.scheduler.engines[S].is_idle
    assert resized(told, 4) == [Load(T, "full", "jobs/urgent"), Run(S, "jobs/next", 0)]


def test_a_process_that_ends_while_its_layers_move_is_charged_nothing() -> None:
    told = story(220)
    separate(told, job("jobs/batch", priority=BATCH))
    told.submit(job("jobs/urgent", TRANSCRIBE, priority=INTERACTIVE, arrival_ms=9))
    told.on(ev.DrainRequested())
    told.on(ev.EngineDied(S, Failure("RELEASE_NOT_CONFIRMED", "it kept them")))
    assert bytes_of(told) == 0 and told.scheduler.engines[S].target is None


def test_a_leased_engine_that_shrinks_for_a_higher_class_is_leased_no_more() -> None:
    told = story(330, limits(compute_slots=1))
    told.submit(job("jobs/other", StageKind.ANALYZE), job("jobs/1", arrival_ms=9))
    told.loaded(A)
    told.loaded(S, resident=80)
    assert told.scheduler.engines[S].leased_to == "jobs/1"
    urgent = job("jobs/urgent", TRANSCRIBE, priority=INTERACTIVE, arrival_ms=9)
    assert told.submit(urgent) == [Resize(S, "4 of 8", 40)]
    assert (told.scheduler.engines[S].leased_to, bytes_of(told, Part.RUN)) == ("", 0)


def test_somebody_who_asks_for_another_size_gets_it_without_a_load() -> None:
    told = story(300)
    separate(told, job("jobs/1"))
    told.done(S, "jobs/1")
    assert told.on(ev.LoadRequested(S, "2 of 8")) == [Resize(S, "2 of 8", 20)]
    assert resized(told, 2) == []
    assert told.scheduler.engines[S].wish is None
    assert told.on(ev.LoadRequested(S, "8 of 8")) == [Resize(S, "8 of 8", 80)]


def test_a_dry_run_plays_it_forward() -> None:
    told = story(220)
    separate(told, job("jobs/batch", priority=BATCH))
    urgent = job("jobs/urgent", TRANSCRIBE, priority=INTERACTIVE, arrival_ms=9)
    plan = plan_job(told.scheduler.state(), urgent)
    assert plan.end_ms is not None
    assert any("'8 of 8' becomes '4 of 8'" in text for text in plan.decisions)
    told.submit(urgent)
    assert plan_job(told.scheduler.state(), job("jobs/3", TRANSCRIBE)).end_ms is not None


def test_the_ledger_gives_back_no_more_than_there_is_and_one_thing_at_a_time() -> None:
    told = story(220)
    separate(told, job("jobs/1"))
    ledger = told.scheduler.ledger
    with pytest.raises(LedgerRefusal, match="cannot give back -20"):
        ledger.ask_back(S, option(weights=100).resident)
    ledger.ask_back(S, layers(4).resident)
    with pytest.raises(LedgerRefusal, match="cannot give back"):
        ledger.ask_back(S, layers(2).resident)
    assert bytes_of(told) == 110
    assert ledger.bytes_of(S, Part.SURPLUS) == 40
    run = ledger.entries()[S, Part.RUN].lines
    with pytest.raises(LedgerRefusal, match="only 40 bytes"):
        ledger.take_back(S, (*run, LineBytes(Line.WORKSPACE, 41)))
    ledger.set_capacity(100)
    ledger.take_back(S, (*run, LineBytes(Line.WORKSPACE, 40)))
    assert bytes_of(told) == 110 and not ledger.bytes_of(S, Part.SURPLUS)
