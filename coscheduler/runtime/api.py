"""What the daemon offers to its front: plain data and one Protocol. No grpc here.

`rpc/` turns calls into these and back; `daemon.py` implements them. Every method raises errors of
`coscheduler.errors` and nothing else on purpose.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from coscheduler.chat import ChatEvent, ChatParameters
from coscheduler.core.model import EngineName, InputRef, Job, JobPlan, Priority, StageKind


@dataclass(frozen=True)
class StageRequest:
    """A stage as asked for. `input` None: the stage before, or for the first the job's source.

    An `input` with a role and without a job means an earlier stage of the same job.
    """

    kind: StageKind
    parameters: dict[str, Any]
    input: InputRef | None = None


@dataclass(frozen=True)
class JobRequest:
    """A job as asked for. The same `request_id` always means the same job (1..128 characters).

    `quality_min` is the worst quality tier that will do (0 is the best; None: any); `deadline_ms`,
    since the Unix epoch, is told and not enforced.
    """

    request_id: str
    stages: tuple[StageRequest, ...]
    source: InputRef | None = None
    priority: int = int(Priority.NORMAL)
    title: str = ""
    quality_min: int | None = None
    deadline_ms: int | None = None


@dataclass(frozen=True)
class Progress:
    """Where the running stage is. Not durable."""

    stage_index: int
    done: int
    total: int
    note: str


@dataclass(frozen=True)
class JobSnapshot:
    """A job as it stands, with the progress of its running stage and what it waits for, if any.

    `expected_end_ms` is an estimate, None where there is none; `notes` are for people.
    """

    job: Job
    progress: Progress | None = None
    waiting_for: str = ""
    expected_end_ms: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AudioFacts:
    """What the decoding child measured of a recording."""

    duration_ms: int
    sample_rate_hz: int
    channel_count: int
    codec: str


@dataclass(frozen=True)
class Artifact:
    """A stored file. `kind`: "audio", "transcript" or "file"; `job` names the job that made it."""

    name: str  # "artifacts/9a1e..."
    kind: str
    media_type: str
    filename: str
    size_bytes: int
    sha256: str
    created_ms: int
    job: str = ""
    audio: AudioFacts | None = None


@dataclass(frozen=True)
class LedgerLine:
    """One line of the ledger as shown to people. `state`: reserved, committed, releasing."""

    engine: EngineName
    line: str
    bytes: int
    state: str


@dataclass(frozen=True)
class EngineView:
    """An engine as it stands.

    `state`: not_configured, unavailable, stopped, starting, started, loading, loaded, running,
    paused, unloading, stopping. `failure` says why it is unavailable. `pid` 0: no process. `note`
    says what a load that was asked for waits for, or why it failed.
    """

    engine: EngineName
    state: str
    model: str = ""
    option: str = ""
    quality_tier: int = 0
    pid: int = 0
    job: str = ""
    predicted_bytes: int = 0
    measured_bytes: int = 0
    options: tuple[str, ...] = ()
    failure: str = ""
    is_pinned: bool = False
    note: str = ""


@dataclass(frozen=True)
class GpuSnapshot:
    """The ledger and the engines at one moment.

    `capacity_bytes` may be given out now; `budget_bytes` could be, if no other program used the
    device.
    """

    device: str
    device_name: str
    capacity_bytes: int
    headroom_bytes: int
    reserved_bytes: int
    measured_bytes: int
    other_bytes: int  # used by other programs
    lines: tuple[LedgerLine, ...] = ()
    engines: tuple[EngineView, ...] = ()
    queued_count: int = 0
    running_count: int = 0
    warnings: tuple[str, ...] = field(default=())
    budget_bytes: int = 0
    is_draining: bool = False


@dataclass(frozen=True)
class TranscriptPart:
    """A transcript to join, and who speaks in it; "": whoever it says itself."""

    artifact: str
    speaker: str = ""


class ArtifactWriter(Protocol):
    """A file on its way in: nothing is visible before `finish`, and without it nothing stays."""

    async def write(self, chunk: bytes) -> None:
        """Append. Raises Exhausted ARTIFACT_TOO_LARGE or DISK_FULL."""
        ...

    async def finish(self, size_bytes: int, sha256: str) -> Artifact:
        """Compare length and checksum (hex), probe audio in a child, publish. Raises InvalidInput
        UPLOAD_INCOMPLETE, CHECKSUM_MISMATCH, ARTIFACT_EMPTY, AUDIO_UNREADABLE, AUDIO_TOO_SHORT,
        AUDIO_TOO_LONG or AUDIO_NOT_FINITE.
        """
        ...

    async def abort(self) -> None:
        """Delete what was written; calling it after `finish` does nothing."""
        ...


class DaemonApi(Protocol):
    """All that the wire can ask of the daemon."""

    async def create_job(self, request: JobRequest) -> JobSnapshot:
        """Durable when it returns. The same request_id returns the job that is there. Raises
        InvalidInput, NotFound (source), Refused NEVER_FITS / ENGINE_*, Exhausted QUEUE_FULL,
        Unavailable DRAINING.
        """
        ...

    async def get_job(self, name: str) -> JobSnapshot:
        """Raises NotFound JOB_NOT_FOUND."""
        ...

    async def list_jobs(self, page_size: int, page_token: str) -> tuple[list[JobSnapshot], str]:
        """Newest first. The token of the next page is "" on the last."""
        ...

    def watch_job(self, name: str) -> AsyncIterator[JobSnapshot]:
        """A snapshot at once, then changes (a slow reader misses old ones), the final one last."""
        ...

    async def cancel_job(self, name: str) -> JobSnapshot:
        """Ask for it; a job that is already final is returned unchanged."""
        ...

    async def delete_job(self, name: str) -> None:
        """A final job and its outputs. Raises Refused JOB_NOT_FINAL."""
        ...

    async def plan_job(self, request: JobRequest) -> JobPlan:
        """What would become of the job if it were created now; nothing changes. A refusal is part
        of the plan. Raises InvalidInput, NotFound (source), Refused INPUT_JOB_FAILED.
        """
        ...

    def chat(
        self, parameters: ChatParameters, priority: int = int(Priority.INTERACTIVE)
    ) -> AsyncGenerator[ChatEvent, None]:
        """Go on with a conversation: why it waits, its text in pieces, `ChatDone` last. Closing it
        ends the answer. Raises InvalidInput PRIORITY_OUT_OF_RANGE, Refused NEVER_FITS, ENGINE_* or
        CHAT_TOO_LONG, Exhausted TOO_MANY_CHATS or QUEUE_FULL, EngineFault, Unavailable DRAINING.
        """
        ...

    async def begin_artifact(self, kind: str, media_type: str, filename: str) -> ArtifactWriter:
        """Raises InvalidInput KIND_UNKNOWN, Exhausted DISK_FULL, Unavailable DRAINING."""
        ...

    async def get_artifact(self, name: str) -> Artifact:
        """Raises NotFound ARTIFACT_NOT_FOUND."""
        ...

    async def list_artifacts(
        self, page_size: int, page_token: str, job: str
    ) -> tuple[list[Artifact], str]:
        """Newest first; only those of one job when `job` is given."""
        ...

    async def delete_artifact(self, name: str) -> None:
        """Raises Refused ARTIFACT_IN_USE while a job that is not final reads it."""
        ...

    def read_artifact(self, name: str, offset: int) -> AsyncIterator[bytes]:
        """The bytes from `offset` on, in chunks. Raises InvalidInput OFFSET_OUT_OF_RANGE."""
        ...

    async def join_transcripts(self, parts: Sequence[TranscriptPart]) -> Artifact:
        """One transcript of several of the same recording, as a new artifact; see `transcripts`.
        Raises InvalidInput PARTS_INVALID, INPUT_KIND_MISMATCH, TRANSCRIPT_INVALID or
        TRANSCRIPT_TOO_LARGE, NotFound, Exhausted DISK_FULL, Unavailable DRAINING.
        """
        ...

    async def gpu(self) -> GpuSnapshot:
        """The ledger and the engines now."""
        ...

    def watch_gpu(self) -> AsyncIterator[GpuSnapshot]:
        """A snapshot at once, then after changes and at least every second (a slow reader misses
        old ones), until the daemon ends. Raises Exhausted TOO_MANY_WATCHERS.
        """
        ...

    async def set_budget(self, budget_bytes: int) -> GpuSnapshot:
        """What the engines may hold together from now on, headroom included; 0: as the config says.
        Raises InvalidInput BUDGET_NEGATIVE.
        """
        ...

    async def load_engine(self, engine: EngineName, option: str) -> GpuSnapshot:
        """Ask for an engine in memory without a job; option "": the best that fits. Raises Refused
        ENGINE_*, NEVER_FITS, InvalidInput OPTION_UNKNOWN.
        """
        ...

    async def unload_engine(self, engine: EngineName) -> GpuSnapshot:
        """Ask for an engine's process to end once it is idle. Raises Refused ENGINE_*."""
        ...

    async def pin_engine(self, engine: EngineName, is_pinned: bool) -> GpuSnapshot:
        """Keep an engine in memory once it is there, or no longer. Raises Refused ENGINE_*."""
        ...

    async def drain(self, is_draining: bool) -> GpuSnapshot:
        """Start nothing any more, or start things again. Jobs are accepted and wait."""
        ...
