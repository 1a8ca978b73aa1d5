"""The single owner of the Scheduler: takes events one at a time, stores, obeys, tells the watchers.

The order matters. What an event changed is on the disk before any command that follows from it is
carried out: a crash at any point costs at most the stage in flight, and never an accepted job.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from coscheduler.config import MIB
from coscheduler.core import events as ev
from coscheduler.core.commands import Run
from coscheduler.core.engine_state import Phase
from coscheduler.core.foresight import next_option, waiting_stage
from coscheduler.core.model import EngineName, Job, StageKind
from coscheduler.core.scheduler import Outcome, Scheduler
from coscheduler.errors import StoreFault
from coscheduler.runtime.api import JobSnapshot, Progress
from coscheduler.runtime.clock import Clock
from coscheduler.runtime.journal import Journal
from coscheduler.runtime.peaks import Peaks
from coscheduler.runtime.prefetch import Prefetcher
from coscheduler.runtime.store import Store
from coscheduler.runtime.supervisor import Supervisor
from coscheduler.runtime.watchers import Watchers

log = logging.getLogger(__name__)

TICK_SECONDS_MAX = 5.0
STORE_RETRY_SECONDS = 1.0
TOLERANCE_BYTES = 16 * MIB
TOLERANCE_PERCENT = 5
TEACHING = (ev.Loaded, ev.StageDone)
SETTLED = (ev.Loaded, ev.StageDone, ev.StageFailed, ev.StageStopped, ev.Unloaded)


class Loop:
    """Implements `supervisor.Listener`."""

    def __init__(
        self, scheduler: Scheduler, store: Store, watchers: Watchers, clock: Clock
    ) -> None:
        self.scheduler = scheduler
        self.discrepancies: dict[EngineName, str] = {}
        self._store = store
        self._watchers = watchers
        self._clock = clock
        self._events: asyncio.Queue[tuple[ev.Event, asyncio.Future[None] | None]] = asyncio.Queue()
        self._progress: dict[str, Progress] = {}
        self._handled = asyncio.Condition()
        self.handled_count = 0  # events so far: another number means that something may be new
        self._supervisor: Supervisor | None = None
        self._journal: Journal | None = None
        self._peaks: Peaks | None = None
        self.prefetcher = Prefetcher()

    def keep_peaks(self, peaks: Peaks) -> None:
        """Remember what options take above their predictions."""
        self._peaks = peaks

    def keep_journal(self, folder: Path, bytes_max: int) -> None:
        """Write down every event from now on."""
        self._journal = Journal(folder, bytes_max, self.scheduler.state)

    def close(self) -> None:
        """Nothing is handled any more."""
        self.prefetcher.close()
        if self._journal is not None:
            self._journal.close()

    def attach(self, supervisor: Supervisor) -> None:
        """Whom to give the commands to."""
        self._supervisor = supervisor

    # ---- events in ---------------------------------------------------------------------------

    def post(self, event: ev.Event) -> None:
        """Queue an event."""
        self._events.put_nowait((event, None))

    async def deliver(self, event: ev.Event) -> None:
        """Queue an event and wait until it has been handled and stored."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._events.put_nowait((event, done))
        await done

    def progress(self, job: str, progress: Progress) -> None:
        """Not an event: nothing is decided by it."""
        self._progress[job] = progress
        if (record := self.scheduler.job(job)) is not None:
            self._watchers.publish(self.snapshot(record))

    def waiting(self, kind: StageKind) -> tuple[Job, int] | None:
        """The stage of that kind that will probably be run next, and its job."""
        return waiting_stage(self.scheduler.jobs, kind)

    # ---- views out ---------------------------------------------------------------------------

    def snapshot(self, job: Job) -> JobSnapshot:
        """The job in its newest form, with what is not durable."""
        job = self.scheduler.job(job.name) or job
        if job.state.is_final:
            return JobSnapshot(job, notes=_deadline_notes(job, job.finished_ms))
        end_ms = self.scheduler.expected_end_ms(job.name)
        waiting_for, notes = self.scheduler.waiting_for(job.name), _deadline_notes(job, end_ms)
        return JobSnapshot(job, self._progress.get(job.name), waiting_for, end_ms, notes)

    async def wait_for(self, condition: Callable[[], bool], limit_ms: int) -> None:
        """Until `condition` holds after an event, or the limit has passed."""

        async def wait() -> None:
            async with self._handled:
                await self._handled.wait_for(condition)

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wait(), max(0.001, limit_ms / 1000))

    # ---- the loop ----------------------------------------------------------------------------

    async def run(self) -> None:
        """For as long as the daemon lives."""
        while True:
            event, done = await self._next()
            await self._handle(event)
            self.handled_count += 1
            if done is not None and not done.done():
                done.set_result(None)
            async with self._handled:
                self._handled.notify_all()

    async def _next(self) -> tuple[ev.Event, asyncio.Future[None] | None]:
        timeout = TICK_SECONDS_MAX
        if (wakeup_ms := self.scheduler.next_wakeup_ms) is not None:
            timeout = min(timeout, max(0.01, (wakeup_ms - self._clock.now_ms()) / 1000))
        with contextlib.suppress(TimeoutError):
            # Not wait_for: until Python 3.12 it forgets a cancel that comes together with an event.
            async with asyncio.timeout(timeout):
                return await self._events.get()
        return ev.Ticked(), None

    async def _handle(self, event: ev.Event) -> None:
        assert self._supervisor is not None
        self._supervisor.delivered(event)
        now_ms = self._clock.now_ms()
        if self._peaks is not None and isinstance(event, ev.Described):
            event = replace(event, peaks=self._peaks.recall(event.description))
        outcome = self.scheduler.handle(event, now_ms)
        if self._peaks is not None and isinstance(event, TEACHING):
            await asyncio.to_thread(self._peaks.keep, self.scheduler.engines[event.engine])
        if self._journal is not None:
            self._journal.note(now_ms, event, outcome)
        await self._put(outcome.changed)
        for command in outcome.commands:
            job = self.scheduler.job(command.job) if isinstance(command, Run) else None
            self._supervisor.obey(command, job)
        self._tell(outcome)
        if outcome.commands:
            self._look_ahead()
        if isinstance(event, SETTLED):
            self._check(event.engine)
        elif isinstance(event, ev.EngineDied | ev.Stopped):
            self.discrepancies.pop(event.engine, None)
        elif isinstance(event, ev.Ticked) and self.scheduler.is_quiet:
            for engine in self.scheduler.engines:
                self._check(engine)

    async def _put(self, jobs: tuple[Job, ...]) -> None:
        """Store the records, as often as it takes: nothing durable may run that is not recorded."""
        jobs = tuple(job for job in jobs if job.is_durable)
        while jobs:
            try:
                await self._store.put_jobs(jobs)
                return
            except StoreFault as error:
                log.critical("jobs cannot be stored, nothing is started: %s", error)
                await asyncio.sleep(STORE_RETRY_SECONDS)

    def _tell(self, outcome: Outcome) -> None:
        assert self._supervisor is not None
        for sentence in outcome.decisions:
            log.info("%s", sentence, extra={"job": _job_in(sentence)})
        for job in outcome.changed:
            if job.state.is_final:
                self._progress.pop(job.name, None)
                if job.is_durable:
                    self._supervisor.forget(job.name)
                log.info("%s is %s", job.name, job.state, extra={"job": job.name})
            self._watchers.publish(self.snapshot(job))

    def _look_ahead(self) -> None:
        """Have the files of what will be loaded next in the page cache by then."""
        scheduler = self.scheduler
        capacity = scheduler.ledger.capacity_bytes
        option = next_option(scheduler.jobs, scheduler.engines, capacity)
        self.prefetcher.want(option.files if option is not None else ())

    def _check(self, engine: EngineName) -> None:
        """The ledger against the meter; a difference is logged once and shown until it is gone."""
        assert self._supervisor is not None
        state = self.scheduler.engines[engine]
        if state.is_busy or state.phase is Phase.UNDESCRIBED:
            return  # between two states, or another process is at work: checked when it settles
        charged = self.scheduler.ledger.bytes_of(engine)
        measured = self._supervisor.measured_bytes(engine)
        tolerance = max(TOLERANCE_BYTES, charged * TOLERANCE_PERCENT // 100)
        if abs(charged - measured) <= tolerance:
            self.discrepancies.pop(engine, None)
            return
        sentence = f"{engine}: the ledger says {charged} bytes, the meter {measured}"
        if engine not in self.discrepancies:
            log.warning("%s", sentence, extra={"engine": engine})
        self.discrepancies[engine] = sentence


def _deadline_notes(job: Job, end_ms: int | None) -> tuple[str, ...]:
    """Whether the deadline was or will be missed, and by how much."""
    if job.deadline_ms is None or end_ms is None or end_ms <= job.deadline_ms:
        return ()
    missed = "missed" if job.state.is_final else "will probably miss"
    return (f"{job.name} {missed} its deadline by {end_ms - job.deadline_ms} ms",)


def _job_in(sentence: str) -> str:
    """The job that a decision speaks of, or ""."""
    words: Iterable[str] = sentence.replace(":", " ").split()
    return next((word for word in words if word.startswith("jobs/")), "")
