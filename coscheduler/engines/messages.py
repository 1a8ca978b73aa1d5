"""What the daemon and an engine process say to each other: one JSON object a line, over a socket.

    daemon -> engine                 engine -> daemon
    Describe                         Described | Failed
    Start                            Started | Failed
    LoadOption(option)               OptionLoaded(held) | Failed      (LoadProgress in between)
    RunTask(task)                    TaskDone(result) | TaskStopped | Failed   (TaskProgress)
    CancelTask                       nothing of its own
    PauseTask                        TaskPaused, unless the answer to RunTask comes first
    ResumeTask                       nothing of its own
    ResizeOption(option)             OptionResized | ResizeFailed: between two slices where one runs
    UnloadOption                     OptionUnloaded | Failed
    Question, HangUp                 Said ..., Ended | Broken: within RunTask, for each Question

Requests are answered one at a time, in order; only Cancel-, Pause- and ResumeTask and ResizeOption
may overtake, and what is said within a run of conversations (`coscheduler.chat`).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from coscheduler.chat import Broken, Ended, HangUp, Question, Said
from coscheduler.core.model import EngineDescription, Lines, Option
from coscheduler.engines.base import StageResult, Task

LINE_BYTES_MAX = 4 * 1024 * 1024


@dataclass(frozen=True)
class Describe:
    """Say what you are, from headers alone."""

    type: Literal["describe"] = "describe"


@dataclass(frozen=True)
class Start:
    """Take your context."""

    type: Literal["start"] = "start"


@dataclass(frozen=True)
class LoadOption:
    """Take the option's resident bytes."""

    option: Option
    type: Literal["load_option"] = "load_option"


@dataclass(frozen=True)
class RunTask:
    """Run a stage with what is loaded. `option`: as this one of the same base has it. `chat_count`:
    hold conversations, so many questions follow at once. `ahead`: what will probably be run next.
    """

    task: Task
    option: Option | None = None
    chat_count: int | None = None
    ahead: Task | None = None
    type: Literal["run_task"] = "run_task"


@dataclass(frozen=True)
class CancelTask:
    """Stop the task at the end of the slice; ignored when none runs."""

    type: Literal["cancel_task"] = "cancel_task"


@dataclass(frozen=True)
class PauseTask:
    """Halt the task at the end of the slice; it keeps its memory. Ignored when none runs."""

    type: Literal["pause_task"] = "pause_task"


@dataclass(frozen=True)
class ResumeTask:
    """Let the task go on."""

    type: Literal["resume_task"] = "resume_task"


@dataclass(frozen=True)
class ResizeOption:
    """Become this option, of the same family as what is loaded."""

    option: Option
    type: Literal["resize_option"] = "resize_option"


@dataclass(frozen=True)
class UnloadOption:
    """Give back what LoadOption took."""

    type: Literal["unload_option"] = "unload_option"


@dataclass(frozen=True)
class Described:
    """Answer to Describe."""

    description: EngineDescription
    type: Literal["described"] = "described"


@dataclass(frozen=True)
class Started:
    """Answer to Start."""

    type: Literal["started"] = "started"


@dataclass(frozen=True)
class LoadProgress:
    """Loading goes on: `done` of `total`."""

    done: int
    total: int
    type: Literal["load_progress"] = "load_progress"


@dataclass(frozen=True)
class OptionLoaded:
    """Answer to LoadOption, with the engine's own count by line."""

    held: Lines
    type: Literal["option_loaded"] = "option_loaded"


@dataclass(frozen=True)
class TaskProgress:
    """A slice is done. `anonymous_bytes` is the most that the process held since the task began."""

    done: int
    total: int
    note: str
    anonymous_bytes: int
    type: Literal["task_progress"] = "task_progress"


@dataclass(frozen=True)
class TaskDone:
    """Answer to RunTask: the files are written. `anonymous_bytes` is as in TaskProgress."""

    result: StageResult
    anonymous_bytes: int
    type: Literal["task_done"] = "task_done"


@dataclass(frozen=True)
class TaskStopped:
    """Answer to RunTask after CancelTask: nothing of the task is left."""

    type: Literal["task_stopped"] = "task_stopped"


@dataclass(frozen=True)
class TaskPaused:
    """The task is halted until ResumeTask or CancelTask."""

    type: Literal["task_paused"] = "task_paused"


@dataclass(frozen=True)
class OptionResized:
    """Answer to ResizeOption: the name of the option that it is now; where there was no room for
    more, of the one that it was.
    """

    option: str
    type: Literal["option_resized"] = "option_resized"


@dataclass(frozen=True)
class ResizeFailed:
    """Answer to ResizeOption: what is loaded cannot be used any more; the process should end."""

    reason: str
    message: str
    type: Literal["resize_failed"] = "resize_failed"


@dataclass(frozen=True)
class OptionUnloaded:
    """Answer to UnloadOption."""

    type: Literal["option_unloaded"] = "option_unloaded"


@dataclass(frozen=True)
class Failed:
    """Answer to any request: it went wrong, and nothing that it took is held. `kind` is the class
    of the error tree, "internal" for what nobody foresaw.
    """

    kind: str
    reason: str
    message: str
    numbers: dict[str, str]
    type: Literal["failed"] = "failed"


Request = (
    Describe
    | Start
    | LoadOption
    | RunTask
    | CancelTask
    | PauseTask
    | ResumeTask
    | ResizeOption
    | UnloadOption
    | Question
    | HangUp
)
Answer = (
    Described
    | Started
    | LoadProgress
    | OptionLoaded
    | TaskProgress
    | TaskDone
    | TaskStopped
    | TaskPaused
    | OptionResized
    | ResizeFailed
    | OptionUnloaded
    | Said
    | Ended
    | Broken
    | Failed
)

TaskReport = TaskProgress | TaskDone  # what a child says of its own memory

_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="type")])
_ANSWER: TypeAdapter[Answer] = TypeAdapter(Annotated[Answer, Field(discriminator="type")])


def encode_request(message: Request) -> bytes:
    """One line of JSON with its newline."""
    return _REQUEST.dump_json(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """The request on a line. Raises pydantic.ValidationError."""
    return _REQUEST.validate_json(line)


def encode_answer(message: Answer) -> bytes:
    """One line of JSON with its newline."""
    return _ANSWER.dump_json(message) + b"\n"


def decode_answer(line: bytes) -> Answer:
    """The answer on a line. Raises pydantic.ValidationError."""
    return _ANSWER.validate_json(line)
