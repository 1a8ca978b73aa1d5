"""What an engine is. Five methods, called in this order by the child's one loop (`host.py`):

    describe()            headers only: the options, no device memory
    start()               libraries, device context, warm-up: gone only with the process
    load(option)          take the option's `resident` bytes, no more
    slices(task)          a generator: each `next` is one slice, its return value is the result
    unload()              give everything back that `load` took

An engine runs in one thread of one process and never speaks to the network. It raises
`errors.EngineFault` (or `InvalidInput` for bad audio) with a reason and numbers.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from coscheduler.chat import Letter, Reply
from coscheduler.core.model import EngineDescription, EngineName, Lines, Option, StageKind

OnProgress = Callable[[int, int], None]  # (done, total) in any unit; total 0 = not known yet


@dataclass(frozen=True)
class Task:
    """One stage to run. Audio and results are files; nothing large crosses the pipe."""

    job: str
    stage: StageKind
    parameters: Mapping[str, Any]  # validated by `coscheduler.stages`
    input_path: Path  # a recording, or a transcript as json / plain text for ANALYZE
    output_dir: Path  # exists and is empty; the engine writes its files here and nowhere else
    duration_ms: int  # length of the recording as the daemon measured it; 0 for text
    # Outlives an attempt: what an interrupted one leaves here, the next attempt at the same stage
    # (also of the next daemon) may go on from. Gone when the job is final. None: keep nothing.
    resume_dir: Path | None = None
    # Where the artifacts are that the parameters name: artifact -> its file.
    artifact_paths: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """Progress after one slice: `done` of `total` units, and what is being done, in a few words."""

    done: int
    total: int
    note: str


@dataclass(frozen=True)
class OutputFile:
    """A file the stage wrote below `output_dir`."""

    role: str  # "target", "residual", "transcript" (the json), "srt", "analysis", ...
    filename: str
    media_type: str


@dataclass(frozen=True)
class StageResult:
    """What a finished stage leaves. `notes` tell the user of every degradation, in sentences."""

    files: tuple[OutputFile, ...]
    notes: tuple[str, ...] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)


class Mailbox(Protocol):
    """Requests that reach a running stage, and what is said to them. Any thread may fill it."""

    def wait(self) -> Letter:
        """The next letter, once there is one."""
        ...

    def take(self) -> tuple[Letter, ...]:
        """Those that have come since the last call, in order; at once."""
        ...

    def send(self, reply: Reply) -> None:
        """Answer; it is on its way when this returns."""
        ...


class ChattingEngine(Protocol):
    """What an engine offers beside `Engine` when it can hold conversations."""

    def chat(self, mail: Mailbox, expected_count: int) -> Generator[Slice, None, StageResult]:
        """As `Engine.slices`, for requests that come by mail: `expected_count` of them for certain,
        others while it lasts. It ends when none is left.
        """
        ...


@runtime_checkable
class LookingAheadEngine(Protocol):
    """What an engine offers beside `Engine` when it can begin with what comes next."""

    def look_ahead(self, task: Task) -> None:
        """The task will probably run after the next one: what is done for it beside that one is
        left in its `resume_dir`. Nothing depends on it.
        """
        ...


class SwitchingEngine(Protocol):
    """What an engine offers beside `Engine` when options of it have the same base."""

    def switch(self, option: Option) -> None:
        """Run like this option from now on; it is of the same base as what is loaded."""
        ...


class ResizingEngine(Protocol):
    """What an engine offers beside `Engine` when options of it have the same family."""

    def resize(self, option: Option) -> None:
        """Hold what this option holds from now on; it is of the same family as what is loaded. Also
        between two slices: then the running stage goes on, to the same result. What it uses at that
        moment may stay as long as the option's run lines count it, else until the next slice.

        Raises EngineFault OUT_OF_MEMORY when there is no room for more; then it is as it was. After
        any other error nothing can be done with the engine any more.
        """
        ...


class Engine(Protocol):
    """The protocol every engine implements; `fake.py` is the smallest complete one."""

    name: EngineName

    def describe(self) -> EngineDescription:
        """Read file headers only and list the options. Raises EngineFault MODEL_MISSING or
        MODEL_CORRUPT.
        """
        ...

    def start(self) -> None:
        """Import libraries and take the device context, with a warm-up; called once per process."""
        ...

    def load(self, option: Option, on_progress: OnProgress) -> None:
        """Take the option's resident bytes. On any error, hold nothing when it is raised."""
        ...

    def slices(self, task: Task) -> Generator[Slice, None, StageResult]:
        """Run the stage. Between two `next` calls the host may close the generator (a cancel): the
        engine must then be loaded and usable as if the task had never been started.
        """
        ...

    def unload(self) -> None:
        """Drop everything `load` took; calling it when nothing is loaded is allowed."""
        ...

    def held(self) -> Lines:
        """Bytes by line by the engine's own count (tensors, allocator, library log); no context."""
        ...
