"""Files on their way to and from the daemon: the messages of an upload, the file of a download."""

import hashlib
import mimetypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from coscheduler.client.channel import CHUNK_BYTES
from coscheduler.errors import InvalidInput, StoreFault, Unavailable
from coscheduler.rpc import convert
from coscheduler.runtime.api import Artifact
from coscheduler.v1.artifact_pb2 import FinishWrite, WriteArtifactRequest

OnBytes = Callable[[int, int], None]  # (done_bytes, total_bytes)
TEXT_SUFFIXES = (".json", ".txt")


def ignore_bytes(done_bytes: int, total_bytes: int) -> None:
    """The progress callback of those who want none."""


def clean_name(path: Path) -> str:
    """The file's name as text that a message can carry, whatever bytes it has on disk."""
    return path.name.encode("utf-8", "replace").decode("utf-8")


def kind_of(path: Path) -> str:
    """The kind of artifact a file is: "transcript" for .json and .txt, else "audio"."""
    return "transcript" if path.suffix.lower() in TEXT_SUFFIXES else "audio"


def open_source(path: Path) -> BinaryIO:
    """Open a file to upload. Raises InvalidInput FILE_UNREADABLE before anything is sent."""
    try:
        return path.open("rb")
    except OSError as error:
        raise InvalidInput(
            "FILE_UNREADABLE", f"cannot read {path}: {error.strerror}", path=path
        ) from None


def upload_messages(
    file: BinaryIO, label: convert.FileLabel, on_bytes: OnBytes
) -> Iterator[WriteArtifactRequest]:
    """The messages of one upload. Length and checksum are those of the bytes really sent."""
    yield WriteArtifactRequest(metadata=convert.label_to_wire(label))
    total_bytes = file.seek(0, 2)
    file.seek(0)
    digest, done_bytes = hashlib.sha256(), 0
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
        yield WriteArtifactRequest(data=chunk)
        done_bytes += len(chunk)
        on_bytes(done_bytes, max(total_bytes, done_bytes))
    finish = FinishWrite(size_bytes=done_bytes, sha256=digest.hexdigest())
    yield WriteArtifactRequest(finish_write=finish)


class Stoppable:
    """Messages of an upload, read by a thread of grpc, which would only print what goes wrong.

    An error ends them early instead (the daemon then keeps nothing) and is kept in `fault`.
    """

    def __init__(self, messages: Iterator[WriteArtifactRequest]) -> None:
        self._messages = messages
        self.fault: Exception | None = None

    def __iter__(self) -> Iterator[WriteArtifactRequest]:
        try:
            yield from self._messages
        except Exception as fault:
            self.fault = fault


def label_of(path: Path, kind: str | None, media_type: str | None) -> convert.FileLabel:
    """What to say of a file; what is not given is told from its name."""
    guessed = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return convert.FileLabel(kind or kind_of(path), media_type or guessed, clean_name(path))


class Landing:
    """The file a download is written to: `.NAME.ID.part` beside the target until it is whole.

    A part that is there already, from a broken download of the same artifact, is continued.
    """

    def __init__(self, artifact: Artifact, target: Path, on_bytes: OnBytes) -> None:
        self._artifact = artifact
        self._target = target
        self._on_bytes = on_bytes
        self._part = target.with_name(f".{target.name}.{artifact.name.rpartition('/')[2]}.part")
        if self.offset_bytes > artifact.size_bytes:
            self._part.unlink()

    @property
    def offset_bytes(self) -> int:
        """How many bytes are there."""
        return self._part.stat().st_size if self._part.exists() else 0

    def open(self) -> BinaryIO:
        """The part, to append to. Makes the folder when it is missing."""
        self._target.parent.mkdir(parents=True, exist_ok=True)
        return self._part.open("ab")

    def write(self, file: BinaryIO, chunk: bytes) -> None:
        """Append and report."""
        file.write(chunk)
        self._on_bytes(file.tell(), self._artifact.size_bytes)

    def require_whole(self) -> None:
        """Raises Unavailable DOWNLOAD_BROKEN when bytes are missing."""
        if self.offset_bytes < self._artifact.size_bytes:
            raise Unavailable(
                "DOWNLOAD_BROKEN",
                f"{self._artifact.name} ended after {self.offset_bytes} bytes",
                received_bytes=self.offset_bytes,
                size_bytes=self._artifact.size_bytes,
            )

    def finish(self) -> Path:
        """Compare the checksum and move the part into place. Raises StoreFault DOWNLOAD_CORRUPT."""
        self.open().close()  # an artifact of no bytes leaves a file too
        with self._part.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != self._artifact.sha256:
            self._part.unlink()
            raise StoreFault(
                "DOWNLOAD_CORRUPT",
                f"{self._artifact.name} arrived damaged: its checksum differs; try again",
                expected_sha256=self._artifact.sha256,
                received_sha256=sha256,
                size_bytes=self._artifact.size_bytes,
            )
        return self._part.replace(self._target)
