"""Prepared files: a checkpoint cast, folded and laid out once, so that loading only copies bytes.

Layout: 16 bytes (magic, length of the header), a JSON header, then the segments. Every segment
starts at a page boundary and every tensor at a multiple of 64 bytes, little endian, C order. The
file is written beside its final name under a lock, synced and renamed: whoever is killed half way
leaves a `.partial` file that the next writer overwrites; two processes never write the same one.
"""

import fcntl
import json
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from coscheduler.engines.streaming.segments import SegmentEntry, TensorEntry, lay_out
from coscheduler.errors import EngineFault

MAGIC = b"COSPREP1"
PREFIX_BYTES = 16
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8,
}  # fmt: skip

OnBytes = Callable[[int, int], None]  # (written, total)


@dataclass(frozen=True)
class TensorPlan:
    """A tensor to come. `parts` yields float tensors whose rows, one after the other, make it up.

    Yielding in parts keeps the private memory at one part, however large the whole is.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    parts: Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class SegmentPlan:
    """A run of tensors that is loaded and evicted together."""

    name: str
    tensors: tuple[TensorPlan, ...]


class PreparedFile:
    """A prepared file, mapped read-only in effect (a private mapping that nobody writes to)."""

    def __init__(self, path: Path, segments: tuple[SegmentEntry, ...], mapped: mmap.mmap) -> None:
        self.path = path
        self.segments: Mapping[str, SegmentEntry] = {entry.name: entry for entry in segments}
        self._mapped = mapped

    @classmethod
    def open(cls, path: Path, key: str) -> "PreparedFile | None":
        """The file if it is there, whole, and made for `key`; else None (it must be made anew)."""
        try:
            with path.open("rb") as file:
                header = _read_header(file)
                size = os.fstat(file.fileno()).st_size
                if header is None or header["key"] != key or header["file_bytes"] != size:
                    return None
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            return None
        return cls(path, _segments_from(header), mapped)

    def raw(self, name: str) -> memoryview:
        """The mapped bytes of a segment, uint8 [bytes]. KeyError for an unknown name."""
        entry = self.segments[name]
        return memoryview(self._mapped)[entry.offset : entry.offset + entry.bytes]


def prepare(
    path: Path, key: str, plans: Sequence[SegmentPlan], source: Path, on_bytes: OnBytes
) -> PreparedFile:
    """Open the prepared file; where it is missing, damaged or of another checkpoint, make it first.

    `key` identifies content and layout. A file just made replaces those of the same suffix that an
    earlier content of `source` left in the folder. Raises EngineFault DISK_FULL or
    PREPARED_UNWRITABLE, and whatever the plans' `parts` raise; then no file is left under `path`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            present = PreparedFile.open(path, key)
            if present is not None:
                return present
            _write_beside(path, key, plans, source, on_bytes)
            _drop_outdated(path, source)
    except OSError as error:
        raise EngineFault(
            "PREPARED_UNWRITABLE",
            f"cannot write the prepared file {path}: {error.strerror or error}",
            file=path,
        ) from error
    made = PreparedFile.open(path, key)
    if made is None:
        raise EngineFault("PREPARED_UNWRITABLE", f"{path} changed while it was read", file=path)
    return made


def _write_beside(
    path: Path, key: str, plans: Sequence[SegmentPlan], source: Path, on_bytes: OnBytes
) -> None:
    header, segments = _make_header(key, plans, source)
    total = _file_bytes(segments)
    _check_disk(path.parent, total)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            file.write(struct.pack("<8sQ", MAGIC, len(header)) + header)
            _write_segments(file, plans, segments, total, on_bytes)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _drop_outdated(path: Path, source: Path) -> None:
    """Processes that have an outdated file mapped keep it until they let go."""
    ending = "".join(path.suffixes)
    for other in path.parent.glob(f"*{ending}"):
        with other.open("rb") as file:
            header = _read_header(file)
        if other != path and header is not None and header["source"] == str(source):
            other.unlink(missing_ok=True)


def _write_segments(
    file: BinaryIO,
    plans: Sequence[SegmentPlan],
    segments: tuple[SegmentEntry, ...],
    total: int,
    on_bytes: OnBytes,
) -> None:
    for plan, segment in zip(plans, segments, strict=True):
        for tensor, entry in zip(plan.tensors, segment.tensors, strict=True):
            file.seek(segment.offset + entry.offset)
            written = sum(_write_part(file, part, entry) for part in tensor.parts())
            if written != entry.bytes:
                raise EngineFault(
                    "MODEL_CORRUPT",
                    f"{entry.name}: {written} bytes where {entry.bytes} were planned",
                    key=entry.name,
                )
            on_bytes(file.tell(), total)
    file.truncate(total)


def _write_part(file: BinaryIO, part: Tensor, entry: TensorEntry) -> int:
    flat = part.detach().to(DTYPES[entry.dtype]).contiguous().view(-1)
    if not bool(torch.isfinite(flat.sum(dtype=torch.float32))):
        raise EngineFault("MODEL_CORRUPT", f"{entry.name} is not finite", key=entry.name)
    return file.write(flat.view(torch.uint8).numpy().data)


def _make_header(
    key: str, plans: Sequence[SegmentPlan], source: Path
) -> tuple[bytes, tuple[SegmentEntry, ...]]:
    # The header holds absolute offsets and its length decides where they start: reserve a bound.
    room = PREFIX_BYTES + 1024 + sum(256 + 64 * len(p.tensors) * 4 for p in plans)
    segments = lay_out(plans, room)
    document = {
        "key": key,
        "source": str(source),
        "file_bytes": _file_bytes(segments),
        "segments": [
            {
                "name": segment.name,
                "offset": segment.offset,
                "bytes": segment.bytes,
                "tensors": [[t.name, list(t.shape), t.dtype, t.offset] for t in segment.tensors],
            }
            for segment in segments
        ],
    }
    header = json.dumps(document, separators=(",", ":")).encode()
    if PREFIX_BYTES + len(header) > segments[0].offset:
        raise ValueError(f"a header of {len(header)} bytes does not fit before the first segment")
    return header, segments


def _read_header(file: BinaryIO) -> dict[str, Any] | None:
    prefix = file.read(PREFIX_BYTES)
    if len(prefix) < PREFIX_BYTES:
        return None
    magic, length = struct.unpack("<8sQ", prefix)
    if magic != MAGIC or length > os.fstat(file.fileno()).st_size:
        return None
    try:
        header = json.loads(file.read(length))
    except ValueError:
        return None
    return header if isinstance(header, dict) else None


def _segments_from(header: dict[str, Any]) -> tuple[SegmentEntry, ...]:
    return tuple(
        SegmentEntry(
            segment["name"],
            segment["offset"],
            segment["bytes"],
            tuple(TensorEntry(n, tuple(s), d, o) for n, s, d, o in segment["tensors"]),
        )
        for segment in header["segments"]
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel drops it when its holder dies."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_disk(folder: Path, needed: int) -> None:
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if needed > free:
        raise EngineFault(
            "DISK_FULL",
            f"the prepared file needs {needed} bytes in {folder}, {free} are free",
            required_bytes=needed,
            available_bytes=free,
        )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file_bytes(segments: tuple[SegmentEntry, ...]) -> int:
    return segments[-1].offset + segments[-1].bytes
