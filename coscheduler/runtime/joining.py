"""Transcripts of separated voices joined for a client: a new transcript among the artifacts.

Transcripts may have been uploaded by anybody, so a child reads them (`coscheduler.transcripts`).
"""

import asyncio
import hashlib
import json
import sys
from collections.abc import Awaitable, Callable, Sequence

from pydantic import TypeAdapter, ValidationError

from coscheduler import errors, transcripts
from coscheduler.errors import InvalidInput, StoreFault
from coscheduler.runtime.api import Artifact, TranscriptPart
from coscheduler.runtime.artifacts import Artifacts
from coscheduler.stages import SpeakerName

PARTS_MAX = 64
JOIN_SECONDS_MAX = 120.0
MEDIA_TYPE, FILENAME = "application/json", "transcript.json"
GetArtifact = Callable[[str], Awaitable[Artifact]]
_SPEAKER: TypeAdapter[str] = TypeAdapter(SpeakerName)


async def join(parts: Sequence[TranscriptPart], artifacts: Artifacts, get: GetArtifact) -> Artifact:
    """See `api.DaemonApi.join_transcripts`."""
    if not 1 <= len(parts) <= PARTS_MAX:
        text = f"{len(parts)} transcripts to join; give 1 to {PARTS_MAX}"
        raise InvalidInput("PARTS_INVALID", text, part_count=len(parts), part_count_max=PARTS_MAX)
    for part in parts:
        _check_speaker(part.speaker)
    found = [await get(part.artifact) for part in parts]
    _check(found)
    asked = [
        {"path": str(artifacts.path(part.artifact)), "name": part.artifact, "speaker": part.speaker}
        for part in parts
    ]
    return await _kept(await _joined(json.dumps({"parts": asked}).encode()), artifacts)


def _check_speaker(name: str) -> None:
    try:
        _SPEAKER.validate_python(name or "-")
    except ValidationError:
        text = f"{name!r} cannot stand for a speaker: 1 to 100 characters without brackets"
        raise InvalidInput("PARTS_INVALID", text, speaker=name[:100]) from None


def _check(found: Sequence[Artifact]) -> None:
    for artifact in found:
        if artifact.kind != "transcript":
            text = f"{artifact.name} is of kind {artifact.kind}; transcripts are joined"
            raise InvalidInput("INPUT_KIND_MISMATCH", text, artifact=artifact.name)
    size_bytes, size_bytes_max = sum(entry.size_bytes for entry in found), transcripts.BYTES_MAX
    if size_bytes > size_bytes_max:
        raise InvalidInput(
            "TRANSCRIPT_TOO_LARGE",
            f"the transcripts have {size_bytes} bytes; at most {size_bytes_max} are joined",
            size_bytes=size_bytes,
            size_bytes_max=size_bytes_max,
        )


async def _joined(question: bytes) -> bytes:
    """What the child says. Raises the InvalidInput that it told, TRANSCRIPT_INVALID if it died."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "coscheduler.transcripts",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(child.communicate(question), JOIN_SECONDS_MAX)
    except TimeoutError:
        raise StoreFault("JOIN_FAILED", f"joining took more than {JOIN_SECONDS_MAX} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode == 0:
        return out
    try:
        told = json.loads(out)["error"]
    except ValueError:
        text = f"reading the transcripts ended the reader (status {child.returncode})"
        raise InvalidInput("TRANSCRIPT_INVALID", text) from None
    raise errors.from_parts("invalid_input", told["reason"], told["message"], told["numbers"])


async def _kept(data: bytes, artifacts: Artifacts) -> Artifact:
    incoming = await artifacts.begin("transcript", MEDIA_TYPE, FILENAME)
    try:
        await incoming.write(data)
        return await incoming.finish(len(data), hashlib.sha256(data).hexdigest())
    finally:
        await incoming.abort()
