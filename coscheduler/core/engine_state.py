"""An engine as the scheduler sees it, and the scheduler's limits: data only."""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from coscheduler.core.model import (
    EngineDescription,
    EngineName,
    Failure,
    Line,
    LineBytes,
    Option,
)


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
    option: Option | None = None
    context_bytes: int = 0  # measured at the last start, an estimate before
    job: str = ""  # that it loads for or runs
    since_ms: int = 0
    asked: str = ""  # "pause" or "preempt": asked of the running stage, not answered yet
    is_pinned: bool = False  # somebody wants it to stay in memory
    overhead_bytes: dict[str, int] = field(default_factory=dict)  # by option, learned from loads

    @property
    def is_idle(self) -> bool:
        """It holds memory and does nothing."""
        return self.phase in (Phase.LOADED, Phase.STARTED)

    def options(self) -> tuple[Option, ...]:
        """Its options, each with what loading it was found to take on top of the prediction."""
        assert self.description is not None
        return tuple(self._corrected(option) for option in self.description.options)

    def _corrected(self, option: Option) -> Option:
        extra = self.overhead_bytes.get(option.name, 0)
        slack = (LineBytes(Line.SLACK, extra),) if extra else ()
        return replace(option, resident=(*option.resident, *slack))


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
