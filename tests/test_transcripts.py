"""Transcripts of several voices joined into one: nothing lost, everything in time."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coscheduler import transcripts
from coscheduler.errors import InvalidInput
from coscheduler.transcripts import Part, join


def said(start: float, end: float, text: str, *, timed: bool = True) -> dict[str, Any]:
    """A segment whose words share its time evenly."""
    words: list[dict[str, Any]] = [{"word": word} for word in text.split()]
    step = (end - start) / max(1, len(words))
    for place, word in enumerate(words if timed else ()):
        word |= {"start": start + place * step, "end": start + (place + 1) * step, "score": 0.9}
    return {"start": start, "end": end, "text": f" {text}", "words": words}


def voice(speaker: str, *segments: dict[str, Any], language: str = "en") -> Part:
    return Part(speaker, {"segments": list(segments), "language": language})


ANNA = voice("Anna", said(0.0, 2.0, "We ship on Friday."), said(6.0, 7.0, "Yes."))
BERT = voice("Bert", said(1.0, 3.0, "Do we really?"), said(4.0, 5.0, "All of it?"))


def test_what_is_said_stands_in_the_order_of_time_with_its_speaker() -> None:
    joined = join([ANNA, BERT])
    assert [(entry["speaker"], entry["text"].strip()) for entry in joined["segments"]] == [
        ("Anna", "We ship on Friday."), ("Bert", "Do we really?"), ("Bert", "All of it?"),
        ("Anna", "Yes."),
    ]  # fmt: skip
    words = joined["word_segments"]
    assert [word["word"] for word in words[:5]] == ["We", "ship", "on", "Do", "Friday."]
    assert [word["speaker"] for word in words[:5]] == ["Anna", "Anna", "Anna", "Bert", "Anna"]
    assert all(word["score"] == 0.9 for word in words)


def test_the_parts_stay_as_they_are() -> None:
    before = json.dumps([ANNA.transcript, BERT.transcript])
    join([ANNA, BERT])
    assert json.dumps([ANNA.transcript, BERT.transcript]) == before


def test_a_part_without_a_speaker_keeps_its_own() -> None:
    told_apart = voice("", {**said(0.0, 1.0, "Hm."), "speaker": "SPEAKER_01"})
    joined = join([told_apart, BERT])
    assert [entry["speaker"] for entry in joined["segments"]] == ["SPEAKER_01", "Bert", "Bert"]


def test_the_language_is_that_of_most_of_the_text() -> None:
    german = voice("Carl", said(0.0, 1.0, "Das ist noch lange nicht alles."), language="de")
    assert join([voice("A", said(0.0, 1.0, "Hm.")), german])["language"] == "de"


def test_without_word_times_there_are_no_words() -> None:
    plain = {"start": 0.0, "end": 1.0, "text": " Hm."}
    assert "word_segments" not in join([voice("A", plain)])


def test_nothing_is_not_joined() -> None:
    with pytest.raises(InvalidInput, match="give one transcript or more"):
        join([])


seconds = st.integers(0, 100_000).map(lambda ms: ms / 1000)
segments = st.tuples(
    seconds, seconds, st.lists(st.sampled_from("abcdef"), max_size=4), st.booleans()
).map(lambda e: said(min(e[:2]), max(e[:2]), " ".join(e[2]), timed=e[3]))


@given(st.lists(st.lists(segments, max_size=5), min_size=1, max_size=4))
def test_every_word_is_kept_and_times_never_go_back(parts: list[list[dict[str, Any]]]) -> None:
    made = [voice(f"v{number}", *entries) for number, entries in enumerate(parts)]
    joined = join(made)

    def counted(entries: Any) -> Counter[tuple[Any, ...]]:
        return Counter((e["speaker"], e["word"], e.get("start"), e.get("end")) for e in entries)

    expected: Counter[tuple[Any, ...]] = Counter(
        (part.speaker, word["word"], word.get("start"), word.get("end"))
        for part in made
        for segment in part.transcript["segments"]
        for word in segment["words"]
    )
    assert counted(joined.get("word_segments", ())) == expected
    within = [word for segment in joined["segments"] for word in segment["words"]]
    assert counted(within) == expected
    starts = [segment["start"] for segment in joined["segments"]]
    assert starts == sorted(starts) and len(starts) == sum(map(len, parts))
    timed = [word["start"] for word in joined.get("word_segments", ()) if "start" in word]
    assert timed == sorted(timed)
    for part in made:  # each voice for itself is as it was
        own = [entry["text"] for entry in joined["segments"] if entry["speaker"] == part.speaker]
        alone = join([part])["segments"]
        assert own == [entry["text"] for entry in alone]


# ---- files -------------------------------------------------------------------------------------


def test_every_format_is_written(tmp_path: Path) -> None:
    files = transcripts.write(tmp_path / "new", join([ANNA, BERT]), transcripts.FORMATS)
    found = {kind: path.read_text(encoding="utf-8") for kind, path in files.items()}
    assert json.loads(found["json"]) == join([ANNA, BERT])
    assert found["txt"].splitlines()[:2] == ["[Anna]: We ship on Friday.", "[Bert]: Do we really?"]
    assert found["srt"].startswith("1\n00:00:00,000 --> 00:00:02,000\n[Anna]: We ship on Friday.\n")
    assert found["vtt"].startswith("WEBVTT\n\n00:00.000 --> 00:02.000\n[Anna]: We ship")
    assert found["tsv"].splitlines()[1] == "0\t2000\tWe ship on Friday."
    assert found["aud"].splitlines()[3] == "6.0\t7.0\t[[Anna]]Yes."


def test_a_transcript_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = transcripts.write(tmp_path, join([ANNA]), ["json"])["json"]
    assert transcripts.read(path, "Zoë").transcript == join([ANNA])
    assert transcripts.read(path, "Zoë").speaker == "Zoë"


GOOD = {"start": 0.0, "end": 1.0, "text": "a"}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("no", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no list"),
        ('{"segments": 3}', "no list"),
        ([{"start": 0.0, "end": 1.0}], "segment 0 has no text"),
        ([GOOD, {**GOOD, "start": None}], "segment 1 has no start and end"),
        ([{**GOOD, "end": float("nan")}], "no start and end"),
        ([{**GOOD, "end": float("inf")}], "no start and end"),
        ([{**GOOD, "end": True}], "no start and end"),
        ([{**GOOD, "words": [{"start": 1.0}]}], "words that are none"),
        ([{**GOOD, "words": [{"word": "a", "start": "1"}]}], "words that are none"),
        ([{**GOOD, "speaker": 7}], "speaker that is no text"),
    ],
)
def test_what_is_no_transcript_is_refused_with_the_reason(
    tmp_path: Path, content: Any, why: str
) -> None:
    path = tmp_path / "x.json"
    text = content if isinstance(content, str) else json.dumps({"segments": content})
    path.write_text(text)
    with pytest.raises(InvalidInput, match=why) as caught:
        transcripts.read(path)
    assert caught.value.reason == "TRANSCRIPT_INVALID"


def test_a_file_of_any_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(transcripts.BYTES_MAX + 1)
    with pytest.raises(InvalidInput, match="at most 67108864 are joined"):
        transcripts.read(path)
