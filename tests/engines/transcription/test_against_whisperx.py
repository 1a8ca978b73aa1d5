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
SECONDS = 8.2


@pytest.fixture(scope="module")
def both(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the engine and whisperx made of the meeting's beginning, in chunks of four seconds."""
    folder = tmp_path_factory.mktemp("both")
    samples = audio.read_mono(MEETING, 16_000)[: int(SECONDS * 16_000)]
    recording = folder / "speech.wav"
    audio.write_wav(recording, samples, 16_000)
    settings = settings_for(
        models, folder / "data", batch_sizes=(1,), chunk_ms=4000, vad_onset=0.6, vad_offset=0.5
    )
    child = Path(__file__).with_name("against_whisperx.py")
    command = [
        sys.executable, str(child), settings.model_dump_json(), str(recording),
        str(folder / "diarizer"),
    ]  # fmt: skip
    environment = {**os.environ, **CHILD_ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, check=False, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(("index", "kind"), [*enumerate(("json", "srt", "vtt", "txt", "tsv"))])
def test_every_format_is_what_whisperx_writes(both: dict[str, Any], index: int, kind: str) -> None:
    assert both["ours"][index] == both["theirs"][index], kind


def test_the_comparison_is_of_several_segments_with_words(both: dict[str, Any]) -> None:
    transcript = json.loads(both["ours"][0])
    assert len(transcript["segments"]) >= 2
    assert len(transcript["word_segments"]) >= 10


def test_speech_is_found_where_whisperx_finds_it(both: dict[str, Any]) -> None:
    chunks = both["chunks"]
    assert [len(found) for found in chunks["ours"]] == [len(found) for found in chunks["theirs"]]
    assert sum(map(len, chunks["ours"])) >= 6
    for ours, theirs in zip(chunks["ours"], chunks["theirs"], strict=True):
        assert np.allclose(ours, theirs, atol=1e-9)


def test_a_diarizer_names_the_speaker_of_every_word(both: dict[str, Any]) -> None:
    segments = both["speakers"]["json"]["segments"]
    assert {segment["speaker"] for segment in segments} == {"SPEAKER_00"}
    assert {word["speaker"] for word in both["speakers"]["json"]["word_segments"]} == {"SPEAKER_00"}
    assert all(row.startswith("[SPEAKER_00]: ") for row in both["speakers"]["txt"].splitlines())


def test_diarization_can_be_left_out(both: dict[str, Any]) -> None:
    assert both["speakers"]["plain"] == both["ours"]
