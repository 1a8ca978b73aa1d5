"""Finding out what engines are: a process does it, and where that takes memory, it is asked first.

An engine that was added waits until the bytes of its survey are free. They are charged until the
answer has come; the process is gone by then.
"""

from coscheduler.core import events as ev
from coscheduler.core.actions import Actions
from coscheduler.core.books import Books
from coscheduler.core.engine_state import EngineState, Phase
from coscheduler.core.ledger import Part
from coscheduler.core.model import Failure, Line, LineBytes
from coscheduler.core.refusals import survey_never_fits


class Surveys:
    """The state that it changes is the scheduler's own."""

    def __init__(self, books: Books, actions: Actions) -> None:
        self._ledger, self._engines = books.ledger, books.engines
        self._actions = actions

    def on_engine_added(self, event: ev.EngineAdded) -> None:
        """It is described as soon as there is room for it."""
        self._engines[event.engine].survey_bytes = event.survey_bytes

    def on_described(self, event: ev.Described) -> None:
        """The engine can be used."""
        state = self._engines[event.engine]
        self._end(state, event.description.survey_bytes)
        state.description = event.description
        state.context_bytes = event.description.context_bytes
        if state.phase in (Phase.UNDESCRIBED, Phase.UNAVAILABLE):
            state.phase, state.failure = Phase.STOPPED, None
        for peak in event.peaks:
            state.learned.recall(peak)
            more = f"{peak.resident_bytes} bytes more to load, {peak.run_bytes} to run"
            earlier = f"learned from {peak.run_count} earlier run{'s'[: peak.run_count > 1]}"
            self._actions.decide(f"{state.name} '{peak.option}' takes {more}: {earlier}")

    def on_describe_failed(self, event: ev.DescribeFailed) -> None:
        """The engine cannot be used."""
        state = self._engines[event.engine]
        self._end(state, 0)
        self._give_up(state, event.failure)

    def start(self) -> None:
        """Ask each engine that was added and has room what it is."""
        for state in self._engines.values():
            if state.survey_bytes is None:
                continue
            if state.survey_bytes <= self._ledger.free_bytes:
                self._start(state, state.survey_bytes)
            elif state.survey_bytes > self._ledger.budget_bytes and state.failure is None:
                failure = survey_never_fits(
                    state.name, state.survey_bytes, self._ledger.budget_bytes
                )
                self._give_up(state, failure)

    def _start(self, state: EngineState, size_bytes: int) -> None:
        if size_bytes:
            key = state.name, Part.SURVEY
            self._ledger.reserve(key, (LineBytes(Line.SURVEY, size_bytes),))
            self._ledger.commit(key)
        state.phase, state.failure, state.survey_bytes = Phase.UNDESCRIBED, None, None
        self._actions.describe(state)

    def _end(self, state: EngineState, measured_bytes: int) -> None:
        """The process is gone; what it was given, and what it took, is said."""
        given = self._ledger.drop(state.name, Part.SURVEY)
        if given and measured_bytes:
            self._actions.decide(
                f"{state.name} is known: its survey took {measured_bytes} of {given} bytes"
            )

    def _give_up(self, state: EngineState, failure: Failure) -> None:
        state.phase, state.failure = Phase.UNAVAILABLE, failure
        self._actions.decide(f"{state.name} is unavailable: {failure.message}")
