"""From a job as asked for to a job as stored: every check that needs no scheduler.

A stage reads audio (separate, transcribe) or a transcript (analyze). Its input is an artifact, an
output of another job, an output of an earlier stage of its own job, or by default the result of the
stage before it.
"""

import json
import secrets
from dataclasses import replace
from typing import Protocol

from coscheduler import stages as parameters
from coscheduler.config import TranscriptionSettings
from coscheduler.core.model import (
    InputRef,
    Job,
    JobState,
    Priority,
    Stage,
    StageKind,
    StageState,
)
from coscheduler.errors import InvalidInput, Refused
from coscheduler.runtime import chosen
from coscheduler.runtime.api import Artifact, JobRequest, StageRequest

ROLES: dict[StageKind, tuple[str, ...]] = {
    StageKind.SEPARATE: ("target", "residual"),
    StageKind.TRANSCRIBE: ("transcript",),
    StageKind.ANALYZE: (),
}
AUDIO_ROLES = ROLES[StageKind.SEPARATE]
REQUEST_ID_LENGTH_MAX = 128
TITLE_LENGTH_MAX = 200
CLIP_MS_MAX = 120_000  # of a known speaker's voice


class Lookup(Protocol):
    """Where existing jobs and artifacts are found (the Store)."""

    async def get_job(self, name: str) -> Job:
        """Raises NotFound."""
        ...

    async def get_artifact(self, name: str) -> Artifact:
        """Raises NotFound."""
        ...


async def make_job(
    request: JobRequest, lookup: Lookup, now_ms: int, transcription: TranscriptionSettings | None
) -> Job:
    """A checked job with a new name. Raises InvalidInput, NotFound or Refused INPUT_JOB_FAILED or
    MODEL_NOT_CONFIGURED.
    """
    _check_texts(request)
    _check_numbers(request)
    priority = priority_of(request.priority)
    kinds = [stage.kind for stage in request.stages]
    _check_order(kinds)
    name = f"jobs/{secrets.token_hex(6)}"
    made: list[Stage] = []
    for stage in request.stages:
        values = parameters.parse(stage.kind, stage.parameters).model_dump(mode="json")
        if transcription is not None and stage.kind is StageKind.TRANSCRIBE:
            values = chosen.resolved(values, transcription)
        for artifact in parameters.named_artifacts(values):
            await _check_clip(artifact, lookup)
        ref = _input_of(stage, request, name, made)
        ref, duration_ms = await _resolve(stage.kind, ref, name, made, lookup)
        made.append(Stage(stage.kind, json.dumps(values), ref, duration_ms))
    return Job(
        name,
        request.request_id,
        priority,
        now_ms,
        tuple(made),
        request.title,
        quality_min=request.quality_min,
        deadline_ms=request.deadline_ms,
    )


async def resolve_after_restart(job: Job, lookup: Lookup) -> Job:
    """Fill in outputs of other jobs that ended while nobody waited for them."""
    resolved = []
    for stage in job.stages:
        ref = stage.input
        if ref.job and ref.job != job.name and stage.state is StageState.PENDING:
            ref, _ = await _from_job(ref, lookup)
        resolved.append(replace(stage, input=ref))
    return replace(job, stages=tuple(resolved))


def reads(stage: Stage, artifact: str) -> bool:
    """Whether a stage needs an artifact, as its input or beside it."""
    named = parameters.named_artifacts(json.loads(stage.parameters_json))
    return artifact == stage.input.artifact or artifact in named


async def _check_clip(name: str, lookup: Lookup) -> None:
    """A clip of a known speaker: a recording, and no longer than the engine has memory for."""
    artifact = await lookup.get_artifact(name)
    if artifact.audio is None:
        _raise_mismatch(StageKind.TRANSCRIBE, f"{name} of kind {artifact.kind}, a speaker's clip")
    elif artifact.audio.duration_ms > CLIP_MS_MAX:
        raise InvalidInput(
            "SPEAKER_CLIP_TOO_LONG",
            f"the clip {name} has {artifact.audio.duration_ms} ms; at most {CLIP_MS_MAX} are "
            "compared, and a tenth of that is enough",
            artifact=name, duration_ms=artifact.audio.duration_ms, duration_ms_max=CLIP_MS_MAX,
        )  # fmt: skip


def _check_texts(request: JobRequest) -> None:
    length = len(request.request_id)
    if not 1 <= length <= REQUEST_ID_LENGTH_MAX:
        raise InvalidInput(
            "REQUEST_ID_INVALID",
            f"request_id has {length} characters; 1 to {REQUEST_ID_LENGTH_MAX} are allowed",
            length=length,
            length_max=REQUEST_ID_LENGTH_MAX,
        )
    if len(request.title) > TITLE_LENGTH_MAX:
        raise InvalidInput(
            "TITLE_TOO_LONG",
            f"the title has {len(request.title)} characters; {TITLE_LENGTH_MAX} are allowed",
            length=len(request.title),
            length_max=TITLE_LENGTH_MAX,
        )


