"""The engine gives what the whisperx package gives, and speaks to nobody while doing so."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coscheduler import audio
from tests.engines.transcription.conftest import CHILD_ENVIRONMENT, MEETING, settings_for

ROOT = Path(__file__).resolve().parents[3]
BEGINNING, LATER = (0.0, 8.2), (11.0, 19.5)  # two recordings: stretches of the meeting, in seconds
PLAIN = {"diarize": False}
CASES: dict[str, tuple[tuple[float, float], dict[str, Any]]] = {
    "defaults": (BEGINNING, PLAIN),
    "speakers": (BEGINNING, {"speaker_embeddings": True, "speakers_max": 2}),
    "decoding": (
        LATER,
        {
            **PLAIN, "language": "de", "beam_size": 3, "patience": 2.0, "length_penalty": 0.4,
            "suppress_tokens": [-1, 270, 280], "suppress_numerals": True,
            "initial_prompt": "the budget", "hotwords": "customer report", "vad_onset": 0.7,
            "vad_offset": 0.6, "chunk_ms": 3000,
        },
    ),
    "layout": (
        BEGINNING,
        {
            **PLAIN, "max_line_width": 24, "max_line_count": 2, "highlight_words": True,
            "char_alignments": True, "interpolate_method": "linear",
        },
    ),
    "translation, other speech": (
        LATER,
        {
            **PLAIN, "task": "translate", "language": "fr", "vad_method": "silero",
            "vad_onset": 0.4, "chunk_ms": 4000,
        },
    ),
}  # fmt: skip
KINDS = ("json", "srt", "vtt", "txt", "tsv", "aud")


@pytest.fixture(scope="module")
def answer(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the engine and whisperx made of every case."""
    folder = tmp_path_factory.mktemp("both")
    samples = audio.read_mono(MEETING, 16_000)
    for first, last in (BEGINNING, LATER):
        part = samples[int(first * 16_000) : int(last * 16_000)]
        audio.write_wav(folder / f"{first}.wav", part, 16_000)
    cases = [
        {"recording": str(folder / f"{span[0]}.wav"), "parameters": parameters}
        for span, parameters in CASES.values()
    ]
    settings = settings_for(
        models,
        folder / "data",
        aligners={"en": "aligner", "de": "aligner"},
        batch_sizes=(1,),
        chunk_ms=4000,
        vad_onset=0.6,
        vad_offset=0.5,
        diarizer=str(folder / "diarizer"),
    )
    child = Path(__file__).with_name("against_whisperx.py")
    command = [sys.executable, str(child), settings.model_dump_json(), json.dumps(cases)]
    environment = {**os.environ, **CHILD_ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, check=False, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def both(answer: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(CASES, answer["cases"], strict=True))


pytestmark = pytest.mark.timeout(300)  # one process imports whisperx and runs every case


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_every_file_is_what_whisperx_writes(both: dict[str, Any], case: str, kind: str) -> None:
    ours, theirs = both[case]["ours"], both[case]["theirs"]
    segments = json.loads(ours["json"])["segments"]
    lost = [segment for segment in segments if not segment.get("words", ["not aligned at all"])]
    if kind in ("srt", "vtt") and lost:
        # WhisperX makes subtitles of words alone and loses a segment that could not be aligned.
        assert ours[kind].count(" --> ") > theirs[kind].count(" --> ")
    else:
        assert ours[kind] == theirs[kind]


def test_the_cases_differ_and_have_something_to_compare(both: dict[str, Any]) -> None:
    found = {case: json.loads(both[case]["ours"]["json"]) for case in CASES}
    assert len({json.dumps(transcript) for transcript in found.values()}) == len(CASES)
    assert all(len(transcript["segments"]) >= 2 for transcript in found.values())
    assert len(found["defaults"]["word_segments"]) >= 10
    assert [found[case]["language"] for case in ("defaults", "decoding")] == ["en", "de"]
    assert any("chars" in segment for segment in found["layout"]["segments"])
    assert "<u>" in both["layout"]["ours"]["srt"]


def test_nothing_is_left_in_the_engine_by_other_options(
    answer: dict[str, Any], both: dict[str, Any]
) -> None:
    # WhisperX keeps the last tokenizer and its options where a call did not end.
    assert answer["again"] == both["defaults"]["ours"]


def test_nobody_tries_to_reach_the_network(answer: dict[str, Any]) -> None:
    assert answer["attempts"] == []
    assert not [name for name in answer["threads"] if "Otel" in name or "Metric" in name]


def test_every_aligned_word_has_a_confidence(both: dict[str, Any]) -> None:
    words = json.loads(both["defaults"]["ours"]["json"])["word_segments"]
    assert all(0 <= word["score"] <= 1 for word in words if "start" in word)
    assert sum("score" in word for word in words) >= 10


def test_speech_is_found_where_whisperx_finds_it(answer: dict[str, Any]) -> None:
    chunks = answer["chunks"]
    assert [len(found) for found in chunks["ours"]] == [len(found) for found in chunks["theirs"]]
    assert sum(map(len, chunks["ours"])) >= 6
    for ours, theirs in zip(chunks["ours"], chunks["theirs"], strict=True):
        assert np.allclose(ours, theirs, atol=1e-9)


def test_silero_in_blocks_finds_the_same_speech(answer: dict[str, Any]) -> None:
    whole, blocks = answer["silero"]["whole"], answer["silero"]["blocks"]
    assert len(whole) >= 3
    assert sum(end - start for start, end in blocks) == pytest.approx(
        sum(end - start for start, end in whole), abs=1.0
    )
    assert [start for start, _ in blocks] == sorted(start for start, _ in blocks)


def test_a_diarizer_names_the_speaker_of_every_word(both: dict[str, Any]) -> None:
    transcript = json.loads(both["speakers"]["ours"]["json"])
    assert {segment["speaker"] for segment in transcript["segments"]} == {"SPEAKER_00"}
    assert {word["speaker"] for word in transcript["word_segments"]} == {"SPEAKER_00"}
    rows = both["speakers"]["ours"]["txt"].splitlines()
    assert all(row.startswith("[SPEAKER_00]: ") for row in rows)
    assert len(transcript["speaker_embeddings"]["SPEAKER_00"]) == 256


# ---- names -------------------------------------------------------------------------------------


def test_a_pyannote_pipeline_finds_the_name_of_a_clip(answer: dict[str, Any]) -> None:
    ours = answer["names"]["pyannote"]
    transcript = json.loads(ours["json"])
    assert {segment["speaker"] for segment in transcript["segments"]} == {"Anna"}
    (found,) = transcript["known_speakers"]
    assert (found["name"], found["label"]) == ("Anna", "SPEAKER_00")
    assert 0 <= found["distance"] <= 0.5
    for kind, begin in {"txt": "[Anna]: ", "srt": "[Anna]: ", "vtt": "[Anna]: "}.items():
        assert begin in ours[kind] and "SPEAKER" not in ours[kind]
    assert "[[Anna]]" in ours["aud"]


def test_the_shipped_diarizer_names_whoever_speaks(answer: dict[str, Any]) -> None:
    transcript = json.loads(answer["names"]["both"]["json"])
    middles = {
        (segment["start"] + segment["end"]) / 2: segment["speaker"]
        for segment in transcript["segments"]
    }
    spoken = {"Anna": [(0.5, 6.1), (9.0, 11.0)], "Emma": [(6.4, 8.5), (11.4, 13.6)]}
    for name, places in spoken.items():
        for start, end in places:
            inside = [who for middle, who in middles.items() if start < middle < end]
            assert inside and set(inside) == {name}
    assert set(transcript["speaker_embeddings"]) == {"Anna", "Emma"}


def test_whoever_has_no_clip_keeps_the_label(answer: dict[str, Any]) -> None:
    transcript = json.loads(answer["names"]["one"]["json"])
    assert {segment["speaker"] for segment in transcript["segments"]} == {"SPEAKER_00", "Emma"}
    (found,) = transcript["known_speakers"]
    assert found["label"] == "SPEAKER_01" and found["distance"] < 0.2
