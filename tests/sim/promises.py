"""What must hold in every world, checked after every event against the world's own count.

memory       what the engines really hold is never above the capacity, nor above what the ledger
             charges them; after a capacity that fell, what is held only falls
conservation the ledger is the sum of its reservations; a process that is gone is charged
             nothing; at the end of a world nothing is charged and nothing is held
progress     when nothing is under way and a job could run, time alone will change that
fit          a job is refused at once when it can never run, and only then
class        the first in rank waits for a lower class at most until the end of its slice
shrinking    a capacity that fell is met within a slice, a load and a release
in vain      nobody gives way for a job that could not run even if it were alone
slots        never more engines compute, or hold a context, than are allowed
leases       an engine that is kept for a job is charged for the run of that job
"""

import re
from typing import TYPE_CHECKING

from coscheduler.core.commands import Load, Run
from coscheduler.core.engine_state import EngineState, Phase
from coscheduler.core.ledger import Part
from coscheduler.core.model import EngineName, Job, Stage, StageState
from coscheduler.core.policy import rank_key, served_ms
from coscheduler.errors import CoschedulerError

if TYPE_CHECKING:
    from tests.sim.simulator import World

GIVES_WAY = re.compile(r"(pause|preempt) \S+: (?P<first>\S+) comes first")
SHRINK_MS_MAX = 250 + 500 + 300 + 100 + 5_000  # slice, load, release, stop, a hung process


