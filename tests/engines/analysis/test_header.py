"""The GGUF header: what is read, and every way for a file to be damaged."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coscheduler.engines.analysis import footprint, header
from coscheduler.errors import EngineFault


def reason_of(path: Path) -> str:
    with pytest.raises(EngineFault) as caught:
        header.read(path)
    return caught.value.reason


def test_agrees_with_the_reference_reader(tiny_model: Path) -> None:
    ours, theirs = header.read(tiny_model), gguf.GGUFReader(tiny_model)
    assert {tensor.name: tensor.bytes for tensor in ours.tensors} == {
        tensor.name: tensor.n_bytes for tensor in theirs.tensors
    }
    assert ours.architecture == "llama"
    for key in ("llama.context_length", "llama.attention.head_count_kv", "tokenizer.ggml.model"):
        assert ours.values[key] == theirs.fields[key].contents()
    tokens = theirs.fields["tokenizer.ggml.tokens"].contents()
    assert ours.array_lengths["tokenizer.ggml.tokens"] == len(tokens)
    assert "tokenizer.ggml.tokens" not in ours.values  # stepped over


def test_missing_file(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "none.gguf") == "MODEL_MISSING"


@pytest.mark.parametrize(
    "content",
    [b"", b"GG", b"GGUF", b"RIFF" + bytes(60), b"GGUF" + struct.pack("<I", 9) + bytes(60)],
)
def test_not_a_gguf_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert reason_of(path) == "MODEL_CORRUPT"


def test_truncated_file_names_both_sizes(tiny_model: Path, tmp_path: Path) -> None:
    whole = tiny_model.read_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(whole[:-64])
    with pytest.raises(EngineFault) as caught:
        header.read(path)
    assert caught.value.reason == "MODEL_CORRUPT"
    assert caught.value.numbers["size_bytes"] == str(len(whole) - 64)
    assert int(caught.value.numbers["expected_bytes"]) > len(whole) - 64


def test_every_truncation_of_the_header_is_found(tiny_model: Path, tmp_path: Path) -> None:
    whole = tiny_model.read_bytes()
    path = tmp_path / "model.gguf"
    for size in [*range(1, 64), *range(64, len(whole), 1009)]:
        path.write_bytes(whole[:size])
        assert reason_of(path) == "MODEL_CORRUPT"


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(4, 30_000), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_bytes_are_a_clear_fault_or_harmless(
    tiny_model: Path, tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(tiny_model.read_bytes())
    for offset, byte in changes:
        data[offset] = byte
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    try:
        footprint.of(header.read(path))
    except EngineFault as fault:
        assert fault.reason == "MODEL_CORRUPT"


def write_split(folder: Path) -> Path:
    writer = gguf.GGUFWriter(folder / "big.gguf", "llama", split_max_tensors=2)
    writer.add_block_count(1)
    for number in range(4):
        writer.add_tensor(f"blk.0.part{number}", np.zeros(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "big-00001-of-00002.gguf"


def test_split_model_is_read_as_one(tmp_path: Path) -> None:
    model = header.read(write_split(tmp_path))
    assert sorted(tensor.name for tensor in model.tensors) == [
        f"blk.0.part{number}" for number in range(4)
    ]


def test_split_model_with_a_part_missing(tmp_path: Path) -> None:
    first = write_split(tmp_path)
    (tmp_path / "big-00002-of-00002.gguf").unlink()
    assert reason_of(first) == "MODEL_MISSING"


def test_no_tensors_and_absurd_layer_counts(tmp_path: Path) -> None:
    for layers in (0, 1_000_000):
        writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
        writer.add_block_count(layers)
        writer.add_tensor("token_embd.weight", np.zeros(32, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert reason_of(tmp_path / "odd.gguf") == "MODEL_CORRUPT"
