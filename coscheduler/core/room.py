"""What a job, or a load that somebody asked for, may plan with: free bytes and who may give way.
Reads the books, changes nothing.
"""

from collections.abc import Mapping
from dataclasses import replace

from coscheduler.core import planner
from coscheduler.core.books import Books
from coscheduler.core.engine_state import EngineState
from coscheduler.core.intents import Turn
from coscheduler.core.ledger import Part
from coscheduler.core.model import EngineName
from coscheduler.core.precedence import Precedence
from coscheduler.core.sizes import Sizes

RESTART_MS = 1000  # what stopping a process costs beside the reload


class Rooms:
    """The device as each turn finds it."""

    def __init__(self, books: Books) -> None:
        self._books, self._ledger = books, books.ledger
        self._precedence = Precedence(books)
        self._sizes = Sizes(books)

    def of_turn(self, turn: Turn, at_work: bool = False) -> planner.Room:
        """Behind a waiting head only spare bytes, and no evictions."""
        free = self._ledger.free_bytes
        if turn.spare_bytes is not None and turn.engine not in turn.held:
            free = max(0, min(free, turn.spare_bytes))
        free += self._ledger.bytes_of(turn.engine, Part.RUN)  # of its lease, or one that gives way
        tenants = () if turn.spare_bytes is not None else self._tenants(turn, at_work)
        return planner.Room(free, tenants, self._books.processes_free)

    def of_wish(
        self, state: EngineState, claimed: Mapping[EngineName, str], duration_ms: int
    ) -> planner.Room:
        """Only who is idle and wanted by nobody gives way for it."""
        tenants = tuple(
            self._tenant(other, duration_ms)
            for other in self._books.engines.values()
            if other.name is not state.name and other.is_idle and not other.is_pinned
            if other.name not in claimed and not other.leased_to and other.wish is None
        )
        return planner.Room(self._ledger.free_bytes, tenants, self._books.processes_free)

    def _tenants(self, turn: Turn, at_work: bool) -> tuple[planner.Tenant, ...]:
        """Those that may have to give something up: the idle ones, and on request those at work."""
        tenants = []
        for other in self._books.engines.values():
            if other.name is turn.engine or other.is_pinned:
                continue
            may_leave = self._is_evictable(turn, other)
            if may_leave or (at_work and self._precedence.shrinks_for(turn.job, other)):
                may_leave = may_leave or self._precedence.may_preempt(turn.job, other)
                tenant = self._tenant(other, turn.stage.duration_ms)
                tenants.append(replace(tenant, may_leave=may_leave))
        return tuple(tenants)

    def _is_evictable(self, turn: Turn, state: EngineState) -> bool:
        return (
            state.is_idle
            and state.name not in turn.claimed
            and not self._precedence.is_leased_from(turn.job, state)
            and not self._precedence.is_kept_from(turn.job, state)
        )

    def _tenant(self, state: EngineState, duration_ms: int) -> planner.Tenant:
        return planner.Tenant(
            state.name,
            self._ledger.bytes_of(state.name, Part.RESIDENT, Part.SLACK, Part.RUN),
            self._ledger.bytes_of(state.name, Part.CONTEXT),
            state.option.load_ms if state.option else 0,
            RESTART_MS,
            self._sizes.smaller(state, duration_ms),
        )
