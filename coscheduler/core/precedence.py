"""Who gives way to whom. Reads the books, changes nothing.

A job gives way only to one of a higher class that also ranks before it: having waited protects it,
and so does `preempts_max`, since stopping (not pausing) may cost work. A long stage gives way once
more for every `ageing_ms` that it has run. An engine that keeps fewer layers works on, only slower:
so it shrinks for any job that ranks before its own and can run beside it.
"""

from coscheduler.core.books import Books
from coscheduler.core.engine_state import EngineState, Phase
from coscheduler.core.model import Job


class Precedence:
    """Between one job and those that hold engines."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._jobs = books.jobs

    def outranks(self, job: Job, other: Job) -> bool:
        """Has `job` a higher class, and does it rank before the other?"""
        return job.priority > other.priority and self._is_before(job, other)

    def gives_way(self, job: Job, state: EngineState) -> bool:
        """Does the job at work there give way to `job`?"""
        other = self._at_work(state)
        return other is not None and self.outranks(job, other)

    def may_preempt(self, job: Job, state: EngineState) -> bool:
        """May `job` end the stage that runs or is paused there? Its work may be lost: bounded."""
        if not self.gives_way(job, state):
            return False
        stage, limits = self._jobs[state.job].stage, self._books.limits
        earned = state.ran_ms(stage, self._jobs.now_ms) // limits.ageing_ms
        return stage.preempt_count < limits.preempts_max + earned

    def shrinks_for(self, job: Job, state: EngineState) -> bool:
        """May the engine at work become smaller for the job, as far as it can? Among equals only if
        both can run.
        """
        other = self._at_work(state)
        if other is None:
            return False
        has_slot = self._books.running_count < self._books.limits.compute_slots
        is_of_use = self.outranks(job, other) or has_slot
        return is_of_use and self._is_before(job, other)

    def is_leased_from(self, job: Job, state: EngineState) -> bool:
        """Was the engine loaded for another job, which `job` may not push aside?"""
        if not state.leased_to or state.leased_to == job.name:
            return False
        return not self.outranks(job, self._jobs[state.leased_to])

    def is_kept_from(self, job: Job, state: EngineState) -> bool:
        """Did a higher class use it a moment ago?"""
        is_kept = self._jobs.now_ms < state.kept_until_ms(self._books.limits)
        return is_kept and job.priority < state.used_by

    def _is_before(self, job: Job, other: Job) -> bool:
        return self._jobs.key_of(job.name) < self._jobs.key_of(other.name)

    def _at_work(self, state: EngineState) -> Job | None:
        is_at_work = state.phase in (Phase.RUNNING, Phase.PAUSED)
        return self._jobs.get(state.job) if is_at_work else None