def _check_numbers(request: JobRequest) -> None:
    if request.quality_min is not None and request.quality_min < 0:
        raise InvalidInput(
            "QUALITY_INVALID",
            f"quality_min is {request.quality_min}; 0 is the best quality tier",
            quality_min=request.quality_min,
        )
    if request.deadline_ms is not None and request.deadline_ms <= 0:
        raise InvalidInput(
            "DEADLINE_INVALID",
            f"the deadline is {request.deadline_ms}; give milliseconds since the Unix epoch",
            deadline_ms=request.deadline_ms,
        )


def priority_of(value: int) -> Priority:
    """The class of a number. Raises InvalidInput PRIORITY_OUT_OF_RANGE."""
    try:
        return Priority(value)
    except ValueError:
        names = ", ".join(f"{int(p)} ({p.name.lower()})" for p in Priority)
        raise InvalidInput(
            "PRIORITY_OUT_OF_RANGE", f"no priority {value}; there are: {names}", priority=value
        ) from None


def _check_order(kinds: list[StageKind]) -> None:
    order = [kind for kind in StageKind if kind in kinds]
    if not kinds or kinds != order:
        asked = ", ".join(kinds) or "none"
        raise InvalidInput(
            "STAGES_INVALID",
            f"stages asked for: {asked}; give one or more of separate, transcribe, analyze, each "
            "once and in this order",
            stages=asked,
        )


def _input_of(stage: StageRequest, request: JobRequest, name: str, made: list[Stage]) -> InputRef:
    if stage.input is not None:
        ref = stage.input
        return replace(ref, job=name) if ref.role and not ref.job else ref
    if made and (roles := ROLES[made[-1].kind]):
        return InputRef(job=name, role=roles[0])
    if request.source is None:
        raise InvalidInput(
            "SOURCE_MISSING", f"stage {stage.kind} has no input: give the job a source artifact"
        )
    return request.source


async def _resolve(
    kind: StageKind, ref: InputRef, name: str, made: list[Stage], lookup: Lookup
) -> tuple[InputRef, int]:
    """The reference, checked, and the length of the audio at its root in ms."""
    if bool(ref.artifact) == bool(ref.job):
        raise InvalidInput(
            "INPUT_INVALID", f"stage {kind}: name either an artifact or a job's output as input"
        )
    if ref.artifact:
        return ref, await _artifact_duration(kind, ref, lookup)
    _check_role(kind, ref)
    if ref.job == name:
        return ref, _own_duration(kind, ref, made)
    return await _from_job(ref, lookup)


async def _artifact_duration(kind: StageKind, ref: InputRef, lookup: Lookup) -> int:
    artifact = await lookup.get_artifact(ref.artifact)
    is_audio = artifact.kind == "audio"
    if is_audio == (kind is StageKind.ANALYZE):
        _raise_mismatch(kind, f"{artifact.name} is of kind {artifact.kind}")
    return artifact.audio.duration_ms if artifact.audio else 0


def _check_role(kind: StageKind, ref: InputRef) -> None:
    if ref.role not in sum(ROLES.values(), ()):
        raise InvalidInput(
            "INPUT_INVALID", f"no output {ref.role!r}; stages have: target, residual, transcript"
        )
    if (ref.role in AUDIO_ROLES) == (kind is StageKind.ANALYZE):
        _raise_mismatch(kind, f"the {ref.role} of {ref.job}")


def _raise_mismatch(kind: StageKind, what: str) -> None:
    wanted = "a transcript" if kind is StageKind.ANALYZE else "audio"
    raise InvalidInput(
        "INPUT_KIND_MISMATCH", f"stage {kind} reads {wanted}, but its input is {what}", stage=kind
    )


def _own_duration(kind: StageKind, ref: InputRef, made: list[Stage]) -> int:
    for stage in made:
        if ref.role in ROLES[stage.kind]:
            return stage.duration_ms
    raise InvalidInput("INPUT_INVALID", f"stage {kind}: no earlier stage makes a {ref.role}")


async def _from_job(ref: InputRef, lookup: Lookup) -> tuple[InputRef, int]:
    job = await lookup.get_job(ref.job)
    stage = next((stage for stage in job.stages if ref.role in ROLES[stage.kind]), None)
    if stage is None:
        raise InvalidInput("INPUT_INVALID", f"{job.name} has no stage that makes a {ref.role}")
    for output in stage.outputs:
        if output.role == ref.role:
            return InputRef(artifact=output.artifact), stage.duration_ms
    if job.state.is_final and job.state is not JobState.SUCCEEDED:
        raise Refused(
            "INPUT_JOB_FAILED", f"{job.name} ended as {job.state}, without its {ref.role}",
            job=job.name, state=job.state,
        )  # fmt: skip
    return ref, stage.duration_ms
