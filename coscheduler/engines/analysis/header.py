"""The header of a GGUF file: metadata and the place of every tensor, without reading any weights.

Own parser, for two reasons. It checks every offset against the file's size, so a truncated
download is known before anything is loaded. And it steps over long arrays instead of making an
object of each element: a vocabulary of 131,072 tokens takes 0.2 s (the `gguf` package needs about
10 s).

Layout (little endian): magic, version, tensor count, metadata count; metadata as key, type, value;
tensors as name, dimensions, type, offset; padding to the alignment; tensor data.
"""

import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coscheduler.errors import EngineFault

Value = int | float | bool | str | tuple[int | float | bool, ...]

ARRAY_LENGTH_MAX = 4096  # longer arrays belong to the tokenizer; only their length is kept
KEY_BYTES_MAX = 65_536
STRING, ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class Tensor:
    """One tensor as stored: `bytes` in its own quantised type."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Header:
    """What the footprint needs of a model; `array_lengths` also has arrays stepped over."""

    values: dict[str, Value]
    array_lengths: dict[str, int]
    tensors: tuple[Tensor, ...]

    @property
    def architecture(self) -> str:
        """The prefix of the architecture's own keys ("llama", "qwen3", ...)."""
        return str(self.values.get("general.architecture", ""))

    def integer(self, key: str, default: int) -> int:
        """An integer of the architecture, e.g. `block_count`; `default` where it is absent."""
        value = self.values.get(f"{self.architecture}.{key}", default)
        return value if isinstance(value, int) else default

    def per_layer(self, key: str, layer_count: int, default: int) -> tuple[int, ...]:
        """A value that may be one number for all layers or an array with one for each layer."""
        value = self.values.get(f"{self.architecture}.{key}", default)
        if isinstance(value, tuple):
            padding = (default,) * (layer_count - len(value))
            return tuple(int(entry) for entry in value[:layer_count]) + padding
        return (int(value) if isinstance(value, int) else default,) * layer_count


def read(path: Path) -> Header:
    """Read the header of a model, all parts of it when it is split into several files.

    Raises EngineFault MODEL_MISSING, or MODEL_CORRUPT when the magic is wrong, the header is
    damaged or the file ends before its last tensor.
    """
    first, *others = [_read_one(part) for part in _parts(path)]
    tensors = first.tensors + tuple(tensor for part in others for tensor in part.tensors)
    header = Header(first.values, first.array_lengths, tensors)
    if not header.architecture or not tensors:
        raise _corrupt(path, "it names no architecture or holds no tensors")
    if not 1 <= header.integer("block_count", 0) <= ARRAY_LENGTH_MAX:
        raise _corrupt(path, "its number of layers is absent or absurd")
    return header


def _parts(path: Path) -> Iterator[Path]:
    split = _SPLIT_NAME.fullmatch(path.name)
    if split is None:
        yield path
        return
    for number in range(1, int(split[3]) + 1):
        yield path.with_name(f"{split[1]}-{number:05d}-of-{split[3]}.gguf")


def _read_one(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise _corrupt(path, "it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Parser(path, data).header()
    except OSError as error:
        raise EngineFault(
            "MODEL_MISSING", f"cannot read the model {path}: {error.strerror}", path=path
        ) from None
    except (struct.error, ValueError, UnicodeDecodeError, OverflowError) as error:
        raise _corrupt(path, str(error)) from None


def _corrupt(path: Path, why: str, **numbers: object) -> EngineFault:
    return EngineFault(
        "MODEL_CORRUPT", f"{path} is not a whole GGUF file: {why}", path=path, **numbers
    )


class _Parser:
    """A cursor over the mapped file. ValueError and struct.error mean: damaged."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = 0

    def header(self) -> Header:
        if self.data[:4] != b"GGUF":
            raise _corrupt(self.path, "wrong magic")
        self.at = 4
        version = self.number("I")
        if version not in (2, 3):
            raise _corrupt(self.path, f"version {version} is not known", version=version)
        tensor_count, metadata_count = int(self.number("Q")), int(self.number("Q"))
        values: dict[str, Value] = {}
        lengths: dict[str, int] = {}
        for _ in range(metadata_count):
            self.metadata(values, lengths)
        entries = [self.tensor() for _ in range(tensor_count)]
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"alignment {alignment!r}")
        self.check_size(entries, alignment)
        return Header(values, lengths, tuple(tensor for tensor, _ in entries))

    def number(self, code: str) -> int | float | bool:
        """The next scalar of a struct type."""
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value  # type: ignore[no-any-return]

    def text(self, bytes_max: int) -> str:
        size = int(self.number("Q"))
        if size > bytes_max or self.at + size > len(self.data):
            raise ValueError(f"a text of {size} bytes at offset {self.at}")
        self.at += size
        return self.data[self.at - size : self.at].decode("utf-8")

    def metadata(self, values: dict[str, Value], lengths: dict[str, int]) -> None:
        """One key and its value; a long array leaves its length only."""
        key = self.text(KEY_BYTES_MAX)
        kind = int(self.number("I"))
        if kind == STRING:
            values[key] = self.text(len(self.data))
        elif kind != ARRAY:
            values[key] = self.number(_code(kind))
        else:
            element, count = int(self.number("I")), int(self.number("Q"))
            lengths[key] = count
            if element == STRING:
                self.skip_texts(count)
            elif count > ARRAY_LENGTH_MAX:
                self.skip(count * struct.calcsize(f"<{_code(element)}"))
            else:
                values[key] = tuple(self.number(_code(element)) for _ in range(count))

    def skip_texts(self, count: int) -> None:
        unpack, data, at, end = struct.Struct("<Q").unpack_from, self.data, self.at, len(self.data)
        for _ in range(count):
            at += 8 + unpack(data, at)[0]
            if at > end:
                raise ValueError(f"a list of {count} texts runs past the end")
        self.at = at

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise ValueError("a list runs past the end")

    def tensor(self) -> tuple[Tensor, int]:
        """One tensor and its offset in the data section."""
        name = self.text(KEY_BYTES_MAX)
        dimension_count = int(self.number("I"))
        if dimension_count > 8:
            raise ValueError(f"tensor {name} has {dimension_count} dimensions")
        element_count = 1
        for _ in range(dimension_count):
            element_count *= int(self.number("Q"))
        block, block_bytes = _quantization(int(self.number("I")))
        return Tensor(name, element_count // block * block_bytes), int(self.number("Q"))

    def check_size(self, entries: list[tuple[Tensor, int]], alignment: int) -> None:
        """Compare the end of the last tensor with the file's size."""
        data_start = -(-self.at // alignment) * alignment
        needed = data_start + max((offset + tensor.bytes for tensor, offset in entries), default=0)
        if needed > len(self.data):
            raise _corrupt(
                self.path,
                f"it should have {needed} bytes and has {len(self.data)}",
                expected_bytes=needed,
                size_bytes=len(self.data),
            )


def _code(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"metadata type {kind} is not known")
    return _SCALARS[kind]


def _quantization(kind: int) -> tuple[int, int]:
    """Elements and bytes of a block of a tensor type. Raises ValueError for an unknown type."""
    import gguf  # plans from written sizes do without it

    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
