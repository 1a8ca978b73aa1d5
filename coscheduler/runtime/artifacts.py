"""Files of the store: recordings that came in, results that stages wrote.

A file appears by rename after its length and checksum are known and it is on the disk; its record
follows in the database. What has a file but no record, or a `.part` name, was interrupted: the next
start deletes it. Names are random and made here, so no caller's text ever becomes a path.
"""

import asyncio
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from coscheduler import errors
from coscheduler.config import Settings
from coscheduler.core.model import Output
from coscheduler.engines.base import OutputFile, StageResult
from coscheduler.errors import Exhausted, InvalidInput, NotFound, StoreFault
from coscheduler.runtime.api import Artifact, AudioFacts
from coscheduler.runtime.clock import Clock
from coscheduler.runtime.store import Store

KINDS = ("audio", "transcript", "file")
NAME = re.compile(r"artifacts/[0-9a-f]{32}")
PROBE_MS_MAX = 600_000


class Artifacts:
    """The artifact files below one data directory."""

    def __init__(self, settings: Settings, store: Store, clock: Clock) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._files = settings.data_dir / "artifacts"
        self._work = settings.data_dir / "work"
        self._resume = settings.data_dir / "resume"
        for folder in (self._files, self._work, self._resume):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def clean(self, outputs_in_use: set[str], unfinished_jobs: set[str]) -> None:
        """At the start: delete half-written files, outputs that no finished stage names, and what
        stages of jobs that are final kept for another attempt.
        """
        known: set[str] = set()
        before: tuple[int, str] | None = None
        while page := await self._store.list_artifacts(500, before):
            for artifact in page:
                if artifact.job and artifact.name not in outputs_in_use:
                    await self._store.delete_artifact(artifact.name)
                else:
                    known.add(_file_name(artifact.name))
            before = (page[-1].created_ms, page[-1].name)
        keys = {_job_key(job) for job in unfinished_jobs}
        await asyncio.to_thread(self._sweep, known, keys)

    def _sweep(self, known: set[str], unfinished_keys: set[str]) -> None:
        for folder in self._resume.iterdir():
            if folder.name.rpartition("-")[0] not in unfinished_keys:
                shutil.rmtree(folder, ignore_errors=True)
        for path in self._files.iterdir():
            if path.name not in known:
                path.unlink(missing_ok=True)
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(mode=0o700, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where the artifact's bytes are. Raises NotFound for a name that we never made."""
        if not NAME.fullmatch(name):
            raise NotFound("ARTIFACT_NOT_FOUND", f"there is no {name!r}", artifact=name)
        return self._files / _file_name(name)

    # ---- coming in ---------------------------------------------------------------------------

    async def begin(self, kind: str, media_type: str, filename: str) -> "Incoming":
        """Open a file for an upload. Raises InvalidInput KIND_UNKNOWN, Exhausted DISK_FULL."""
        if kind not in KINDS:
            raise InvalidInput(
                "KIND_UNKNOWN", f"no kind {kind!r}; there are: {', '.join(KINDS)}", kind=kind
            )
        self.check_disk(0)
        name = f"artifacts/{secrets.token_hex(16)}"
        facts = _UploadFacts(name, kind, media_type[:200], Path(filename).name[:200])
        return Incoming(self, facts, self.path(name).with_suffix(".part"))

    def check_disk(self, growth_bytes: int) -> None:
        """Raises Exhausted DISK_FULL when writing would leave less than the configured rest."""
        free = shutil.disk_usage(self._files).free
        rest = int(self._settings.store.disk_free_bytes_min)
        if free - growth_bytes < rest:
            raise Exhausted(
                "DISK_FULL",
                f"{free} bytes are free on the store's disk and {rest} must stay free; delete "
                "jobs and artifacts, or lower store.disk_free_bytes_min",
                free_bytes=free,
                disk_free_bytes_min=rest,
                retry_ms=60_000,
            )

    @property
    def size_bytes_max(self) -> int:
        """The largest artifact that is taken."""
        return int(self._settings.store.artifact_bytes_max)

    async def publish(self, facts: "_UploadFacts", part: Path, size: int, sha256: str) -> Artifact:
        """Probe what claims to be audio, then rename and record."""
        audio = await self._probe(part) if facts.kind == "audio" else None
        artifact = Artifact(
            facts.name, facts.kind, facts.media_type, facts.filename, size, sha256,
            self._clock.now_ms(), audio=audio,
        )  # fmt: skip
        await asyncio.to_thread(_rename_durably, part, self.path(facts.name))
        await self._store.add_artifacts([artifact])
        return artifact

    async def _probe(self, path: Path) -> AudioFacts:
        """Decode the whole file in a child process of its own: it may be hostile."""
        store = self._settings.store
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "coscheduler.audio_probe", str(path),
            str(store.recording_ms_min), str(store.recording_ms_max),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            out, _ = await asyncio.wait_for(process.communicate(), PROBE_MS_MAX / 1000)
        except BaseException:
            if process.returncode is None:
                process.kill()
                await process.wait()
            raise
        return _read_probe(out, process.returncode or 0)

    # ---- results -----------------------------------------------------------------------------

    def make_work_dir(self, job: str, stage_index: int) -> Path:
        """An empty folder for one attempt at a stage."""
        folder = self._work / f"{_job_key(job)}-{stage_index}-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        return folder

    def make_resume_dir(self, job: str, stage_index: int) -> Path:
        """The stage's folder that outlives its attempts; see `engines.base.Task`."""
        folder = self._resume / f"{_job_key(job)}-{stage_index}"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def forget_resume_dirs(self, job: str) -> None:
        """The job is final: nothing will go on from there."""
        for folder in self._resume.glob(f"{_job_key(job)}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    async def adopt(
        self, job: str, folder: Path, result: StageResult, duration_ms: int
    ) -> tuple[Output, ...]:
        """Make the files of a finished stage artifacts of its job; the folder is gone then."""
        artifacts = [
            await asyncio.to_thread(self._adopt_one, job, folder, file, duration_ms)
            for file in result.files
        ]
        await self._store.add_artifacts(artifacts)
        await asyncio.to_thread(shutil.rmtree, folder, True)
        return tuple(
            Output(file.role, artifact.name, file.filename)
            for file, artifact in zip(result.files, artifacts, strict=True)
        )

    def _adopt_one(self, job: str, folder: Path, file: OutputFile, duration_ms: int) -> Artifact:
        source = folder / Path(file.filename).name
        name = f"artifacts/{secrets.token_hex(16)}"
        digest = hashlib.sha256()
        with source.open("rb") as data:
            while chunk := data.read(1 << 20):
                digest.update(chunk)
        size = source.stat().st_size
        is_audio = file.media_type.startswith("audio/")
        kind = "audio" if is_audio else "transcript" if file.role == "transcript" else "file"
        _rename_durably(source, self.path(name))
        audio = AudioFacts(duration_ms, 0, 1, "pcm") if is_audio else None
        return Artifact(
            name, kind, file.media_type, file.filename, size, digest.hexdigest(),
            self._clock.now_ms(), job, audio,
        )  # fmt: skip

    # ---- going out ---------------------------------------------------------------------------

    async def read(self, artifact: Artifact, offset: int, chunk_bytes: int) -> AsyncIterator[bytes]:
        """The bytes from `offset` on. Raises InvalidInput OFFSET_OUT_OF_RANGE."""
        if not 0 <= offset <= artifact.size_bytes:
            raise InvalidInput(
                "OFFSET_OUT_OF_RANGE",
                f"offset {offset} is outside of {artifact.name}, which has "
                f"{artifact.size_bytes} bytes",
                offset=offset,
                size_bytes=artifact.size_bytes,
            )
        with self._open(artifact) as file:
            file.seek(offset)
            while chunk := await asyncio.to_thread(file.read, chunk_bytes):
                yield chunk

    def _open(self, artifact: Artifact):  # type: ignore[no-untyped-def] # a BufferedReader
        try:
            return self.path(artifact.name).open("rb")
        except FileNotFoundError:
            raise StoreFault(
                "ARTIFACT_LOST", f"the file of {artifact.name} is gone", artifact=artifact.name
            ) from None

    async def delete(self, name: str) -> None:
        """The record first, then the file: a crash in between leaves a file that is swept."""
        path = self.path(name)
        await self._store.delete_artifact(name)
        await asyncio.to_thread(path.unlink, True)


@dataclass(frozen=True)
class _UploadFacts:
    name: str
    kind: str
    media_type: str
    filename: str


class Incoming:
    """An upload on its way; implements `api.ArtifactWriter`."""

    def __init__(self, artifacts: Artifacts, facts: _UploadFacts, part: Path) -> None:
        self._artifacts = artifacts
        self._facts = facts
        self._part = part
        self._file = part.open("xb")
        self._digest = hashlib.sha256()
        self._size_bytes = 0

    async def write(self, chunk: bytes) -> None:
        """Append. Raises Exhausted ARTIFACT_TOO_LARGE or DISK_FULL."""
        size_max = self._artifacts.size_bytes_max
        if self._size_bytes + len(chunk) > size_max:
            raise Exhausted(
                "ARTIFACT_TOO_LARGE",
                f"more than {size_max} bytes came; raise store.artifact_bytes_max or send less",
                artifact_bytes_max=size_max,
                received_bytes=self._size_bytes + len(chunk),
            )
        self._artifacts.check_disk(len(chunk))
        await asyncio.to_thread(self._append, chunk)

    def _append(self, chunk: bytes) -> None:
        try:
            self._file.write(chunk)
        except OSError as error:
            raise StoreFault("WRITE_FAILED", f"writing the upload: {error.strerror}") from error
        self._digest.update(chunk)
        self._size_bytes += len(chunk)

    async def finish(self, size_bytes: int, sha256: str) -> Artifact:
        """Check, probe, publish; see `api.ArtifactWriter.finish`."""
        try:
            self._check(size_bytes, sha256)
            await asyncio.to_thread(self._sync)
            return await self._artifacts.publish(
                self._facts, self._part, self._size_bytes, self._digest.hexdigest()
            )
        finally:
            await self.abort()

    async def abort(self) -> None:
        """Delete the unfinished file, if it is still there."""
        self._file.close()
        self._part.unlink(missing_ok=True)

    def _check(self, size_bytes: int, sha256: str) -> None:
        if size_bytes != self._size_bytes:
            raise InvalidInput(
                "UPLOAD_INCOMPLETE",
                f"{self._size_bytes} bytes came and {size_bytes} were announced; send it again",
                received_bytes=self._size_bytes,
                announced_bytes=size_bytes,
            )
        if sha256.lower() != self._digest.hexdigest():
            raise InvalidInput(
                "CHECKSUM_MISMATCH",
                "the bytes that came do not have the announced sha256; send them again",
                received_sha256=self._digest.hexdigest(),
                announced_sha256=sha256,
            )
        if size_bytes == 0:
            raise InvalidInput("ARTIFACT_EMPTY", "the file is empty (0 bytes)", size_bytes=0)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


def _job_key(job: str) -> str:
    return job.replace("/", "-")


def _file_name(artifact_name: str) -> str:
    return artifact_name.rpartition("/")[2]


def _rename_durably(source: Path, target: Path) -> None:
    """Rename within the file system and make both the bytes and the name survive a power cut."""
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.rename(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_probe(out: bytes, status: int) -> AudioFacts:
    try:
        answer = json.loads(out)
    except ValueError:
        raise InvalidInput(
            "AUDIO_UNREADABLE",
            f"decoding the file ended the decoder (status {status}); it is damaged or hostile",
            status=status,
        ) from None
    if "error" in answer:
        failure = answer["error"]
        raise errors.from_parts(
            "invalid_input", failure["reason"], failure["message"], failure["numbers"]
        )
    return AudioFacts(**answer["ok"])
