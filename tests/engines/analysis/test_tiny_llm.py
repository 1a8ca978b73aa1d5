"""The demonstration model: deterministic, small, and quick to analyse with."""

import hashlib
from pathlib import Path

import pytest

from coscheduler.demo import tiny_llm
from coscheduler.engines.analysis import footprint, header

from .conftest import Runner


def digest(path: Path, seed: int) -> str:
    tiny_llm.write(path, seed)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again = digest(tmp_path / "a.gguf", 7), digest(tmp_path / "b.gguf", 7)
    assert first == again
    assert digest(tmp_path / "c.gguf", 8) != first


def test_it_is_small_and_reads_a_long_transcript(tiny_model: Path) -> None:
    assert tiny_model.stat().st_size < 1_000_000
    assert footprint.of(header.read(tiny_model)).n_ctx_train >= 8192


@pytest.mark.parametrize("parameters", [{"template": "summary"}, {"template": "actions"}])
def test_half_a_minute_of_noise_for_speech_is_analysed(
    runner: Runner, parameters: dict[str, str]
) -> None:
    # a Whisper with random weights writes up to 448 tokens of any bytes for each window
    noise = "".join(chr(33 + 37 * index % 900) for index in range(1800))
    document = runner.answer(parameters, {"language": "en", "segments": [{"text": noise}]})
    assert document["tokens"]["prompt"] < 8192 - 512
    assert document["result"]
