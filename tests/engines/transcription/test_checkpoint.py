import json
import shutil
from collections.abc import Callable
from pathlib import Path

import ctranslate2
import numpy as np
import pytest

from coscheduler.demo import tiny_whisper
from coscheduler.engines.transcription import checkpoint
from coscheduler.errors import EngineFault


@pytest.fixture
def whisper(models: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(models / "whisper", tmp_path / "whisper")


@pytest.fixture
def aligner(models: Path, tmp_path: Path) -> Path:
    return shutil.copytree(models / "aligner", tmp_path / "aligner")


def fault(read: Callable[[Path], object], folder: Path) -> EngineFault:
    with pytest.raises(EngineFault) as caught:
        read(folder)
    return caught.value


def test_the_shape_of_a_whisper_is_read_from_its_header(models: Path) -> None:
    model = checkpoint.read_whisper(models / "whisper")
    assert model.hidden_dim == tiny_whisper.HIDDEN_DIM
    assert model.head_count == tiny_whisper.HEAD_COUNT
    assert model.encoder_layer_count == tiny_whisper.ENCODER_LAYER_COUNT
    assert model.decoder_layer_count == tiny_whisper.DECODER_LAYER_COUNT
    assert model.mel_count == tiny_whisper.MEL_COUNT
    assert model.audio_position_count == 1500
    vocabulary = json.loads((models / "whisper" / "vocabulary.json").read_text())
    assert model.vocabulary_count == len(vocabulary)
    file_bytes = (models / "whisper" / "model.bin").stat().st_size
    assert 0 < file_bytes - model.stored_bytes < 20_000
    assert 4 * (model.matrix_count + model.other_count) == pytest.approx(
        model.stored_bytes, rel=1e-3
    )


def test_a_folder_that_was_saved_quantised_has_the_same_elements(
    models: Path, tmp_path: Path
) -> None:
    tokens = json.loads((models / "whisper" / "vocabulary.json").read_text())
    spec = tiny_whisper._spec(tokens, tokens.index("") + 1, np.random.default_rng(0))
    spec.register_vocabulary(tokens)
    spec.validate()
    spec.optimize(quantization="int8")
    shutil.copytree(models / "whisper", tmp_path / "int8")
    spec.save(str(tmp_path / "int8"))
    plain = checkpoint.read_whisper(models / "whisper")
    quantised = checkpoint.read_whisper(tmp_path / "int8")
    assert quantised.matrix_count == plain.matrix_count
    assert quantised.matrix_row_count == plain.matrix_row_count
    assert quantised.stored_bytes < plain.stored_bytes
    loaded = ctranslate2.models.Whisper(str(tmp_path / "int8"), intra_threads=1)
    assert loaded.is_multilingual


@pytest.mark.parametrize("name", ["model.bin", "config.json", "tokenizer.json", "vocabulary.json"])
def test_a_missing_file_is_named(whisper: Path, name: str) -> None:
    (whisper / name).unlink()
    error = fault(checkpoint.read_whisper, whisper)
    assert error.reason == "MODEL_MISSING"
    assert error.numbers == {"path": str(whisper / name)}


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.999])
def test_a_truncated_model_is_corrupt(whisper: Path, share: float) -> None:
    whole = (whisper / "model.bin").read_bytes()
    (whisper / "model.bin").write_bytes(whole[: int(len(whole) * share)])
    error = fault(checkpoint.read_whisper, whisper)
    assert error.reason == "MODEL_CORRUPT"
    assert error.numbers == {"path": str(whisper / "model.bin")}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"This is not a model at all." * 100, "does not begin like"),
        (b"\x06\x00\x00\x00\x0e\x00TransformerSpe\x00" + bytes(100), "not a Whisper model"),
        (b"\x06\x00\x00\x00\x0c\x00WhisperSpec\x00\x03\x00\x00\x00" + b"\xff" * 50, "claims"),
    ],
)
def test_another_file_under_the_name_is_corrupt(whisper: Path, content: bytes, why: str) -> None:
    (whisper / "model.bin").write_bytes(content)
    error = fault(checkpoint.read_whisper, whisper)
    assert error.reason == "MODEL_CORRUPT"
    assert why in error.message


@pytest.mark.parametrize(
    ("name", "text"), [("config.json", "{"), ("config.json", "[]"), ("tokenizer.json", "{}")]
)
def test_settings_that_are_not_what_they_should_be_are_corrupt(
    whisper: Path, name: str, text: str
) -> None:
    (whisper / name).write_text(text)
    error = fault(checkpoint.read_whisper, whisper)
    assert error.reason == "MODEL_CORRUPT"
    assert error.numbers == {"path": str(whisper / name)}


def test_the_size_of_an_aligner_is_read_from_its_header(models: Path) -> None:
    model = checkpoint.read_aligner(models / "aligner")
    file_bytes = (models / "aligner" / "model.safetensors").stat().st_size
    assert 0 < file_bytes - model.parameter_bytes < 20_000
    assert model.conv_dims[0] == 32
    assert model.conv_strides[0] == 5
    assert not model.has_layer_norms


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.json"])
def test_a_missing_file_of_an_aligner_is_named(aligner: Path, name: str) -> None:
    (aligner / name).unlink()
    error = fault(checkpoint.read_aligner, aligner)
    assert error.reason == "MODEL_MISSING"
    assert error.numbers == {"path": str(aligner / name)}


@pytest.mark.parametrize("size", [0, 5, 400, 100_000])
def test_a_truncated_aligner_is_corrupt(aligner: Path, size: int) -> None:
    path = aligner / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert fault(checkpoint.read_aligner, aligner).reason == "MODEL_CORRUPT"


def test_an_aligner_of_another_kind_is_corrupt(aligner: Path) -> None:
    (aligner / "config.json").write_text('{"model_type": "bert"}')
    error = fault(checkpoint.read_aligner, aligner)
    assert error.reason == "MODEL_CORRUPT"
    assert error.numbers == {"path": str(aligner / "config.json")}


def test_a_diarizer_without_its_config_is_missing(tmp_path: Path) -> None:
    error = fault(checkpoint.diarizer_bytes, tmp_path)
    assert error.reason == "MODEL_MISSING"
    assert error.numbers == {"path": str(tmp_path / "config.yaml")}
