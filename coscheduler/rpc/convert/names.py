"""The wire's enums, each beside the plain name it stands for.

The tables are built from the names themselves: a member which the protos lack fails at import.
"""

from collections.abc import Mapping
from typing import Generic, TypeVar, cast, get_args

from coscheduler.core.model import EngineName, JobState, Priority, StageState
from coscheduler.errors import InvalidInput
from coscheduler.stages import (
    Interpolation,
    Overflow,
    PieceMode,
    Ranking,
    Residual,
    SpanSign,
    SpeechDetection,
    SpeechTask,
    TranscriptFormat,
)
from coscheduler.v1 import artifact_pb2, gpu_pb2, job_pb2

Plain = TypeVar("Plain")
Wire = TypeVar("Wire", bound=int)


class Names(Generic[Plain, Wire]):
    """A two-way table between plain values and numbers of one enum."""

    def __init__(self, what: str, wire_of: Mapping[Plain, Wire]) -> None:
        self._what = what
        self._wire_of = dict(wire_of)
        self._plain_of: dict[int, Plain] = {number: plain for plain, number in wire_of.items()}

    def known(self) -> list[Plain]:
        """Every plain value, in the order of the numbers."""
        return [self._plain_of[number] for number in sorted(self._plain_of)]

    def to_wire(self, plain: Plain) -> Wire:
        """The number of a plain value; 0 (unspecified) for one that this version does not know."""
        return self._wire_of.get(plain, cast("Wire", 0))

    def from_wire(self, number: int) -> Plain:
        """The plain value of a number. Raises InvalidInput `<WHAT>_UNKNOWN`."""
        try:
            return self._plain_of[number]
        except KeyError:
            known = ", ".join(str(key) for key in sorted(self._plain_of))
            raise InvalidInput(
                f"{self._what.upper()}_UNKNOWN",
                f"{self._what} {number} is unknown; there are: {known}",
                **{self._what: number, "known": known},
            ) from None


PRIORITY = Names(
    "priority", {entry: job_pb2.Priority.Value(f"PRIORITY_{entry.name}") for entry in Priority}
)
JOB_STATE = Names(
    "job_state", {entry: job_pb2.Job.State.Value(f"STATE_{entry.name}") for entry in JobState}
)
STAGE_STATE = Names(
    "stage_state", {entry: job_pb2.Stage.State.Value(f"STATE_{entry.name}") for entry in StageState}
)
ENGINE = Names(
    "engine", {entry: gpu_pb2.Engine.Value(f"ENGINE_{entry.name}") for entry in EngineName}
)
FORMAT: Names[TranscriptFormat, job_pb2.TranscriptFormat.ValueType] = Names(
    "format",
    {
        entry: job_pb2.TranscriptFormat.Value(f"TRANSCRIPT_FORMAT_{entry.upper()}")
        for entry in get_args(TranscriptFormat)
    },
)
TASK: Names[SpeechTask, job_pb2.SpeechTask.ValueType] = Names(
    "task",
    {
        entry: job_pb2.SpeechTask.Value(f"SPEECH_TASK_{entry.upper()}")
        for entry in get_args(SpeechTask)
    },
)
DETECTION: Names[SpeechDetection, job_pb2.SpeechDetection.ValueType] = Names(
    "vad_method",
    {
        entry: job_pb2.SpeechDetection.Value(f"SPEECH_DETECTION_{entry.upper()}")
        for entry in get_args(SpeechDetection)
    },
)
INTERPOLATION: Names[Interpolation, job_pb2.Interpolation.ValueType] = Names(
    "interpolate_method",
    {
        entry: job_pb2.Interpolation.Value(f"INTERPOLATION_{entry.upper()}")
        for entry in get_args(Interpolation)
    },
)
SIGN: Names[SpanSign, job_pb2.TimeSpan.Sign.ValueType] = Names(
    "sign", {"+": job_pb2.TimeSpan.SIGN_PRESENT, "-": job_pb2.TimeSpan.SIGN_ABSENT}
)
RANKING: Names[Ranking, job_pb2.Ranking.ValueType] = Names(
    "ranking",
    {entry: job_pb2.Ranking.Value(f"RANKING_{entry.upper()}") for entry in get_args(Ranking)},
)
RESIDUAL: Names[Residual, job_pb2.Residual.ValueType] = Names(
    "residual",
    {
        entry: job_pb2.Residual.Value(f"RESIDUAL_{entry.upper().replace('-', '_')}")
        for entry in get_args(Residual)
    },
)
OVERFLOW: Names[Overflow, job_pb2.Overflow.ValueType] = Names(
    "overflow",
    {entry: job_pb2.Overflow.Value(f"OVERFLOW_{entry.upper()}") for entry in get_args(Overflow)},
)
MODE: Names[PieceMode, job_pb2.PieceMode.ValueType] = Names(
    "mode",
    {
        entry: job_pb2.PieceMode.Value(f"PIECE_MODE_{entry.upper()}")
        for entry in get_args(PieceMode)
    },
)
# These three are plain text inside; the wire's own names, shortened, are the vocabulary.
KIND = Names(
    "kind",
    {
        name.removeprefix("KIND_").lower(): number
        for name, number in artifact_pb2.Artifact.Kind.items()
        if number
    },
)
LEDGER_STATE = Names(
    "ledger_state",
    {
        name.removeprefix("STATE_").lower(): number
        for name, number in gpu_pb2.LedgerLine.State.items()
    },
)
ENGINE_STATE = Names(
    "engine_state",
    {
        name.removeprefix("STATE_").lower(): number
        for name, number in gpu_pb2.EngineStatus.State.items()
    },
)
