"""All that the scheduler can ask for. All but the last three lines are answered by one event.

Describe -> Described | DescribeFailed
Load   -> Loaded | LoadFailed | EngineDied
Run    -> StageDone | StageFailed | StageStopped | EngineDied
Resize -> Resized | EngineDied: also while the answer to Run is still to come
Unload -> Unloaded | EngineDied
Stop   -> Stopped
Cancel, Preempt -> nothing of their own: they hasten the answer to Run
Pause  -> Paused, unless the answer to Run comes first
Resume -> nothing of its own: the answer to Run is still to come
"""

from dataclasses import dataclass

from coscheduler.core.model import EngineName


@dataclass(frozen=True)
class Describe:
    """Find out what the engine is, in a process of its own that is gone afterwards."""

    engine: EngineName


@dataclass(frozen=True)
class Load:
    """Start the engine's process if need be, then load it with this option, for this job ("": for
    none, somebody asked for it).
    """

    engine: EngineName
    option: str
    job: str


@dataclass(frozen=True)
class Run:
    """Run one stage on the loaded engine, with another option of the same base where one is named.
    The attempt is already counted in the job's record.
    """

    engine: EngineName
    job: str
    stage_index: int
    option: str = ""


@dataclass(frozen=True)
class Cancel:
    """Stop the running stage at the end of its slice."""

    engine: EngineName
    job: str


@dataclass(frozen=True)
class Preempt:
    """Stop the running stage at the end of its slice, to be tried again later."""

    engine: EngineName
    job: str


@dataclass(frozen=True)
class Pause:
    """Halt the running stage at the end of its slice; it keeps its memory."""

    engine: EngineName
    job: str


@dataclass(frozen=True)
class Resume:
    """Let a paused stage go on."""

    engine: EngineName
    job: str


@dataclass(frozen=True)
class Resize:
    """Go to another option of the loaded one's family, between two slices where a stage runs.
    Beside its context the engine may then hold `bytes_max`.
    """

    engine: EngineName
    option: str
    bytes_max: int


@dataclass(frozen=True)
class Unload:
    """Give back all that Load took; the process and its context stay."""

    engine: EngineName


@dataclass(frozen=True)
class Stop:
    """End the process: the only sure way to get everything back, context included."""

    engine: EngineName


Command = Describe | Load | Run | Cancel | Preempt | Pause | Resume | Resize | Unload | Stop
