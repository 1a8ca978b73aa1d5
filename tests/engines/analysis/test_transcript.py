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
    assert talk.text == (
        "[0] SPEAKER_00: We ship on Friday.\n[1] SPEAKER_01: I will write the report."
    )
    assert [(turn.start_ms, turn.end_ms) for turn in talk.turns] == [(0, 4000), (4000, 9500)]


def test_segments_without_speaker_or_text(tmp_path: Path) -> None:
    talk = read(tmp_path, {"segments": [{"text": " a \n b "}, {"text": "  "}, {"text": "c"}]})
    assert talk.text == "[0] a b\n[2] c"  # numbers are those of the file
    assert talk.language == ""
    assert talk.turns[1].start_ms is None


def test_plain_text_is_one_turn_for_each_line(tmp_path: Path) -> None:
    text = read(tmp_path, "\ufeffHallo Jürgen.\n\n  Ja?\n".encode()).text
    assert text == "[0] Hallo Jürgen.\n[1] Ja?"


def test_messages_stand_between_lines_of_dashes(tmp_path: Path) -> None:
    path = tmp_path / "mail"
    path.write_text("From: Ann\nHi!\n\nBye - see you.\n---\n\n-----\nTo: me\nWell.\n")
    talk = transcript.read(path, "message")
    assert [(turn.number, turn.speaker) for turn in talk.turns] == [(0, "Ann"), (1, "")]
    assert talk.turns[0].text == "From: Ann\nHi!\n\nBye - see you."


@pytest.mark.parametrize("start", [float("nan"), float("inf"), "1", None])
def test_times_that_are_none_are_not_known(tmp_path: Path, start: Any) -> None:
    talk = read(tmp_path, {"segments": [{"text": "a", "start": start}]})
    assert talk.turns[0].start_ms is None


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
