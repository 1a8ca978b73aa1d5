"""How an engine comes into memory for one stage: which option, and who must go. Exact and pure.

Two questions, two functions:
- `best_tier`: the best quality that this budget can ever give this stage. It depends on the
  capacity alone, never on who happens to be in memory, so quality does not vary with the load.
- `plan`: within that tier, the cheapest way to be there now, counting what the evicted will need
  to come back. None means: wait, somebody busy holds the bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from coscheduler.core.model import EngineName, Option

KEEP, UNLOAD, STOP = "keep", "unload", "stop"


@dataclass(frozen=True)
class Tenant:
    """An idle engine that may be asked to leave: what that frees and what it costs to come back."""

    engine: EngineName
    resident_bytes: int
    context_bytes: int
    reload_ms: int
    restart_ms: int


@dataclass(frozen=True)
class Request:
    """A stage that needs its engine in memory.

    `context_bytes` is what the engine's own process still has to take (0 when it is started).
    `needs_process` says whether it is one more process with a context. `runs` is how many stages
    the engine has still to do, this one included.
    """

    options: Sequence[Option]
    duration_ms: int
    context_bytes: int
    needs_process: bool
    runs: int = 1


@dataclass(frozen=True)
class Room:
    """The device as it is: free bytes, idle tenants, and how many more contexts are allowed."""

    free_bytes: int
    tenants: tuple[Tenant, ...]
    processes_free: int


@dataclass(frozen=True)
class Plan:
    """The chosen option, who is unloaded and whose process is stopped for it, and the cost."""

    option: Option
    unload: tuple[EngineName, ...]
    stop: tuple[EngineName, ...]
    cost_ms: int


def fits_alone(option: Option, duration_ms: int, context_bytes: int, capacity_bytes: int) -> bool:
    """True when the option fits into an otherwise empty device."""
    return context_bytes + option.peak_bytes(duration_ms) <= capacity_bytes


def best_tier(
    options: Sequence[Option], duration_ms: int, context_bytes: int, capacity_bytes: int
) -> int | None:
    """The best quality tier that fits alone; None when nothing ever fits."""
    tiers = [
        option.quality_tier
        for option in options
        if fits_alone(option, duration_ms, context_bytes, capacity_bytes)
    ]
    return min(tiers, default=None)


def least_bytes(options: Sequence[Option], duration_ms: int, context_bytes: int) -> int:
    """The smallest footprint of any option, bytes: the number to tell a job that never fits."""
    return context_bytes + min(option.peak_bytes(duration_ms) for option in options)


def plan(request: Request, tier: int, room: Room) -> Plan | None:
    """The cheapest plan within the tier, ties broken by the engine's own order of options."""
    plans = [
        Plan(option, unload, stop, _cost_ms(option, request.duration_ms, room, unload, stop))
        for unload, stop, freed_bytes, freed_processes in _ways_to_make_room(room.tenants)
        if not request.needs_process or room.processes_free + freed_processes > 0
        for option in request.options
        if option.quality_tier == tier
        if request.context_bytes + option.peak_bytes(request.duration_ms)
        <= room.free_bytes + freed_bytes
    ]
    cheapest = min(plans, key=lambda candidate: candidate.cost_ms, default=None)
    if cheapest is None:
        return None
    same_way = (p for p in plans if (p.unload, p.stop) == (cheapest.unload, cheapest.stop))
    return min(same_way, key=lambda candidate: _all_runs_ms(candidate.option, request))


def _all_runs_ms(option: Option, request: Request) -> int:
    """Who goes is decided by this stage alone; but what is loaded serves all that come after it,
    each taken to be as long.
    """
    run_ms = option.run_ms_per_second * request.duration_ms // 1000
    return option.load_ms + request.runs * run_ms


Way = tuple[tuple[EngineName, ...], tuple[EngineName, ...], int, int]


def _ways_to_make_room(tenants: tuple[Tenant, ...]) -> Iterator[Way]:
    """Every combination of keep, unload and stop: 3^n for the n <= 2 other engines."""
    for choice in product((KEEP, UNLOAD, STOP), repeat=len(tenants)):
        pairs = list(zip(tenants, choice, strict=True))
        if any(way == UNLOAD and tenant.resident_bytes == 0 for tenant, way in pairs):
            continue  # nothing is loaded there
        unload = tuple(tenant.engine for tenant, way in pairs if way == UNLOAD)
        stop = tuple(tenant.engine for tenant, way in pairs if way == STOP)
        freed = sum(tenant.resident_bytes for tenant, way in pairs if way != KEEP)
        freed += sum(tenant.context_bytes for tenant, way in pairs if way == STOP)
        yield unload, stop, freed, len(stop)


def _cost_ms(
    option: Option,
    duration_ms: int,
    room: Room,
    unload: tuple[EngineName, ...],
    stop: tuple[EngineName, ...],
) -> int:
    run_ms = option.run_ms_per_second * duration_ms // 1000
    reload_ms = sum(t.reload_ms for t in room.tenants if t.engine in unload + stop)
    restart_ms = sum(t.restart_ms for t in room.tenants if t.engine in stop)
    return option.load_ms + run_ms + reload_ms + restart_ms
