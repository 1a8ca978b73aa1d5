"""How an engine comes into memory for one stage: which option, and who must go. Exact and pure.

Two questions, two functions:
- `best_tier`: the best quality that this budget can ever give this stage. It depends on the
  capacity alone, never on who happens to be in memory, so quality does not vary with the load.
- `plan`: within that tier, the cheapest way to be there now, counting what the evicted will need
  to come back. None means: wait, somebody busy holds the bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from coscheduler.core.model import EngineName, Option

KEEP, SHRINK, UNLOAD, STOP = "keep", "shrink", "unload", "stop"


@dataclass(frozen=True)
class Smaller:
    """An option that a tenant may go to where it is: what that frees and costs."""

    option: str
    freed_bytes: int
    cost_ms: int


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


def best_fitting(
    options: Sequence[Option], duration_ms: int, context_bytes: int, capacity_bytes: int
) -> list[Option]:
    """Of the options that fit alone those of the best quality, in their order."""
    fitting = [
        option
        for option in options
        if fits_alone(option, duration_ms, context_bytes, capacity_bytes)
    ]
    best = min((option.quality_tier for option in fitting), default=0)
    return [option for option in fitting if option.quality_tier == best]


def best_tier(
    options: Sequence[Option], duration_ms: int, context_bytes: int, capacity_bytes: int
) -> int | None:
    """The best quality tier that fits alone; None when nothing ever fits."""
    best = best_fitting(options, duration_ms, context_bytes, capacity_bytes)
    return best[0].quality_tier if best else None


def least_bytes(options: Sequence[Option], duration_ms: int, context_bytes: int) -> int:
    """The smallest footprint of any option, bytes: the number to tell a job that never fits."""
    return context_bytes + min(option.peak_bytes(duration_ms) for option in options)


def plan(request: Request, tier: int, room: Room) -> Plan | None:
    """The cheapest plan within the tier, ties broken by the engine's own order of options.

    Who leaves is decided by this stage alone: those who leave have work ahead, too, and would only
    come back to push out others. How much they keep who stay, and what is loaded, serves all the
    stages that come after, each taken to be as long.
    """
    peaks = [
        (option, request.context_bytes + option.peak_bytes(request.duration_ms))
        for option in request.options
        if option.quality_tier == tier
    ]
    ways = sorted(_ways(request, room), key=lambda way: way.cost_ms)
    fits = partial(_cheapest, peaks, free_bytes=room.free_bytes, duration_ms=request.duration_ms)
    if (for_this := fits(ways, runs=1)) is None:
        return None
    alike = [way for way in ways if way.leaving == for_this[1].leaving]
    for_all = fits(alike, runs=request.runs)
    assert for_all is not None
    option, way = for_all
    cost_ms = for_this[1].cost_ms + _all_ms(for_this[0], 1, request.duration_ms)
    return Plan(option, way.of(UNLOAD), way.of(STOP), cost_ms, way.shrink)


def _cheapest(
    peaks: Sequence[tuple[Option, int]],
    ways: "Sequence[_Way]",
    *,
    free_bytes: int,
    duration_ms: int,
    runs: int,
) -> "tuple[Option, _Way] | None":
    """Of the options, each with its peak and the first way that makes room for it."""
    found = [
        (option, way)
        for option, peak_bytes in peaks
        if (way := _first(ways, peak_bytes - free_bytes)) is not None
    ]
    return min(
        found, key=lambda pair: pair[1].cost_ms + _all_ms(pair[0], runs, duration_ms), default=None
    )


def _first(ways: "Sequence[_Way]", size_bytes: int) -> "_Way | None":
    return next((way for way in ways if way.freed_bytes >= size_bytes), None)


def _all_ms(option: Option, runs: int, duration_ms: int) -> int:
    return option.load_ms + runs * option.run_ms(duration_ms)


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
    def leaving(self) -> tuple[_Fate, ...]:
        """What becomes of those who do not stay."""
        return tuple(fate for fate in self.fates if fate.what in (UNLOAD, STOP))

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
        yield _Fate(engine, SHRINK, smaller.freed_bytes, smaller.cost_ms, smaller.option)
    if not tenant.may_leave:
        return
    if resident_bytes:  # else nothing is loaded there
        yield _Fate(engine, UNLOAD, resident_bytes, tenant.reload_ms)
    ended_bytes = resident_bytes + tenant.context_bytes
    yield _Fate(engine, STOP, ended_bytes, tenant.reload_ms + tenant.restart_ms)
