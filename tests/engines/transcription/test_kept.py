from pathlib import Path

import pytest

from coscheduler.engines.transcription.kept import FILENAME, Kept, Progress
from coscheduler.engines.transcription.speech import Chunk

IDENTITY = {"model": ["whisper", 5], "parameters": {"beam_size": 5}}
PROGRESS = Progress(
    (Chunk(0.1 + 0.2, 3.75, 3.0), Chunk(5.0, 7.5, 2.5)),
    "en",
    ({"text": " Zoë", "start": 0.3, "end": 3.75, "avg_logprob": -1.0 / 3.0},),
)


def test_what_is_kept_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    Kept(tmp_path, IDENTITY).write(PROGRESS)
    assert Kept(tmp_path, IDENTITY).read() == PROGRESS
    assert [path.name for path in tmp_path.iterdir()] == [FILENAME]


def test_another_identity_begins_anew(tmp_path: Path) -> None:
    Kept(tmp_path, IDENTITY).write(PROGRESS)
    assert Kept(tmp_path, {**IDENTITY, "parameters": {"beam_size": 4}}).read() is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"key": "x"}'])
def test_a_damaged_file_counts_for_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / FILENAME).write_text(text)
    assert Kept(tmp_path, IDENTITY).read() is None


def test_a_cut_file_with_the_right_key_counts_for_nothing(tmp_path: Path) -> None:
    kept = Kept(tmp_path, IDENTITY)
    kept.write(PROGRESS)
    text = (tmp_path / FILENAME).read_text()
    (tmp_path / FILENAME).write_text(text.replace('"language"', '"languages"'))
    assert kept.read() is None


def test_nothing_is_kept_without_a_folder() -> None:
    kept = Kept(None, IDENTITY)
    kept.write(PROGRESS)
    assert kept.read() is None
