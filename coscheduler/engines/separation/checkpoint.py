"""`checkpoint.pt`: a torch zip of float32 tensors, mapped and never read as a whole."""

import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from coscheduler.errors import EngineFault

SAMPLE_COUNT = 64
SAMPLE_BYTES = 64 * 1024
DIRECTORY_BYTES = 1024 * 1024  # the zip's own directory, at the end, holds a CRC of every tensor


class Checkpoint:
    """The tensors of a checkpoint by name, mapped from the file. Taking one checks its shape."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path = path
        self._tensors = tensors

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def shape(self, key: str, expected: tuple[int | None, ...]) -> tuple[int, ...]:
        """The shape of a tensor; None in `expected` stands for any size.

        Raises EngineFault MODEL_CORRUPT with file, key, expected and found shape.
        """
        wanted = "x".join("?" if size is None else str(size) for size in expected)
        tensor = self._tensors.get(key)
        if tensor is None:
            raise EngineFault(
                "MODEL_CORRUPT",
                f"{self.path}: no tensor {key} (expected {wanted})",
                file=self.path, key=key, expected=wanted, found="missing",
            )  # fmt: skip
        found = tuple(tensor.shape)
        matches = len(found) == len(expected) and all(
            want in (None, have) for want, have in zip(expected, found, strict=True)
        )
        if not matches or not tensor.is_floating_point():
            have = "x".join(map(str, found)) or "scalar"
            raise EngineFault(
                "MODEL_CORRUPT",
                f"{self.path}: {key} is {tensor.dtype} {have}, expected float {wanted}",
                file=self.path, key=key, expected=wanted, found=have,
            )  # fmt: skip
        return found

    def tensor(self, key: str) -> Tensor:
        """A tensor, backed by the mapped file; its shape must have been checked before."""
        return self._tensors[key]


def open_checkpoint(path: Path) -> Checkpoint:
    """Map a checkpoint and read its table of tensors, not its data.

    Raises EngineFault MODEL_MISSING, or MODEL_CORRUPT for a truncated zip or foreign objects.
    """
    if not path.is_file():
        raise EngineFault("MODEL_MISSING", f"there is no file {path}", file=path)
    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise EngineFault(
            "MODEL_CORRUPT",
            f"{path} ({path.stat().st_size} bytes) cannot be read as a checkpoint: {reason}",
            file=path, size_bytes=path.stat().st_size,
        ) from None  # fmt: skip
    if not isinstance(loaded, dict) or not loaded:
        raise EngineFault("MODEL_CORRUPT", f"{path} holds no table of tensors", file=path)
    tensors = {key: value for key, value in loaded.items() if isinstance(value, Tensor)}
    return Checkpoint(path, tensors)


def fingerprint(path: Path) -> str:
    """Identity of a checkpoint's content, 32 hex digits. Raises OSError.

    Of size, time of change, the zip directory (it has a checksum of every tensor) and 64 samples.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        digest.update(f"{stat.st_size}:{stat.st_mtime_ns}".encode())
        for index in range(SAMPLE_COUNT):
            file.seek(stat.st_size * index // SAMPLE_COUNT)
            digest.update(file.read(SAMPLE_BYTES))
        file.seek(max(0, stat.st_size - DIRECTORY_BYTES))
        digest.update(file.read(DIRECTORY_BYTES))
    return digest.hexdigest()[:32]
