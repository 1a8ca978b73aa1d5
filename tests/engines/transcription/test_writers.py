from pathlib import Path
from typing import Any

import pytest

from coscheduler import transcripts
from coscheduler.engines.transcription import writers

WORDS = [
    {"word": "We", "start": 0.5, "end": 0.8},
    {"word": "ship.", "start": 0.9, "end": 1.5},
]
ALIGNED = {"text": " We ship.", "start": 0.5, "end": 1.5, "words": WORDS}
UNALIGNED = {"text": " On Friday.", "start": 2.0, "end": 3.0, "words": []}


def written(folder: Path, segments: list[dict[str, Any]], kind: str) -> str:
    writers.write(folder, {"segments": segments, "language": "en"}, [kind])
    return (folder / f"transcript.{kind}").read_text(encoding="utf-8")


@pytest.mark.parametrize("segments", [[ALIGNED, UNALIGNED], [UNALIGNED, ALIGNED]])
def test_a_segment_that_could_not_be_aligned_keeps_its_subtitle(
    tmp_path: Path, segments: list[dict[str, Any]]
) -> None:
    # WhisperX makes subtitles of words alone: there this text would be lost.
    subtitles = written(tmp_path, segments, "srt")
    assert "00:00:00,500 --> 00:00:01,500\nWe ship.\n" in subtitles
    assert "00:00:02,000 --> 00:00:03,000\nOn Friday.\n" in subtitles
    assert UNALIGNED["words"] == []


def test_segments_without_word_times_are_subtitles_of_their_own(tmp_path: Path) -> None:
    plain = {"text": " We ship.", "start": 0.5, "end": 1.5}
    assert written(tmp_path, [plain], "srt") == "1\n00:00:00,500 --> 00:00:01,500\nWe ship.\n\n"


def test_the_json_comes_first_and_once(tmp_path: Path) -> None:
    result = {"segments": [], "language": ""}
    files = writers.write(tmp_path, result, ["txt", "json", "txt"])
    assert [entry.role for entry in files] == ["transcript", "txt"]


def test_text_that_is_not_ascii_is_written_as_it_is(tmp_path: Path) -> None:
    segment = {"text": " Grüße an Zoë", "start": 0.0, "end": 1.0}
    assert "Grüße an Zoë" in written(tmp_path, [segment], "json")


@pytest.mark.parametrize("kind", transcripts.FORMATS)
@pytest.mark.parametrize("named", [True, False])
def test_joined_transcripts_are_written_as_whisperx_writes_them(
    tmp_path: Path, kind: str, named: bool
) -> None:
    speaker = {"speaker": "Zoë"} if named else {}
    later = {
        **ALIGNED,
        "start": 3700.5,
        "end": 3701.5,
        "words": [{"word": "We"}, {"word": "ship."}],
    }
    segments = [{**segment, **speaker} for segment in (ALIGNED, later)]
    theirs = written(tmp_path, segments, kind)
    result = {"segments": segments, "language": "en"}
    path = transcripts.write(tmp_path / "ours", result, [kind])[kind]
    assert path.read_text(encoding="utf-8") == theirs
