"""Which other option of its family a loaded engine may go to: fewer layers for others' sake, more
where memory is free and it pays. Reads the scheduler's state, changes nothing.
"""

from coscheduler.core import planner
from coscheduler.core.books import Books
from coscheduler.core.engine_state import EngineState, Phase
from coscheduler.core.ledger import Part
from coscheduler.core.model import Lines, Option, Stage, total_bytes

GROWTH_GAIN = 2  # growing must save so many times what it takes


class Sizes:
    """The state that it reads is the scheduler's own."""

    def __init__(self, books: Books) -> None:
        self._books, self._ledger, self._jobs = books, books.ledger, books.jobs

    # ---- fewer layers --------------------------------------------------------------------------

    def smaller(self, state: EngineState, duration_ms: int) -> tuple[planner.Smaller, ...]:
        """The options that hold less, with what each frees: the lease of an idle engine ends, too.
        It costs the way back, or all coming runs being slower, if recordings are of that length.
        """
        leased = self._ledger.bytes_of(state.name, Part.RUN) if state.is_idle else 0
        found = []
        for option in self._kin(state):
            if state.option is not None and (less := -self._more(state, option)) > 0:
                back_ms = _come_ms(state.option, less)
                cost_ms = min(back_ms, self._slower_ms(state, option, duration_ms))
                found.append(planner.Smaller(option.name, less + leased, cost_ms))
        return tuple(found)

    def _slower_ms(self, state: EngineState, option: Option, duration_ms: int) -> int:
        assert state.option is not None
        slower = max(0, option.run_ms(duration_ms) - state.option.run_ms(duration_ms))
        return self._jobs.ahead(state.name) * slower

    def smaller_by(self, state: EngineState, size_bytes: int) -> Option | None:
        """The largest option that frees so much."""
        fitting = (kin for kin in self._kin(state) if -self._more(state, kin) >= size_bytes)
        return max(fitting, key=lambda option: total_bytes(option.resident), default=None)

    # ---- more layers ---------------------------------------------------------------------------

    def larger(self, state: EngineState) -> Option | None:
        """The fastest option for the engine at work that fits into what nobody will want soon, and
        saves its stage more time than its layers take to come.
        """
        job = self._jobs.get(state.job)
        if state.phase is not Phase.RUNNING or job is None:
            return None
        if self._jobs.now_ms < state.grow_after_ms:
            return None
        stage = job.stage
        free = self._ledger.free_bytes - self._soon_wanted(state, stage.duration_ms)
        larger = (
            option
            for option in self._kin(state)
            if 0 < self._more(state, option) <= free
            if self._pays(state, option, stage)
        )
        return min(larger, key=lambda option: option.run_ms_per_second, default=None)

    def can_become(self, state: EngineState, name: str) -> bool:
        """Is there room for the option of that name, which is of the engine's family?"""
        named = (option for option in self._kin(state) if option.name == name)
        return any(self._more(state, option) <= self._ledger.free_bytes for option in named)

    def _soon_wanted(self, state: EngineState, duration_ms: int) -> int:
        """What the runs of the other engines in memory will take, if recordings are alike."""
        return sum(
            total_bytes(other.option.run_lines(duration_ms))
            for other in self._books.engines.values()
            if other.name is not state.name and other.phase is Phase.LOADED
            if other.option is not None and self._jobs.ahead(other.name)
        )

    def _pays(self, state: EngineState, option: Option, stage: Stage) -> bool:
        now = state.option
        assert now is not None
        whole_ms = state.learned.expected_run_ms(now, stage.duration_ms)
        rest_ms = whole_ms - state.ran_ms(stage, self._jobs.now_ms)
        faster = now.run_ms_per_second - option.run_ms_per_second
        saved_ms = rest_ms * faster // max(1, now.run_ms_per_second)
        return saved_ms > GROWTH_GAIN * _come_ms(option, self._more(state, option))

    def _kin(self, state: EngineState) -> tuple[Option, ...]:
        if not state.is_resizable:
            return ()
        held = self._ledger.bytes_of(state.name, Part.RESIDENT)
        return tuple(
            option
            for option in state.kin()
            if total_bytes(option.resident) >= held or self._more(state, option) <= 0
        )

    def _more(self, state: EngineState, option: Option) -> int:
        held = self._ledger.bytes_of(state.name, Part.RESIDENT, Part.RUN)
        run = run_lines(self._books, state, option)
        return total_bytes(option.resident) + total_bytes(run) - held


def run_lines(books: Books, state: EngineState, option: Option) -> Lines:
    """What is reserved for what runs there once the engine holds what `option` holds: as before, or
    what the option needs for a run where that is more.
    """
    entry = books.ledger.entries().get((state.name, Part.RUN))
    now, job = entry.lines if entry is not None else (), books.jobs.get(state.job)
    if state.phase is not Phase.RUNNING or job is None:
        return now
    wanted = option.run_lines(job.stage.duration_ms)
    return max(now, wanted, key=total_bytes)


def _come_ms(option: Option, size_bytes: int) -> int:
    """What so many bytes of the option take to come: their part of its load."""
    return option.load_ms * size_bytes // max(1, total_bytes(option.resident))
