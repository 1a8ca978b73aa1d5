"""Artifact <-> v1.Artifact, and what an uploader says of a file."""

from dataclasses import dataclass

from coscheduler.errors import InvalidInput
from coscheduler.rpc.convert.names import KIND
from coscheduler.runtime.api import Artifact, AudioFacts
from coscheduler.v1 import artifact_pb2

FILENAME_CHARACTERS_MAX = 255


@dataclass(frozen=True)
class FileLabel:
    """What an uploader says of a file: `kind` is "audio", "transcript" or "file"."""

    kind: str
    media_type: str
    filename: str


def label_to_wire(label: FileLabel) -> artifact_pb2.ArtifactMetadata:
    """The first message of an upload. Raises InvalidInput KIND_UNKNOWN."""
    kind = KIND.to_wire(label.kind)
    if not kind:
        raise InvalidInput("KIND_UNKNOWN", f"no kind of artifact {label.kind!r}", kind=label.kind)
    return artifact_pb2.ArtifactMetadata(
        kind=kind, media_type=label.media_type, filename=label.filename
    )


def label_from_wire(message: artifact_pb2.ArtifactMetadata) -> FileLabel:
    """Check an upload's first message. Raises InvalidInput KIND_UNKNOWN or FILENAME_INVALID."""
    name = message.filename
    if len(name) > FILENAME_CHARACTERS_MAX or name in (".", "..") or "/" in name or "\0" in name:
        raise InvalidInput(
            "FILENAME_INVALID",
            f"a file name has at most {FILENAME_CHARACTERS_MAX} characters and no folder",
            characters=len(name),
            characters_max=FILENAME_CHARACTERS_MAX,
        )
    kind = KIND.from_wire(message.kind or artifact_pb2.Artifact.KIND_AUDIO)
    return FileLabel(kind, message.media_type, name)


def artifact_to_wire(artifact: Artifact) -> artifact_pb2.Artifact:
    """The message for an artifact."""
    return artifact_pb2.Artifact(
        name=artifact.name,
        kind=KIND.to_wire(artifact.kind),
        media_type=artifact.media_type,
        filename=artifact.filename,
        size_bytes=artifact.size_bytes,
        sha256=artifact.sha256,
        create_time_ms=artifact.created_ms,
        job=artifact.job,
        audio=_audio_to_wire(artifact.audio),
    )


def artifact_from_wire(message: artifact_pb2.Artifact) -> Artifact:
    """The artifact in a message. Raises InvalidInput KIND_UNKNOWN."""
    return Artifact(
        name=message.name,
        kind=KIND.from_wire(message.kind),
        media_type=message.media_type,
        filename=message.filename,
        size_bytes=message.size_bytes,
        sha256=message.sha256,
        created_ms=message.create_time_ms,
        job=message.job,
        audio=_audio_from_wire(message.audio) if message.HasField("audio") else None,
    )


def _audio_to_wire(audio: AudioFacts | None) -> artifact_pb2.AudioFacts | None:
    if audio is None:
        return None
    return artifact_pb2.AudioFacts(
        duration_ms=audio.duration_ms,
        sample_rate_hz=audio.sample_rate_hz,
        channel_count=audio.channel_count,
        codec=audio.codec,
    )


def _audio_from_wire(message: artifact_pb2.AudioFacts) -> AudioFacts:
    return AudioFacts(
        duration_ms=message.duration_ms,
        sample_rate_hz=message.sample_rate_hz,
        channel_count=message.channel_count,
        codec=message.codec,
    )
