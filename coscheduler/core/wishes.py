"""Loads that somebody asked for without a job: they come after every job, and evict only what is
idle and wanted by nobody.
"""

from collections.abc import Mapping

from coscheduler.core import planner
from coscheduler.core.actions import Actions
from coscheduler.core.books import Books
from coscheduler.core.engine_state import EngineState, Phase
from coscheduler.core.intents import Bring, Wait
from coscheduler.core.model import EngineName, Option
from coscheduler.core.room import Rooms
from coscheduler.core.sizes import Sizes

FOR_OPERATOR = "somebody asked for it"
WISHED_DURATION_MS = 60_000  # of the recording that a load without a job gets ready for


class Wishes:
    """One for each engine at most; a note says what became of it, or what it waits for."""

    def __init__(self, books: Books, actions: Actions) -> None:
        self._books = books
        self._actions = actions
        self._rooms = Rooms(books)
        self._sizes = Sizes(books)

    def fulfil(self, claimed: Mapping[EngineName, str], spare_bytes: int | None) -> None:
        """Bring engines that were asked for into memory, as far as no job is in the way."""
        for state in self._books.engines.values():
            if state.wish is None or self._end_fulfilled(state):
                continue
            intent = self._consider(state, claimed, spare_bytes)
            if isinstance(intent, Bring):
                state.note = "being loaded, as was asked"
                self._actions.load(state, intent.option, "", WISHED_DURATION_MS)
            else:
                state.note = f"to be loaded, waits for: {intent.reason}"
                self._actions.set_in_motion(intent, FOR_OPERATOR)

    def _end_fulfilled(self, state: EngineState) -> bool:
        """Is it there as it was asked for? Then nothing is asked any more."""
        is_there = state.phase in (Phase.LOADED, Phase.RUNNING, Phase.PAUSED)
        if is_there and state.option is not None and state.wish in ("", state.option.name):
            state.wish, state.note = None, ""
        return state.wish is None

    def _consider(
        self, state: EngineState, claimed: Mapping[EngineName, str], spare_bytes: int | None
    ) -> Bring | Wait:
        if state.description is None or state.is_busy or state.phase is Phase.PAUSED:
            return Wait(f"{state.name} is {state.phase}")
        if state.phase is Phase.LOADED:
            return self._become(state, state.wish or "", state.name in claimed)
        capacity = self._books.ledger.capacity_bytes
        options = asked_for(state, state.wish or "", capacity)
        if not options:
            return Wait("it does not fit into the memory that other programs leave")
        request = planner.Request(
            options, WISHED_DURATION_MS, state.context_to_come_bytes, state.is_stopped
        )
        room = self._rooms.of_wish(state, claimed, WISHED_DURATION_MS)
        plan = planner.plan(request, options[0].quality_tier, room)
        if plan is None or spare_bytes is not None:
            return Wait(f"memory: {room.free_bytes} bytes are free")
        if not plan.evicts_nobody:
            return Wait.evicting(plan)
        return Bring(plan.option) if self._books.may_load else Wait("another load to end")

    def _become(self, state: EngineState, option: str, is_wanted: bool) -> Wait:
        """Loaded, but otherwise than was asked."""
        if self._sizes.can_become(state, option) and not state.leased_to:
            return Wait("its layers to come or go", resize=((state.name, option),))
        unload = () if is_wanted or state.leased_to else (state.name,)
        return Wait("another option of it is in memory", unload=unload)


def asked_for(state: EngineState, option: str, capacity_bytes: int) -> list[Option]:
    """The options that would do: the one that was named, or those of the best quality that fits."""
    asked = [each for each in state.options() if option in ("", each.name)]
    return planner.best_fitting(asked, WISHED_DURATION_MS, state.context_bytes, capacity_bytes)