class Promises:
    """Of one world."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._allowed = world.capacity
        self._over_since_ms: int | None = None

    # ---- what the world tells ------------------------------------------------------------------

    def note_capacity(self, capacity_bytes: int) -> None:
        """What is held above a new capacity may only shrink from now on."""
        self._allowed = max(capacity_bytes, self._held_bytes())

    def note_restart(self) -> None:
        self._allowed = self._world.capacity
        self._over_since_ms = None

    # ---- admission -----------------------------------------------------------------------------

    def check_admission(self, job: Job) -> str:
        """The reason for which the scheduler refuses the job, or ""; it must be right."""
        try:
            self._world.scheduler.admit(job)
        except CoschedulerError as error:
            if error.reason == "QUEUE_FULL":
                assert len(self._world.scheduler.jobs) == self._world.limits.queue_max
                return error.reason
            assert not self._fits(job), f"{job.name} was refused: {error}"
            return error.reason
        assert self._fits(job, exactly=False), f"{job.name} was accepted and can never run"
        return ""

    def _fits(self, job: Job, exactly: bool = True) -> bool:
        """By the descriptions alone. What was learned may make more of it: then `exactly` is off,
        or everything is let pass.
        """
        engines = self._world.scheduler.engines
        learned = any(_has_learned(engines[stage.engine]) for stage in job.stages)
        if learned and exactly:
            return False
        budget = self._world.scheduler.ledger.budget_bytes
        for stage in job.stages:
            engine = stage.engine
            description = self._world.descriptions[engine]
            tiers = [
                option.quality_tier
                for option in description.options
                if description.context_bytes + option.peak_bytes(stage.duration_ms) <= budget
            ]
            if not tiers or (job.quality_min is not None and min(tiers) > job.quality_min):
                return False
        return True

    # ---- after every event ---------------------------------------------------------------------

    def check(self) -> None:
        """All of the module's promises that can be seen at one moment."""
        self._check_memory()
        self._check_engines()
        self._check_slots()
        self._check_shrinking()
        self._check_class()
        self._check_in_vain()
        self._check_progress()

    def _held_bytes(self) -> int:
        return sum(device.bytes for device in self._world.devices.values())

    def _check_memory(self) -> None:
        ledger, devices = self._world.scheduler.ledger, self._world.devices
        held = {engine: device.bytes for engine, device in devices.items()}
        assert self._held_bytes() <= self._allowed, f"out of memory: {held} of {self._allowed}"
        self._allowed = max(ledger.capacity_bytes, self._held_bytes())
        for engine, size in held.items():
            assert ledger.bytes_of(engine) >= size, f"{engine} holds {size} that nobody charged"
        charged = sum(entry.bytes for entry in ledger.entries().values())
        assert charged == ledger.used_bytes
        if self._world.setup.faults == 0:
            self._check_exact()

    def _check_exact(self) -> None:
        """Where predictions are right: an engine at rest is charged what it holds, and a lease."""
        for name, state in self._world.scheduler.engines.items():
            if not (state.is_busy or state.target):
                run = self._world.scheduler.ledger.bytes_of(name, Part.RUN)
                run = run if state.leased_to else 0
                charged = self._world.scheduler.ledger.bytes_of(name)
                assert charged == self._world.devices[name].bytes + run, f"{name}: {charged}"

    def _check_engines(self) -> None:
        for name, state in self._world.scheduler.engines.items():
            charged = self._world.scheduler.ledger.bytes_of(name)
            if state.phase is Phase.STOPPED:
                assert charged == 0, f"{name} is gone and charged {charged}"
            if state.leased_to:
                assert state.phase is Phase.LOADED and state.target is None
                assert (name, Part.RUN) in self._world.scheduler.ledger.entries()

    def _check_slots(self) -> None:
        engines, limits = self._world.scheduler.engines, self._world.limits
        devices = self._world.devices
        running = sum(
            isinstance(device.pending, Run) and engines[name].phase is not Phase.PAUSED
            for name, device in devices.items()
        )
        assert running <= limits.compute_slots
        assert sum(device.context > 0 for device in devices.values()) <= limits.processes_max
        if limits.serial_loads:
            assert sum(isinstance(device.pending, Load) for device in devices.values()) <= 1

    def _check_shrinking(self) -> None:
        if not self._world.scheduler.ledger.overdraft_bytes:
            self._over_since_ms = None
        elif self._over_since_ms is None:
            self._over_since_ms = self._world.now_ms
        else:
            over_ms = self._world.now_ms - self._over_since_ms
            assert over_ms <= SHRINK_MS_MAX, f"over the capacity for {over_ms} ms"

    def _check_class(self) -> None:
        """The first in rank, where a lower class has its engine or the slot that it needs."""
        scheduler = self._world.scheduler
        first = next(iter(scheduler.jobs), None)
        if first is None or scheduler.is_draining or not self._could_run(first):
            return
        if not self._fits_now(first):
            return  # other programs hold what is missing: nobody gives way for that
        engine = scheduler.engines[first.engine]
        if engine.phase is Phase.RUNNING and self._is_lower(engine, first):
            stage = self._stage(engine)
            bound = stage.preempt_count >= self._world.limits.preempts_max
            assert bound or engine.asked == "preempt", f"{first.name} waits for {engine.job}"
        running = [s for s in scheduler.engines.values() if s.phase is Phase.RUNNING]
        if engine.leased_to == first.name and len(running) >= self._world.limits.compute_slots:
            lower = [state for state in running if self._is_lower(state, first)]
            asked = any(state.asked or state.target for state in running)
            assert not lower or asked, "no slot is made free"

    def _check_in_vain(self) -> None:
        """Nobody gives way for a job that could not run even if it were alone."""
        outcome = self._world.history[-1][3]
        for sentence in outcome.decisions:
            if said := GIVES_WAY.fullmatch(sentence):
                job = self._world.scheduler.job(said["first"])
                assert job is not None and self._fits_now(job), sentence

    def _fits_now(self, job: Job) -> bool:
        """Is there an option that is good enough and fits beside what other programs hold? With
        what was learned: nobody gives way for what is taken not to fit.
        """
        scheduler, stage = self._world.scheduler, job.stage
        state = scheduler.engines[stage.engine]
        free = scheduler.ledger.capacity_bytes - state.context_bytes
        return any(
            option.peak_bytes(stage.duration_ms) <= free
            for option in state.options()
            if job.quality_min is None or option.quality_tier <= job.quality_min
        )

    def _is_lower(self, state: EngineState, first: Job) -> bool:
        other = self._world.scheduler.job(state.job)
        ageing_ms = self._world.limits.ageing_ms
        return (
            other is not None
            and other.priority < first.priority
            and rank_key(first, served_ms(first), ageing_ms)
            < rank_key(other, served_ms(other), ageing_ms)
        )

    def _stage(self, state: EngineState) -> Stage:
        job = self._world.scheduler.job(state.job)
        assert job is not None
        return job.stage

    def _could_run(self, job: Job) -> bool:
        stage = job.stage
        return stage.state is StageState.PENDING and bool(stage.input.artifact)

    def _check_progress(self) -> None:
        scheduler = self._world.scheduler
        engines = scheduler.engines.values()
        if not scheduler.is_quiet or scheduler.is_draining or any(s.is_pinned for s in engines):
            return
        if scheduler.ledger.capacity_bytes < scheduler.ledger.budget_bytes:
            return  # other programs hold what is missing
        waiting = [job for job in scheduler.jobs if self._could_run(job)]
        assert not waiting or scheduler.next_wakeup_ms is not None, f"{waiting[0].name} is stuck"

    # ---- at the end ----------------------------------------------------------------------------

    def check_end(self) -> None:
        """Everybody is done, and everything was given back."""
        scheduler = self._world.scheduler
        assert not scheduler.jobs, f"stuck at {self._world.now_ms} with {scheduler.jobs}"
        assert scheduler.ledger.used_bytes == self._held_bytes() == 0
        assert {state.phase for state in scheduler.engines.values()} == {Phase.STOPPED}
        assert set(scheduler.engines) == set(EngineName)


def _has_learned(state: EngineState) -> bool:
    learned = state.learned
    return bool(learned.run_bytes or learned.guessed_bytes or learned.resident_bytes)
