"""Model folders read by their headers alone: no weights, no torch, no CTranslate2.

CTranslate2's model.bin is a list of variables, each a name, a shape, a type and its data, and then
a list of aliases. Names like `decoder/layer_3/attention/linear_0/weight` say what they are.
"""

import json
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from coscheduler.engines import hub
from coscheduler.errors import EngineFault

BINARY_VERSION_MAX = 6
VARIABLES_MAX = 100_000
NAME_BYTES_MAX = 512
SMALL_DIARIZER = "coscheduler.engines.transcription.voices.VoiceClustering"
CONFIG_BYTES_MAX = 64 * 1024
HEADER_BYTES_MAX = 64 * 1024 * 1024
_EMBEDDINGS, _PROJECTION = "decoder/embeddings/weight", "decoder/projection/weight"
_ELEMENT_BYTES = (4, 1, 2, 4, 2, 2)  # float32 int8 int16 int32 float16 bfloat16
_INTEGER_TYPE_IDS = (1, 2, 3)
_LAYER = re.compile(r"(encoder|decoder)/layer_(\d+)/")


@dataclass(frozen=True)
class Variable:
    """One entry of model.bin."""

    name: str
    shape: tuple[int, ...]
    stored_bytes: int
    value: int = 0  # of an integer scalar; 0 for everything else

    @property
    def element_count(self) -> int:
        """Product of the shape; 1 for a scalar."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class WhisperModel:
    """What the size of a Whisper in memory depends on."""

    name: str
    stored_bytes: int
    matrix_count: int  # elements of the matrices that an integer type quantises
    matrix_row_count: int  # each row then has a float32 scale
    other_count: int  # convolutions, positions, norms, biases
    hidden_dim: int
    head_count: int
    encoder_layer_count: int
    decoder_layer_count: int
    vocabulary_count: int
    mel_count: int
    audio_position_count: int


@dataclass(frozen=True)
class AlignerModel:
    """What the size of a wav2vec2 aligner in memory depends on."""

    name: str
    parameter_bytes: int  # float32
    conv_dims: tuple[int, ...]
    conv_strides: tuple[int, ...]
    has_layer_norms: bool  # after every convolution; otherwise one group norm after the first


def read_whisper(folder: Path) -> WhisperModel:
    """Read a CTranslate2 Whisper folder. Raises EngineFault MODEL_MISSING or MODEL_CORRUPT."""
    read_json(folder / "config.json")
    if "model" not in read_json(folder / "tokenizer.json"):
        raise corrupt(folder / "tokenizer.json", "it describes no tokenizer")
    if not any((folder / f"vocabulary.{kind}").is_file() for kind in ("json", "txt")):
        raise missing(folder / "vocabulary.json")
    path = folder / "model.bin"
    variables = read_variables(path)
    try:
        return _whisper(hub.title(folder), variables)
    except KeyError as error:
        raise corrupt(path, f"it has no {error.args[0]}") from None


def read_aligner(folder: Path) -> AlignerModel:
    """Read a Hugging Face wav2vec2 folder. Raises EngineFault MODEL_MISSING or MODEL_CORRUPT."""
    for name in ("preprocessor_config.json", "vocab.json"):
        read_json(folder / name)
    path = folder / "config.json"
    config = read_json(path)
    try:
        return AlignerModel(
            name=hub.title(folder),
            parameter_bytes=_parameter_bytes(folder),
            conv_dims=tuple(config["conv_dim"]),
            conv_strides=tuple(config["conv_stride"]),
            has_layer_norms=config["feat_extract_norm"] == "layer",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise corrupt(path, f"a field is missing or wrong: {error}") from None


def diarizer_bytes(folder: Path) -> int:
    """Size of the weights of a pyannote pipeline folder. Raises EngineFault MODEL_MISSING."""
    if not (folder / "config.yaml").is_file():
        raise missing(folder / "config.yaml")
    return sum(path.stat().st_size for path in weight_files(folder))


def is_small_diarizer(folder: Path | None) -> bool:
    """Is it the pipeline of this package, `voices.VoiceClustering`? Its config names the class."""
    config = folder / "config.yaml" if folder else None
    if config is None or not config.is_file():
        return False
    with config.open("rb") as file:
        return SMALL_DIARIZER.encode() in file.read(CONFIG_BYTES_MAX)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files of a model folder that hold weights, also below it, in order."""
    kinds = ("*.bin", "*.ckpt", "*.npz", "*.safetensors")
    return tuple(sorted(path for kind in kinds for path in folder.rglob(kind)))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises EngineFault MODEL_MISSING or MODEL_CORRUPT."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise missing(path) from None
    except ValueError as error:
        raise corrupt(path, f"it is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise corrupt(path, "it is not a JSON object")
    return value


def read_variables(path: Path) -> dict[str, Variable]:
    """The variables of a model.bin by name; data is skipped, but must be there."""
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            variables = {entry.name: entry for entry in _walk(file, size_bytes)}
    except OSError:
        raise missing(path) from None
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise corrupt(path, str(error)) from None
    return variables


def missing(path: Path) -> EngineFault:
    """The error for a file that is not there."""
    return EngineFault("MODEL_MISSING", f"there is no model file {path}", path=path)


def corrupt(path: Path, why: str) -> EngineFault:
    """The error for a file that is not what it should be."""
    return EngineFault("MODEL_CORRUPT", f"{path} is damaged: {why}", path=path)


def _walk(file: BinaryIO, size_bytes: int) -> Iterator[Variable]:
    (version,) = struct.unpack("<I", file.read(4))
    if not 1 <= version <= BINARY_VERSION_MAX:
        raise ValueError(f"it does not begin like a CTranslate2 model (version {version})")
    specification = _string(file)
    if specification != "WhisperSpec":
        raise ValueError(f"it holds a {specification!r}, not a Whisper model")
    _, count = struct.unpack("<II", file.read(8))
    if count > VARIABLES_MAX:
        raise ValueError(f"it claims {count} variables")
    for _ in range(count):
        yield _variable(file, size_bytes)


def _is_matrix(variable: Variable) -> bool:
    """Linear layers and embeddings: what the integer compute types quantise row by row."""
    return len(variable.shape) == 2 and variable.name.endswith("/weight")


def _variable(file: BinaryIO, size_bytes: int) -> Variable:
    name = _string(file)
    (rank,) = struct.unpack("<B", file.read(1))
    shape = struct.unpack(f"<{rank}I", file.read(4 * rank))
    type_id, stored_bytes = struct.unpack("<BI", file.read(5))
    start = file.tell()
    if type_id >= len(_ELEMENT_BYTES):
        raise ValueError(f"{name} has an unknown type {type_id}")
    if stored_bytes != math.prod(shape) * _ELEMENT_BYTES[type_id]:
        raise ValueError(f"{name} has {stored_bytes} bytes, which its shape {shape} does not have")
    if start + stored_bytes > size_bytes:
        raise ValueError(f"it ends after {size_bytes} bytes, within {name}")
    is_integer_scalar = rank == 0 and type_id in _INTEGER_TYPE_IDS
    value = int.from_bytes(file.read(stored_bytes), "little") if is_integer_scalar else 0
    file.seek(start + stored_bytes)
    return Variable(name, shape, stored_bytes, value)


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<H", file.read(2))
    if not 1 <= length <= NAME_BYTES_MAX:
        raise ValueError(f"it has a name of {length} bytes")
    return file.read(length)[:-1].decode("utf-8")


def _whisper(name: str, variables: dict[str, Variable]) -> WhisperModel:
    matrices = [entry for entry in variables.values() if _is_matrix(entry)]
    known = {name for entry in matrices for name in (entry.name, f"{entry.name}_scale")}
    others = [entry for entry in variables.values() if entry.name not in known]
    embeddings = variables.get(_EMBEDDINGS) or variables[_PROJECTION]  # one is the other's alias
    vocabulary_count, hidden_dim = embeddings.shape
    layers = {match.groups() for entry in variables if (match := _LAYER.match(entry))}
    return WhisperModel(
        name=name,
        stored_bytes=sum(entry.stored_bytes for entry in variables.values()),
        matrix_count=sum(entry.element_count for entry in matrices),
        matrix_row_count=sum(entry.shape[0] for entry in matrices),
        other_count=sum(entry.element_count for entry in others),
        hidden_dim=hidden_dim,
        head_count=variables["encoder/num_heads"].value,
        encoder_layer_count=sum(part == "encoder" for part, _ in layers),
        decoder_layer_count=sum(part == "decoder" for part, _ in layers),
        vocabulary_count=vocabulary_count,
        mel_count=variables["encoder/conv1/weight"].shape[1],
        audio_position_count=variables["encoder/position_encodings/encodings"].shape[0],
    )


def _parameter_bytes(folder: Path) -> int:
    """Bytes of the parameters as float32, from the header of the safetensors file.

    An older `pytorch_model.bin` has no header that is safe to read: its size stands for it.
    """
    path = folder / "model.safetensors"
    if not path.is_file() and (folder / "pytorch_model.bin").is_file():
        return (folder / "pytorch_model.bin").stat().st_size
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(HEADER_BYTES_MAX, size_bytes - 8):
                raise corrupt(path, f"its header claims {length} bytes")
            header = json.loads(file.read(length))
    except OSError:
        raise missing(path) from None
    except (struct.error, ValueError) as error:
        raise corrupt(path, f"its header cannot be read: {error}") from None
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    data_bytes: int = max((entry["data_offsets"][1] for entry in tensors), default=0)
    if 8 + length + data_bytes > size_bytes:
        raise corrupt(path, f"it ends after {size_bytes} bytes, within its tensors")
    element_count: int = sum(math.prod(entry["shape"]) for entry in tensors)
    return 4 * element_count
