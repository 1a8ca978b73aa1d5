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

KEEP, SHRINK, UNLOAD, STOP = "keep", "shrink", "unload", "stop"


@dataclass(frozen=True)
class Smaller:
    """An option that a tenant may go to where it is: what that frees, and what going back costs."""

    option: str
    freed_bytes: int
    regrow_ms: int


@dataclass(frozen=True)
class Tenant:
    """An engine that may be asked to leave, or to become smaller: what that frees and costs."""

    engine: EngineName
    resident_bytes: int
    context_bytes: int
    reload_ms: int
    restart_ms: int
    smaller: tuple[Smaller, ...] = ()
    may_leave: bool = True


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
    """The chosen option, what becomes of whom for it, and the cost. `shrink`: to which option."""

    option: Option
    unload: tuple[EngineName, ...]
    stop: tuple[EngineName, ...]
    cost_ms: int
    shrink: tuple[tuple[EngineName, str], ...] = ()

    @property
    def evicts_nobody(self) -> bool:
        """Everybody keeps what they have."""
        return not (self.unload or self.stop or self.shrink)


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
    peaks = [
        (option, request.context_bytes + option.peak_bytes(request.duration_ms))
        for option in request.options
        if option.quality_tier == tier
    ]
    ways = sorted(_ways(request, room), key=lambda way: way.cost_ms)
    cheapest: tuple[int, _Way] | None = None
    for option, peak_bytes in peaks:
        fitting = (way for way in ways if peak_bytes <= room.free_bytes + way.freed_bytes)
        if (way := next(fitting, None)) is not None:
            cost_ms = way.cost_ms + option.load_ms + _run_ms(option, request)
            if cheapest is None or cost_ms < cheapest[0]:
                cheapest = cost_ms, way
    if cheapest is None:
        return None
    cost_ms, way = cheapest
    fits = [option for option, peak in peaks if peak <= room.free_bytes + way.freed_bytes]
    option = min(fits, key=lambda option: option.load_ms + request.runs * _run_ms(option, request))
    return Plan(option, way.of(UNLOAD), way.of(STOP), cost_ms, way.shrink)


def _run_ms(option: Option, request: Request) -> int:
    """Who goes is decided by this stage alone; but what is loaded serves all that come after it,
    each taken to be as long.
    """
    return option.run_ms_per_second * request.duration_ms // 1000


@dataclass(frozen=True)
class _Fate:
    """What may become of a tenant. `option`: the one that it shrinks to."""

    engine: EngineName
    what: str
    freed_bytes: int = 0
    cost_ms: int = 0
    option: str = ""


@dataclass(frozen=True)
class _Way:
    """What may become of all of them."""

    fates: tuple[_Fate, ...]
    freed_bytes: int
    cost_ms: int

    def of(self, what: str) -> tuple[EngineName, ...]:
        return tuple(fate.engine for fate in self.fates if fate.what == what)

    @property
    def shrink(self) -> tuple[tuple[EngineName, str], ...]:
        return tuple((fate.engine, fate.option) for fate in self.fates if fate.what == SHRINK)


def _ways(request: Request, room: Room) -> Iterator[_Way]:
    """Every combination of what may become of the n <= 2 other engines, as far as it leaves a
    process for the one that comes.
    """
    for fates in product(*map(_fates, room.tenants)):
        ended = sum(fate.what == STOP for fate in fates)
        if not request.needs_process or room.processes_free + ended > 0:
            freed_bytes = sum(fate.freed_bytes for fate in fates)
            yield _Way(fates, freed_bytes, sum(fate.cost_ms for fate in fates))


def _fates(tenant: Tenant) -> Iterator[_Fate]:
    engine, resident_bytes = tenant.engine, tenant.resident_bytes
    yield _Fate(engine, KEEP)
    for smaller in tenant.smaller:
        yield _Fate(engine, SHRINK, smaller.freed_bytes, smaller.regrow_ms, smaller.option)
    if not tenant.may_leave:
        return
    if resident_bytes:  # else nothing is loaded there
        yield _Fate(engine, UNLOAD, resident_bytes, tenant.reload_ms)
    ended_bytes = resident_bytes + tenant.context_bytes
    yield _Fate(engine, STOP, ended_bytes, tenant.reload_ms + tenant.restart_ms)
