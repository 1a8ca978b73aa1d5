"""All that can happen, as frozen data. The loop hands each to `Scheduler.handle`, one at a time."""

from dataclasses import dataclass

from coscheduler.core.learning import KnownPeak
from coscheduler.core.model import EngineDescription, EngineName, Failure, Job, Output


@dataclass(frozen=True)
class Submitted:
    """A job is durable and wants to run (new, or found in the store after a restart)."""

    job: Job


@dataclass(frozen=True)
class CancelRequested:
    """Somebody asked to cancel a job. Allowed in every state, any number of times."""

    job: str


@dataclass(frozen=True)
class EngineAdded:
    """The config has this engine. Finding out what it is may take `survey_bytes` of the device."""

    engine: EngineName
    survey_bytes: int


@dataclass(frozen=True)
class Described:
    """Answer to Describe: what the engine is and its options, and what earlier runs with these took
    above their predictions; it holds no device memory.
    """

    engine: EngineName
    description: EngineDescription
    peaks: tuple[KnownPeak, ...] = ()


@dataclass(frozen=True)
class DescribeFailed:
    """Answer to Describe: the engine cannot be used, a model is missing or corrupt."""

    engine: EngineName
    failure: Failure


@dataclass(frozen=True)
class Loaded:
    """Answer to Load. `context_bytes` and `resident_bytes` are measured from outside."""

    engine: EngineName
    context_bytes: int
    resident_bytes: int
    load_ms: int


@dataclass(frozen=True)
class LoadFailed:
    """Answer to Load: no option is held. `context_bytes` 0 means that the process is gone too."""

    engine: EngineName
    failure: Failure
    retryable: bool
    context_bytes: int


@dataclass(frozen=True)
class StageDone:
    """Answer to Run: results are kept. `measured_peak_bytes` is without the context."""

    engine: EngineName
    job: str
    outputs: tuple[Output, ...]
    notes: tuple[str, ...]
    measured_peak_bytes: int
    numbers: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class StageFailed:
    """Answer to Run: the engine is still loaded and usable."""

    engine: EngineName
    job: str
    failure: Failure
    retryable: bool
    measured_peak_bytes: int


@dataclass(frozen=True)
class StageStopped:
    """Answer to Run after Cancel or Preempt: the engine is still loaded and usable."""

    engine: EngineName
    job: str


@dataclass(frozen=True)
class Paused:
    """The running stage is halted between two slices, holds its memory; Run is unanswered yet."""

    engine: EngineName
    job: str


@dataclass(frozen=True)
class Resized:
    """Answer to Resize: the engine is there as `option`, and the meter has seen the bytes return
    that it has no more. The option that it had: it could not get more, and is as it was.
    """

    engine: EngineName
    option: str


@dataclass(frozen=True)
class Unloaded:
    """Answer to Unload: the meter has seen the bytes return."""

    engine: EngineName


@dataclass(frozen=True)
class Stopped:
    """Answer to Stop: the process has ended, and with it everything that it held."""

    engine: EngineName


@dataclass(frozen=True)
class EngineDied:
    """The process ended by itself or had to be ended. Answers whatever command was pending."""

    engine: EngineName
    failure: Failure


@dataclass(frozen=True)
class CapacityChanged:
    """The budget is another now: other programs took or gave back memory, or somebody set it.

    `budget_bytes` is what the capacity would be if no other program used the device; None: the
    same. What fits into it waits; what does not is refused.
    """

    capacity_bytes: int
    budget_bytes: int | None = None


@dataclass(frozen=True)
class Ticked:
    """Time has passed: keep-alives may have run out."""


@dataclass(frozen=True)
class DrainRequested:
    """Start nothing any more; what runs may end."""


@dataclass(frozen=True)
class DrainEnded:
    """Start things again."""


@dataclass(frozen=True)
class LoadRequested:
    """Somebody wants an engine in memory before any job does. `option` "": the best that fits."""

    engine: EngineName
    option: str = ""


@dataclass(frozen=True)
class UnloadRequested:
    """Somebody wants an engine's memory back, context included, as soon as it is idle."""

    engine: EngineName


@dataclass(frozen=True)
class PinRequested:
    """Somebody wants an engine to stay in memory once it is there, or no longer."""

    engine: EngineName
    is_pinned: bool


Event = (
    Submitted
    | CancelRequested
    | EngineAdded
    | Described
    | DescribeFailed
    | Loaded
    | LoadFailed
    | StageDone
    | StageFailed
    | StageStopped
    | Paused
    | Resized
    | Unloaded
    | Stopped
    | EngineDied
    | CapacityChanged
    | Ticked
    | DrainRequested
    | DrainEnded
    | LoadRequested
    | UnloadRequested
    | PinRequested
)
