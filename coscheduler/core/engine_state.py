"""An engine as the scheduler sees it, and the scheduler's limits: data only."""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from coscheduler.core import planner
from coscheduler.core.learning import Learned
from coscheduler.core.model import EngineDescription, EngineName, Failure, Option, Priority, Stage

KEEP_LOADS = 3  # what a higher class used is kept for at least so many times its load


class Phase(StrEnum):
    """What an engine is doing, as far as the scheduler knows."""

    UNDESCRIBED = "starting"
    UNAVAILABLE = "unavailable"
    STOPPED = "stopped"  # a process without a context, or none
    STARTED = "started"  # context, nothing loaded
    LOADING = "loading"
    LOADED = "loaded"
    PAUSED = "paused"  # a stage is halted between two slices and holds its memory
    RUNNING = "running"
    UNLOADING = "unloading"
    STOPPING = "stopping"


BUSY = (Phase.LOADING, Phase.RUNNING, Phase.UNLOADING, Phase.STOPPING)


@dataclass
class EngineState:
    """One engine. `since_ms` is when it became idle, or while it runs, when that began."""

    name: EngineName
    phase: Phase = Phase.UNDESCRIBED
    description: EngineDescription | None = None
    failure: Failure | None = None
    survey_bytes: int | None = None  # to be free before it can be described; None: it was asked
    option: Option | None = None
    target: Option | None = None  # of the same family: asked for, not answered yet
    grow_after_ms: int = 0  # after growing went wrong: not before
    context_bytes: int = 0  # measured at the last start, an estimate before
    job: str = ""  # that it loads for or runs
    since_ms: int = 0
    is_mixed: bool = False  # what runs there did not run with one option alone
    asked: str = ""  # "pause" or "preempt": asked of the running stage, not answered yet
    leased_to: str = ""  # the job that it was loaded for, until that has run
    used_by: Priority = Priority.BATCH  # class of the stage that it ran last
    held_for: str = ""  # the job whose eviction waits while this engine does its other work
    held_since_ms: int = 0
    is_pinned: bool = False  # somebody wants it to stay in memory
    is_leaving: bool = False  # somebody wants it gone: it ends as soon as it is idle
    wish: str | None = None  # the option that somebody wants loaded without a job; "" is any
    note: str = ""  # what became of that wish, or what it waits for
    learned: Learned = field(default_factory=Learned)

    @property
    def is_idle(self) -> bool:
        """It holds memory and does nothing."""
        return self.phase in (Phase.LOADED, Phase.STARTED) and self.target is None

    @property
    def is_busy(self) -> bool:
        """An answer is to come before anything else can be asked of it."""
        return self.phase in BUSY or (self.phase is Phase.LOADED and self.target is not None)

    @property
    def is_resizable(self) -> bool:
        """Its layers may come and go now: it is loaded or between two slices, and nothing is asked
        of it. A paused one is not: the layer that it halted at stays until it goes on.
        """
        is_there = self.phase in (Phase.LOADED, Phase.RUNNING)
        return is_there and self.target is None and not self.asked

    @property
    def is_stopped(self) -> bool:
        """It has no context, so that coming into memory takes one."""
        return self.phase is Phase.STOPPED

    @property
    def context_to_come_bytes(self) -> int:
        """What its process still has to take before it can load."""
        return self.context_bytes if self.is_stopped else 0

    def options(self) -> tuple[Option, ...]:
        """Its options, each with what it was found to take on top of the prediction."""
        assert self.description is not None
        trusted = self.learned.trusted(self.description.options)
        return tuple(self.learned.corrected(option) for option in trusted)

    def loaded_option(self) -> Option | None:
        """The option that is in memory, with what was learned since it was loaded."""
        if self.option is None or self.description is None:
            return self.option
        same = (option for option in self.options() if option.name == self.option.name)
        return next(same, self.option)

    def kin(self) -> tuple[Option, ...]:
        """The options that it can go to as it is loaded, without a load and at the same quality,
        in the order of preference; its own among them.
        """
        family = self.option.family if self.option is not None else ""
        return tuple(option for option in self.options() if family and option.family == family)

    def best_tier(self, duration_ms: int, capacity_bytes: int) -> int | None:
        """The best quality that fits alone; None when nothing does."""
        return planner.best_tier(self.options(), duration_ms, self.context_bytes, capacity_bytes)

    def best_fitting(self, duration_ms: int, capacity_bytes: int) -> list[Option]:
        """The options of that quality that fit."""
        return planner.best_fitting(self.options(), duration_ms, self.context_bytes, capacity_bytes)

    def ran_ms(self, stage: Stage, now_ms: int) -> int:
        """What a stage has run by now that runs or is paused there."""
        return stage.run_ms + (now_ms - self.since_ms if self.phase is Phase.RUNNING else 0)

    def kept_until_ms(self, limits: "Limits") -> int:
        """Until when it is kept, when idle, from classes below the one that used it last."""
        if self.option is None or self.phase is not Phase.LOADED:
            return 0
        keep_ms = max(limits.resident_ms_min, KEEP_LOADS * self.option.load_ms)
        return self.since_ms + min(keep_ms, limits.keep_alive_ms)

    def copy(self) -> "EngineState":
        """One that can be changed without changing this one."""
        return replace(self, learned=self.learned.copy())


@dataclass(frozen=True)
class Limits:
    """The scheduler's share of the settings."""

    queue_max: int
    attempts_max: int
    preempts_max: int
    ageing_ms: int
    keep_alive_ms: int
    compute_slots: int
    processes_max: int
    serial_loads: bool
    group_ms_max: int
    resident_ms_min: int
    oom_steps_max: int
    oom_memory_ms: int
    peak_tolerance_bytes: int
