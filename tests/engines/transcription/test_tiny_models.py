"""The writers of the tiny models: the same bytes every time, in the formats of real ones."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from coscheduler.demo import tiny_aligner, tiny_whisper


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("write", "name", "weights"),
    [(tiny_whisper.write, "whisper", "model.bin"),
     (tiny_aligner.write, "aligner", "model.safetensors")],
)  # fmt: skip
def test_the_seed_decides_every_byte(
    models: Path, tmp_path: Path, write: Callable[..., None], name: str, weights: str
) -> None:
    write(tmp_path / "again")
    assert digests(tmp_path / "again") == digests(models / name)
    write(tmp_path / "other", seed=1)
    assert digests(tmp_path / "other")[weights] != digests(models / name)[weights]


def test_the_whisper_folder_has_the_files_that_faster_whisper_reads(models: Path) -> None:
    assert set(digests(models / "whisper")) == {
        "config.json", "model.bin", "preprocessor_config.json", "tokenizer.json", "vocabulary.json",
    }  # fmt: skip


def test_tokenizer_and_vocabulary_number_the_tokens_alike(models: Path) -> None:
    tokenizer = Tokenizer.from_file(str(models / "whisper" / "tokenizer.json"))
    vocabulary = json.loads((models / "whisper" / "vocabulary.json").read_text())
    assert [tokenizer.id_to_token(index) for index in range(len(vocabulary))] == vocabulary
    config = json.loads((models / "whisper" / "config.json").read_text())
    assert len(config["lang_ids"]) == 100
    assert vocabulary[config["lang_ids"][0]] == "<|en|>"
    suppressed = {vocabulary[index] for index in config["suppress_ids"]}
    assert "<|startoftranscript|>" in suppressed
    assert "<|endoftext|>" not in suppressed
    text = " the report - by friday"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
