from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from coscheduler.core import planner
from coscheduler.core.model import EngineName, Line, Option, RunLine
from coscheduler.core.planner import Request, Room, Tenant
from tests.core.build import A, T, option

BIG = option("big", weights=100, run=20, speed=1)
SMALL = option("small", weights=40, run=20, speed=50)
WORSE = option("worse", weights=20, run=5, tier=1, speed=1)


def tenant(engine: EngineName, resident: int = 50, context: int = 10, reload: int = 100) -> Tenant:
    return Tenant(engine, resident, context, reload, 1000)


def ask(*options: Option, context: int = 0) -> Request:
    return Request(options or (BIG, SMALL), 10_000, context, needs_process=False)


def test_the_fastest_option_that_fits_is_taken() -> None:
    plan = planner.plan(ask(), 0, Room(120, (), 3))
    assert plan is not None and plan.option is BIG
    plan = planner.plan(ask(), 0, Room(119, (), 3))
    assert plan is not None and plan.option is SMALL
    assert planner.plan(ask(), 0, Room(59, (), 3)) is None


def test_what_is_loaded_is_chosen_for_all_that_come_after() -> None:
    """Slow to load and fast to run pays off from some number of runs on."""
    quick, fast = option("quick", weights=40, speed=20), option("fast", weights=500, speed=1)
    chosen = [
        planner.plan(replace(ask(quick, fast), runs=runs), 0, Room(1000, (), 3))
        for runs in (1, 2, 3, 20)
    ]
    assert [plan and plan.option.name for plan in chosen] == ["quick", "quick", "fast", "fast"]


def test_who_goes_is_decided_by_this_stage_alone() -> None:
    room = Room(60, (tenant(T, 60, reload=10_000),), 3)
    plan = planner.plan(replace(ask(), runs=1000), 0, room)
    assert plan is not None and plan.option is SMALL and plan.unload == ()


def test_a_context_that_is_not_there_yet_needs_room_too() -> None:
    assert planner.plan(ask(SMALL, context=10), 0, Room(69, (), 3)) is None
    assert planner.plan(ask(SMALL, context=10), 0, Room(70, (), 3)) is not None


def test_eviction_is_weighed_against_running_slower() -> None:
    cheap = planner.plan(ask(), 0, Room(60, (tenant(T, 60, reload=10),), 3))
    assert cheap is not None and cheap.option is BIG and cheap.unload == (T,)
    dear = planner.plan(ask(), 0, Room(60, (tenant(T, 60, reload=10_000),), 3))
    assert dear is not None and dear.option is SMALL and dear.unload == ()


def test_the_cheaper_victim_goes() -> None:
    room = Room(0, (tenant(T, 60, reload=10_000), tenant(A, 60, reload=10)), 3)
    plan = planner.plan(ask(SMALL), 0, room)
    assert plan is not None and plan.unload == (A,) and plan.stop == ()


def test_a_process_is_stopped_only_when_unloading_is_not_enough() -> None:
    room = Room(0, (tenant(T, resident=55, context=10),), 3)
    plan = planner.plan(ask(SMALL), 0, room)
    assert plan is not None and plan.stop == (T,) and plan.unload == ()


def test_the_number_of_contexts_is_a_bound_of_its_own() -> None:
    request = Request((SMALL,), 10_000, 10, needs_process=True)
    assert planner.plan(request, 0, Room(1000, (), 0)) is None
    plan = planner.plan(request, 0, Room(1000, (tenant(T),), 0))
    assert plan is not None and plan.stop == (T,)


def test_quality_is_decided_by_the_capacity_alone() -> None:
    assert planner.best_tier((BIG, WORSE), 10_000, 10, 130) == 0
    assert planner.best_tier((BIG, WORSE), 10_000, 10, 129) == 1
    assert planner.best_tier((BIG, WORSE), 10_000, 10, 34) is None
    assert planner.least_bytes((BIG, WORSE), 10_000, 10) == 35


def test_run_lines_grow_by_started_seconds_up_to_their_limit() -> None:
    line = RunLine(Line.WORKSPACE, 5, bytes_per_second=2, seconds_max=30)
    assert [line.at(ms).bytes for ms in (0, 1, 1000, 1001, 30_000, 99_000)] == [5, 7, 7, 9, 65, 65]


@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(0, 50), st.integers(1, 90)), min_size=1,
             max_size=6),
    st.integers(0, 400),
    st.integers(0, 100),
    st.lists(st.tuples(st.integers(0, 100), st.integers(1, 30), st.integers(0, 5000)), max_size=2),
)  # fmt: skip
def test_plans_fit_and_more_room_is_never_slower(
    sizes: list[tuple[int, int, int]],
    free: int,
    extra: int,
    others: list[tuple[int, int, int]],
) -> None:
    options = [option(str(i), w, r, speed=s) for i, (w, r, s) in enumerate(sizes)]
    tenants = tuple(tenant(e, *o) for e, o in zip((T, A), others, strict=False))
    plan = planner.plan(ask(*options), 0, Room(free, tenants, 3))
    more = planner.plan(ask(*options), 0, Room(free + extra, tenants, 3))
    if plan is None:
        return
    freed = sum(t.resident_bytes for t in tenants if t.engine in plan.unload + plan.stop)
    freed += sum(t.context_bytes for t in tenants if t.engine in plan.stop)
    assert plan.option.peak_bytes(10_000) <= free + freed
    assert more is not None and more.cost_ms <= plan.cost_ms
