"""Points on the way that outlive the process: named arrays in files that are whole or not there.

A file is the arrays' bytes, a JSON footer (key, facts, shapes, sha256 of the bytes), the footer's
length and a magic word at the very end. It is written beside its name, synced and renamed. A file
of another key, a shorter one or one whose checksum differs is as good as none. Bytes go from and to
mapped arrays in chunks, with a pause after each: no private memory, no long slice.
"""

import hashlib
import json
import logging
import math
import os
import struct
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from coscheduler.engines.streaming.host_arrays import HostArrays

log = logging.getLogger(__name__)

MAGIC = b"COSPNT01"
TAIL = struct.Struct("<Q8s")  # the footer's length, the magic word
CHUNK_BYTES = 8 * 1024 * 1024
INTERVAL_MS = 10_000

Pauses = Generator[None, None, None]


@dataclass(frozen=True)
class Point:
    """What was saved: facts (JSON types) and float32 arrays in mapped files of their own."""

    facts: Mapping[str, Any]
    arrays: Mapping[str, Tensor]


class ResumePoints:
    """Points of one task in `folder`; without a folder nothing is kept and nothing is found.

    `key` names everything that the arrays depend on. A disk that does not take a point costs the
    point, never the task: it is logged and not tried again.
    """

    def __init__(
        self,
        folder: Path | None,
        key: str,
        interval_ms: int = INTERVAL_MS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._key = folder, key
        self._interval_s, self._clock = interval_ms / 1000, clock
        self._last_s = clock()

    @property
    def is_kept(self) -> bool:
        """Whether points are kept at all."""
        return self._folder is not None

    def is_due(self) -> bool:
        """Whether the interval has passed since the start or the last `mark`."""
        return self._folder is not None and self._clock() - self._last_s >= self._interval_s

    def mark(self) -> None:
        """Begin a new interval."""
        self._last_s = self._clock()

    def save(self, name: str, facts: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> Pauses:
        """Put facts and float32 arrays under `name`, in place of what was there."""
        if self._folder is None:
            return
        partial = self._folder / f"{name}.partial"
        try:
            with partial.open("wb") as file:
                yield from self._write(file, facts, arrays)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._folder / f"{name}.point")
        except OSError as error:
            log.warning("no resume point can be kept in %s: %s", self._folder, error)
            partial.unlink(missing_ok=True)
            self._folder = None

    def load(self, name: str, host: HostArrays) -> Generator[None, None, Point | None]:
        """What was saved under `name` for this key; None where there is nothing whole.

        Raises EngineFault DISK_FULL when `host` has no room for the arrays.
        """
        if self._folder is None:
            return None
        try:
            with (self._folder / f"{name}.point").open("rb") as file:
                footer = _read_footer(file)
                if footer is None or footer["key"] != self._key:
                    return None
                return (yield from _read(file, footer, host))
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("the resume point %s cannot be read: %s", name, error)
            return None

    def _write(
        self, file: BinaryIO, facts: Mapping[str, Any], arrays: Mapping[str, Tensor]
    ) -> Pauses:
        digest = hashlib.sha256()
        for tensor in arrays.values():
            for chunk in _chunks(tensor):
                digest.update(chunk)
                file.write(chunk)
                yield
        footer = json.dumps(
            {
                "key": self._key,
                "facts": dict(facts),
                "arrays": [[name, list(tensor.shape)] for name, tensor in arrays.items()],
                "sha256": digest.hexdigest(),
            }
        ).encode()
        file.write(footer + TAIL.pack(len(footer), MAGIC))


def key_of(parts: Mapping[str, object]) -> str:
    """A key from plain values, whatever their order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _chunks(tensor: Tensor) -> Generator[memoryview, None, None]:
    raw = memoryview(tensor.view(-1).numpy().view(np.uint8).data)
    for start in range(0, len(raw), CHUNK_BYTES):
        yield raw[start : start + CHUNK_BYTES]


def _read_footer(file: BinaryIO) -> dict[str, Any] | None:
    size = file.seek(0, os.SEEK_END)
    if size < TAIL.size:
        return None
    file.seek(size - TAIL.size)
    length, magic = TAIL.unpack(file.read(TAIL.size))
    if magic != MAGIC or length > size - TAIL.size:
        return None
    file.seek(size - TAIL.size - length)
    try:
        footer = json.loads(file.read(length))
    except ValueError:
        return None
    bytes_ = sum(4 * math.prod(shape) for _, shape in footer["arrays"])
    return footer if bytes_ == size - TAIL.size - length else None


def _read(
    file: BinaryIO, footer: Mapping[str, Any], host: HostArrays
) -> Generator[None, None, Point | None]:
    file.seek(0)
    digest, arrays = hashlib.sha256(), {}
    for name, shape in footer["arrays"]:
        arrays[name] = host.zeros(*shape)
        for chunk in _chunks(arrays[name]):
            file.readinto(chunk)  # type: ignore[attr-defined]
            digest.update(chunk)
            yield
    if digest.hexdigest() != footer["sha256"]:
        log.warning("a resume point is damaged: starting over")
        return None
    return Point(footer["facts"], arrays)
