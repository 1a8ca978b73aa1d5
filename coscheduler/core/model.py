"""The nouns of the scheduler: plain frozen data, integers in bytes and milliseconds.

Nothing here decides anything; `scheduler.py` does. Times are milliseconds of the daemon's clock
since the Unix epoch, so that they mean the same after a restart.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, StrEnum


class Priority(IntEnum):
    """A job's class. A higher class goes first; ageing lets everything run at last."""

    BATCH = 0
    NORMAL = 1
    INTERACTIVE = 2


class StageKind(StrEnum):
    """What a stage does to its input."""

    SEPARATE = "separate"
    TRANSCRIBE = "transcribe"
    ANALYZE = "analyze"


class EngineName(StrEnum):
    """Which engine process carries a stage out."""

    SEPARATION = "separation"
    TRANSCRIPTION = "transcription"
    ANALYSIS = "analysis"


ENGINE_OF: dict[StageKind, EngineName] = {
    StageKind.SEPARATE: EngineName.SEPARATION,
    StageKind.TRANSCRIBE: EngineName.TRANSCRIPTION,
    StageKind.ANALYZE: EngineName.ANALYSIS,
}


class Line(StrEnum):
    """What a byte of device memory is held for."""

    SURVEY = "survey"  # a process that finds out what options take, gone when they are known
    CONTEXT = "context"  # libraries, thread pools, the CUDA context: gone only with the process
    WEIGHTS = "weights"
    ALIGNER = "aligner"  # weights of the models that time words
    DIARIZER = "diarizer"  # weights of the models that tell speakers apart
    SLOTS = "slots"  # static staging buffers for streamed layers
    KV_CACHE = "kv_cache"
    HIDDEN_STATE = "hidden_state"
    WORKSPACE = "workspace"  # activations and scratch of a running stage
    SLACK = "slack"  # measured above the prediction: charged, and explained


@dataclass(frozen=True)
class LineBytes:
    """So many bytes on one ledger line."""

    line: Line
    bytes: int


Lines = tuple[LineBytes, ...]


def total_bytes(lines: Iterable[LineBytes]) -> int:
    """Sum of the lines, bytes."""
    return sum([entry.bytes for entry in lines])  # a list: this is asked more often than anything


