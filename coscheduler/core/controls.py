"""What an operator may ask for while the daemon runs: memory, engines, a drain.

Nothing here acts at once. A request leaves a mark on the engine, and each round of decisions obeys
the marks: an engine that is to leave ends as soon as it is idle, and serves nobody before; a load
that was asked for comes after every job.
"""

from collections.abc import Mapping

from coscheduler.core import events as ev
from coscheduler.core import planner
from coscheduler.core.actions import Actions
from coscheduler.core.decisions import WISHED_DURATION_MS, Decider
from coscheduler.core.engine_state import EngineState, Phase
from coscheduler.core.intents import Bring
from coscheduler.core.jobs import JobBook
from coscheduler.core.ledger import Ledger
from coscheduler.core.model import EngineName
from coscheduler.core.refusals import never_fits
from coscheduler.errors import InvalidInput, Refused

FOR_OPERATOR = "somebody asked for it"


class Controls:
    """The state that it changes is the scheduler's own."""

    def __init__(
        self,
        ledger: Ledger,
        engines: Mapping[EngineName, EngineState],
        jobs: JobBook,
        actions: Actions,
        decider: Decider,
    ) -> None:
        self.is_draining = False
        self._ledger = ledger
        self._engines = engines
        self._jobs = jobs
        self._actions = actions
        self._decider = decider

    # ---- may it be asked? ----------------------------------------------------------------------

    def usable(self, engine: EngineName) -> EngineState:
        """The engine. Raises Refused ENGINE_NOT_CONFIGURED, or the engine's own reason."""
        state = self._engines.get(engine)
        if state is None:
            raise Refused(
                "ENGINE_NOT_CONFIGURED",
                f"the config has no [{engine}] section",
                engine=engine,
            )
        if state.failure is not None:
            raise Refused(
                state.failure.reason, state.failure.message, **dict(state.failure.numbers)
            )
        return state

    def check_load(self, engine: EngineName, option: str) -> None:
        """Changes nothing. Raises Refused as `usable`, or NEVER_FITS; OPTION_UNKNOWN."""
        state = self.usable(engine)
        if state.description is None:
            return
        known = {each.name: each for each in state.options()}
        if option and option not in known:
            raise InvalidInput(
                "OPTION_UNKNOWN",
                f"{engine} has no option {option!r}; there are: {', '.join(known)}",
                option=option,
                known=", ".join(known),
            )
        budget, context_bytes = self._ledger.budget_bytes, state.context_bytes
        asked = [known[option]] if option else list(known.values())
        if planner.best_tier(asked, WISHED_DURATION_MS, context_bytes, budget) is None:
            failure = never_fits(state, WISHED_DURATION_MS, budget)
            raise Refused(failure.reason, failure.message, **dict(failure.numbers))

    def check_unload(self, engine: EngineName) -> None:
        """Changes nothing. Raises Refused as `usable`, or ENGINE_PINNED."""
        if self.usable(engine).is_pinned:
            raise Refused("ENGINE_PINNED", f"{engine} is pinned; unpin it before", engine=engine)

    # ---- events --------------------------------------------------------------------------------

    def on_load_requested(self, event: ev.LoadRequested) -> None:
        """Also when it is to leave: the newest request counts."""
        state = self._engines[event.engine]
        state.wish, state.note, state.is_leaving = event.option, "", False

    def on_unload_requested(self, event: ev.UnloadRequested) -> None:
        """Without a process there is nothing to do."""
        state = self._engines[event.engine]
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
        state = self._engines[event.engine]
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

    # ---- obeying -------------------------------------------------------------------------------

    def let_leave(self) -> None:
        """Stop the idle engines that are to leave."""
        for state in self._engines.values():
            if state.is_leaving and state.is_idle:
                self._actions.stop(state, FOR_OPERATOR)

    def fulfil_wishes(self, claimed: Mapping[EngineName, str], spare_bytes: int | None) -> None:
        """Bring engines that were asked for into memory, as far as no job is in the way."""
        for state in self._engines.values():
            if state.wish is not None and not self._is_fulfilled(state):
                self._fulfil(state, claimed, spare_bytes)

    def _is_fulfilled(self, state: EngineState) -> bool:
        is_there = state.option is not None and state.wish in ("", state.option.name)
        if is_there and state.phase in (Phase.LOADED, Phase.RUNNING, Phase.PAUSED):
            state.wish, state.note = None, ""
        return state.wish is None

    def _fulfil(
        self, state: EngineState, claimed: Mapping[EngineName, str], spare_bytes: int | None
    ) -> None:
        intent = self._decider.consider_wish(state, claimed, spare_bytes)
        if isinstance(intent, Bring):
            state.note = "being loaded, as was asked"
            self._actions.load(state, intent.option, "", WISHED_DURATION_MS)
            return
        state.note = f"to be loaded, waits for: {intent.reason}"
        for name, option in intent.resize:
            self._actions.resize(self._engines[name], option, FOR_OPERATOR)
        for name in intent.unload:
            self._actions.unload(self._engines[name], FOR_OPERATOR)
        for name in intent.stop:
            self._actions.stop(self._engines[name], FOR_OPERATOR)
