"""Reading transcripts."""

import json
from pathlib import Path
from typing import Any

import pytest

from coscheduler.engines.analysis import transcript
from coscheduler.errors import InvalidInput

from .conftest import TALK


def read(tmp_path: Path, content: Any) -> transcript.Transcript:
    path = tmp_path / "transcript"
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(data)
    return transcript.read(path)


def test_segments_become_lines_with_their_speakers(tmp_path: Path) -> None:
    talk = read(tmp_path, TALK)
    assert talk.language == "en"
    assert talk.text == "SPEAKER_00: We ship on Friday.\nSPEAKER_01: I will write the report."


def test_segments_without_speaker_or_text(tmp_path: Path) -> None:
    talk = read(tmp_path, {"segments": [{"text": " a \n b "}, {"text": "  "}, {"text": "c"}]})
    assert talk.text == "a b\nc"
    assert talk.language == ""


def test_plain_text_is_one_turn_for_each_line(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeffHallo Jürgen.\n\n  Ja?\n".encode()).text == "Hallo Jürgen.\nJa?"


def test_empty_transcript(tmp_path: Path) -> None:
    assert read(tmp_path, {"segments": []}).turns == ()
    assert read(tmp_path, b"").turns == ()


@pytest.mark.parametrize(
    "content",
    [
        b'{"segments": [',
        {"text": "no segments"},
        {"segments": "none"},
        {"segments": [{"start": 0}]},
        {"segments": ["text"]},
        b"\xff\xfe\x00",
    ],
)
def test_what_is_not_a_transcript_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path, content)
    assert caught.value.reason == "TRANSCRIPT_INVALID"


def test_oversized_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcript, "BYTES_MAX", 10)
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path, b"eleven bytes")
    assert caught.value.reason == "TRANSCRIPT_TOO_LARGE"
    assert caught.value.numbers == {"size_bytes": "12", "bytes_max": "10"}
