"""What an operator may ask for while the daemon runs: memory, engines, a drain.

Nothing here acts at once. A request leaves a mark on the engine, and each round of decisions obeys
the marks: an engine that is to leave ends as soon as it is idle, and serves nobody before; a load
that was asked for comes after every job.
"""

from coscheduler.core import events as ev
from coscheduler.core.actions import Actions
from coscheduler.core.books import Books
from coscheduler.core.engine_state import EngineState, Phase
from coscheduler.core.model import EngineName
from coscheduler.core.refusals import never_fits, not_configured, refused
from coscheduler.core.wishes import WISHED_DURATION_MS, asked_for
from coscheduler.errors import InvalidInput, Refused


class Controls:
    """The state that it changes is the scheduler's own."""

    def __init__(self, books: Books, actions: Actions) -> None:
        self.is_draining = False
        self._books = books
        self._actions = actions

    # ---- may it be asked? ----------------------------------------------------------------------

    def usable(self, engine: EngineName) -> EngineState:
        """The engine. Raises Refused ENGINE_NOT_CONFIGURED, or the engine's own reason."""
        state = self._books.engines.get(engine)
        if state is None:
            raise refused(not_configured(engine))
        if state.failure is not None:
            raise refused(state.failure)
        return state

    def check_load(self, engine: EngineName, option: str) -> None:
        """May LoadRequested be sent? Raises Refused as `usable`, or NEVER_FITS, and InvalidInput
        OPTION_UNKNOWN.
        """
        state = self.usable(engine)
        if state.description is None:
            return
        known = [each.name for each in state.options()]
        if option and option not in known:
            raise InvalidInput(
                "OPTION_UNKNOWN",
                f"{engine} has no option {option!r}; there are: {', '.join(known)}",
                option=option,
                known=", ".join(known),
            )
        budget = self._books.ledger.budget_bytes
        if not asked_for(state, option, budget):
            raise refused(never_fits(state, WISHED_DURATION_MS, budget))

    def check_unload(self, engine: EngineName) -> None:
        """May UnloadRequested be sent? Raises Refused as `usable`, or ENGINE_PINNED."""
        if self.usable(engine).is_pinned:
            raise Refused("ENGINE_PINNED", f"{engine} is pinned; unpin it before", engine=engine)

    # ---- events --------------------------------------------------------------------------------

    def on_load_requested(self, event: ev.LoadRequested) -> None:
        """Also when it is to leave: the newest request counts."""
        state = self._books.engines[event.engine]
        state.wish, state.note, state.is_leaving = event.option, "", False

    def on_unload_requested(self, event: ev.UnloadRequested) -> None:
        """Without a process there is nothing to do."""
        state = self._books.engines[event.engine]
        state.wish, state.note = None, ""
        state.is_leaving = state.phase in (
            Phase.STARTED,
            Phase.LOADED,
            Phase.LOADING,
            Phase.RUNNING,
            Phase.PAUSED,
            Phase.UNLOADING,
        )

    def on_pin_requested(self, event: ev.PinRequested) -> None:
        """A pin also ends a request to leave."""
        state = self._books.engines[event.engine]
        state.is_pinned = event.is_pinned
        state.is_leaving = state.is_leaving and not event.is_pinned
        self._actions.decide(f"{event.engine} is {'pinned' if event.is_pinned else 'not pinned'}")

    def on_drain_requested(self, event: ev.DrainRequested) -> None:
        """Nothing starts any more."""
        del event
        self.is_draining = True
        self._actions.decide("draining: nothing is started")

    def on_drain_ended(self, event: ev.DrainEnded) -> None:
        """Things start again."""
        del event
        self.is_draining = False
        self._actions.decide("the drain has ended")