@dataclass(frozen=True)
class RunLine:
    """Device bytes held only while a stage runs: fixed + per second of audio, up to `seconds_max`.

    An engine that works in windows stops growing at its window, which is what `seconds_max` says;
    one that holds whole windows side by side grows by `seconds_step`. Lines of different `phase`
    are never held at the same time.
    """

    line: Line
    fixed_bytes: int
    bytes_per_second: int = 0
    seconds_max: int = 0
    seconds_step: int = 1
    phase: str = ""

    def at(self, duration_ms: int) -> LineBytes:
        """The line for a recording of `duration_ms`; the last started step counts in full."""
        steps = -(-duration_ms // (1000 * self.seconds_step))
        seconds = min(steps * self.seconds_step, self.seconds_max)
        return LineBytes(self.line, self.fixed_bytes + self.bytes_per_second * seconds)


@dataclass(frozen=True)
class Segment:
    """A piece of an engine's weights that can be on the device by itself: one transformer layer."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Option:
    """One way for an engine to be in memory.

    `resident` is held from load to unload and does not include the context; `run` is held on top
    of it while a stage runs. `quality_tier` 0 is the best; only another tier may change the output
    in a way that a listener or reader could notice. `settings_json` is the engine's own note on how
    to load itself this way; the core never reads it. `files` are what a load reads, as far as they
    are known. Options of the same `base`, unless it is "", load the same: an engine goes from one
    to the other between two runs without a load. Those of the same `family`, unless it is "", are
    of one quality tier and differ in what stays, layers or whole models: an engine goes from one to
    the other between two slices; the running stage keeps its own run lines, or has the other's from
    then on where these hold more. A safe one is for the time after the engine died with another.
    `run_ms_fixed` is what every run takes beside its share by length.
    """

    name: str
    resident: Lines
    run: tuple[RunLine, ...]
    quality_tier: int
    load_ms: int
    run_ms_per_second: int
    slice_ms_max: int
    run_ms_fixed: int = 0
    host_bytes: int = 0
    settings_json: str = "{}"
    files: tuple[str, ...] = ()
    base: str = ""
    family: str = ""
    is_safe: bool = False

    def run_lines(self, duration_ms: int) -> Lines:
        """What running one stage over `duration_ms` of audio holds at most beside `resident`: the
        lines of that phase which holds most, the first of equals.
        """
        held: dict[str, list[LineBytes]] = {}
        for line in self.run:
            held.setdefault(line.phase, []).append(line.at(duration_ms))
        return tuple(max(held.values(), key=total_bytes, default=()))

    def run_ms(self, duration_ms: int) -> int:
        """Predicted time of one stage over `duration_ms` of audio."""
        return self.run_ms_fixed + self.run_ms_per_second * duration_ms // 1000

    def peak_bytes(self, duration_ms: int) -> int:
        """Predicted peak of the option without the context, bytes."""
        return total_bytes(self.resident) + total_bytes(self.run_lines(duration_ms))


@dataclass(frozen=True)
class EngineDescription:
    """What an engine says of itself from file headers alone, before any device memory is taken.

    `options` stand in the engine's order of preference. `context_bytes` is an estimate until the
    first start has been measured. `survey_bytes` is the measured peak of the process that found out
    what the options take; 0: there was none.
    """

    engine: EngineName
    model: str
    options: tuple[Option, ...]
    context_bytes: int
    segments: tuple[Segment, ...] = ()
    survey_bytes: int = 0


class StageState(StrEnum):
    """PENDING -> (LOADING ->) RUNNING -> one of the last three; RUNNING <-> PAUSED on the way."""

    PENDING = "pending"
    LOADING = "loading"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobState(StrEnum):
    """QUEUED -> RUNNING -> SUCCEEDED | FAILED, or through CANCELLING to CANCELLED."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True when nothing more will happen to the job."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class InputRef:
    """Where a stage takes its input from: an artifact, or an output of a stage.

    Exactly one of `artifact` and (`job`, `role`) is set. `job` may be the stage's own job; `role`
    is "target", "residual" or "transcript".
    """

    artifact: str = ""
    job: str = ""
    role: str = ""


@dataclass(frozen=True)
class Output:
    """One file that a stage wrote, kept as an artifact; `role` says what it is ("srt")."""

    role: str
    artifact: str
    filename: str


@dataclass(frozen=True)
class Failure:
    """Why a job or stage failed: a stable reason, a sentence for people, the numbers as text."""

    reason: str
    message: str
    numbers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Stage:
    """One stage of a job and all that is known of how it went."""

    kind: StageKind
    parameters_json: str
    input: InputRef
    duration_ms: int = 0  # length of the audio at the root of the input; 0 where there is none
    state: StageState = StageState.PENDING
    attempt_count: int = 0
    preempt_count: int = 0  # attempts that gave way to a job of a higher class
    oom_count: int = 0  # attempts that ran out of memory: steps down the ladder
    ready_ms: int = 0  # when its input was there
    wait_ms: int = 0
    load_ms: int = 0
    run_ms: int = 0
    predicted_peak_bytes: int = 0
    measured_peak_bytes: int = 0
    option: str = ""
    quality_tier: int = 0
    evicted: tuple[str, ...] = ()
    waited_for: tuple[str, ...] = ()
    outputs: tuple[Output, ...] = ()
    notes: tuple[str, ...] = ()
    numbers: tuple[tuple[str, int], ...] = ()  # what the engine counted and timed, by name
    failure: Failure | None = None

    @property
    def engine(self) -> EngineName:
        """The engine that carries it out."""
        return ENGINE_OF[self.kind]


@dataclass(frozen=True)
class Job:
    """A job: an ordered list of stages, run one after the other.

    Conversations are jobs too while they last, of one stage that reads no artifact: these end with
    the calls that they serve, are stored nowhere, and are `is_durable` False.
    """

    name: str
    request_id: str
    priority: Priority
    arrival_ms: int
    stages: tuple[Stage, ...]
    title: str = ""  # for people, usually the recording's file name
    state: JobState = JobState.QUEUED
    finished_ms: int = 0
    failure: Failure | None = None
    quality_min: int | None = None  # the worst quality tier that will do; None: any
    deadline_ms: int | None = None  # when it should be done; it is told, not enforced
    is_durable: bool = True

    @property
    def engines(self) -> tuple[EngineName, ...]:
        """The engine of each stage, in order."""
        return tuple(stage.engine for stage in self.stages)

    @property
    def current_index(self) -> int:
        """Index of the first stage that is not done; of the last one when all are."""
        for index, stage in enumerate(self.stages):
            if stage.state is not StageState.SUCCEEDED:
                return index
        return len(self.stages) - 1

    @property
    def stage(self) -> Stage:
        """The stage that is at work or next."""
        return self.stages[self.current_index]

    @property
    def engine(self) -> EngineName:
        """The engine of that stage."""
        return self.stage.engine


@dataclass(frozen=True)
class JobPlan:
    """The job as it would end, when (None: it would wait for ever, see its waits), the decisions
    about it, and why it would be refused, if so.
    """

    job: Job
    end_ms: int | None
    decisions: tuple[str, ...] = ()
    refusal: Failure | None = None
