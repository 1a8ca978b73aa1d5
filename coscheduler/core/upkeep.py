"""What is done in every round whether a job has its turn or not: marks whose reason is gone, memory
that a lowered budget lacks, layers that may come, engines that may leave.
"""

from coscheduler.core.actions import Actions
from coscheduler.core.books import Books
from coscheduler.core.engine_state import EngineState, Phase
from coscheduler.core.sizes import Sizes
from coscheduler.core.wishes import FOR_OPERATOR

SHRANK = "the budget shrank"


class Upkeep:
    """The state that it changes is the scheduler's own."""

    def __init__(self, books: Books, actions: Actions) -> None:
        self._books, self._ledger, self._jobs = books, books.ledger, books.jobs
        self._actions = actions
        self._sizes = Sizes(books)

    def rerank(self) -> None:
        """Those at work fall behind as they work."""
        for state in self._books.engines.values():
            if state.phase is Phase.RUNNING and (job := self._jobs.get(state.job)):
                self._jobs.rerank(job, state.ran_ms(job.stage, self._jobs.now_ms))

    def forget_marks(self) -> None:
        """Leases, holds and guesses whose reason is gone."""
        for state in self._books.engines.values():
            if state.leased_to and not self._jobs.is_pending(state.leased_to):
                self._actions.end_lease(state)
            if state.held_for and not self._jobs.is_pending(state.held_for):
                state.held_for = ""
            if state.learned.forget_old_guesses(self._jobs.now_ms):
                self._actions.decide(f"{state.name}: what ran out of memory is tried again")

    # ---- who leaves ----------------------------------------------------------------------------

    def let_leave(self) -> None:
        """Stop the idle engines that somebody wants gone."""
        for state in self._books.engines.values():
            if state.is_leaving and state.is_idle:
                self._actions.stop(state, FOR_OPERATOR)

    def unload_idle(self) -> None:
        """Engines whose keep-alive ran out and that nobody waits for leave, step by step."""
        since_ms = self._jobs.now_ms - self._books.limits.keep_alive_ms
        idle = [s for s in self._books.engines.values() if s.is_idle and s.since_ms <= since_ms]
        wanted = self._jobs.wanted_engines() if idle else ()
        for state in idle:
            if state.name not in wanted and not state.is_pinned:
                leave = self._actions.unload if state.phase is Phase.LOADED else self._actions.stop
                leave(state, f"idle for {self._jobs.now_ms - state.since_ms} ms")

    # ---- layers --------------------------------------------------------------------------------

    def grow(self) -> None:
        """Running engines take what nobody waits for, where it pays within the stage at hand."""
        for state in self._books.engines.values():
            if (option := self._sizes.larger(state)) is not None:
                self._actions.resize(state, option.name, "memory is free")

    # ---- a lower budget ------------------------------------------------------------------------

    def reduce_overdraft(self) -> None:
        """After the budget shrank: idle engines leave, the longest idle first; then stages that
        rank last are put back into the queue, to come again as they fit; pinned engines come last.
        Of an engine that can give what is missing where it is, nothing else is asked.
        """
        missing = self._ledger.overdraft_bytes - self._ledger.releasing_bytes
        if missing <= 0:
            return
        idle = [state for state in self._books.engines.values() if state.is_idle]
        idle.sort(key=lambda state: state.since_ms)
        unpinned = [state for state in idle if not state.is_pinned]
        pinned = [state for state in idle if state.is_pinned]
        for state in (*unpinned, *self._at_work(), *pinned):
            if missing > 0:
                missing -= self._give_back(state, missing)

    def _at_work(self) -> list[EngineState]:
        """The engines with a stage, last in rank first."""
        phases = (Phase.RUNNING, Phase.PAUSED)
        at_work = (state for state in self._books.engines.values() if state.phase in phases)
        return sorted(at_work, key=lambda state: self._jobs.key_of(state.job), reverse=True)

    def _give_back(self, state: EngineState, missing: int) -> int:
        """Ask an engine for so many bytes; how many it will give."""
        if (smaller := self._sizes.smaller_by(state, missing)) is not None:
            self._actions.resize(state, smaller.name, SHRANK)
            return missing
        if state.is_idle:
            self._actions.stop(state, SHRANK)
        else:
            self._actions.ask(state, "preempt", SHRANK)
        return self._ledger.bytes_of(state.name)
