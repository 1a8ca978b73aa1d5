"""The engine through the real host: what it writes, says and leaves behind."""

import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from coscheduler import audio
from coscheduler.core.model import total_bytes
from coscheduler.engines import messages as msg
from tests.engines.transcription.conftest import MEETING, Child, Ran

pytestmark = pytest.mark.timeout(300)  # the first of them starts a process with torch


@pytest.fixture(scope="module")
def loaded(child: Child) -> Child:
    child.load(child.describe()[0])
    return child


@pytest.fixture(scope="module")
def ran(loaded: Child) -> Ran:
    return loaded.run(MEETING)


def test_every_format_is_written_and_named_by_its_role(ran: Ran) -> None:
    files = {entry.role: (entry.filename, entry.media_type) for entry in ran.result.files}
    assert files == {
        "transcript": ("transcript.json", "application/json"),
        "srt": ("transcript.srt", "application/x-subrip"),
        "vtt": ("transcript.vtt", "text/vtt"),
        "txt": ("transcript.txt", "text/plain"),
        "tsv": ("transcript.tsv", "text/tab-separated-values"),
    }
    assert {path.name for path in ran.folder.iterdir()} == {name for name, _ in files.values()}


def test_the_transcript_has_text_and_words_in_order_within_the_recording(ran: Ran) -> None:
    transcript = ran.transcript
    assert transcript["language"] == "en"
    assert transcript["segments"]
    for segment in transcript["segments"]:
        assert segment["text"].strip().isascii()
        assert 0 <= segment["start"] < segment["end"] <= 25
        assert " ".join(word["word"] for word in segment["words"]) == segment["text"].strip()
        times = [time for word in segment["words"] for time in (word["start"], word["end"])]
        assert times == sorted(times)
    words = [word for segment in transcript["segments"] for word in segment["words"]]
    assert transcript["word_segments"] == words
    assert ran.result.numbers["word_count"] == len(words) > 5
    assert ran.result.numbers["segment_count"] == len(transcript["segments"])
    assert 15_000 < ran.result.numbers["speech_ms"] < 24_700


def test_subtitles_and_tables_say_what_the_json_says(ran: Ran) -> None:
    texts = [segment["text"].strip() for segment in ran.transcript["segments"]]
    assert ran.text("txt").splitlines() == texts
    assert ran.text("vtt").startswith("WEBVTT\n")
    assert re.match(r"1\n00:00:00,\d{3} --> 00:00:\d\d,\d{3}\n", ran.text("srt"))
    assert all(text in ran.text("srt") and text in ran.text("vtt") for text in texts)
    assert [row.split("\t")[2] for row in ran.text("tsv").splitlines()[1:]] == texts


def test_progress_goes_through_the_phases_and_never_back(ran: Ran) -> None:
    shares = [step.done for step in ran.progress]
    assert shares == sorted(shares)
    assert {step.total for step in ran.progress} == {1000}
    notes = list(dict.fromkeys(step.note for step in ran.progress))
    assert notes == ["detecting speech", "transcribing", "aligning"]
    assert len(shares) >= 7  # batches of windows, of text, of words
    assert ran.result.notes == ()


@pytest.fixture(scope="module")
def clip_json(loaded: Child, clip: Path) -> str:
    return loaded.run(clip).text("json")


def test_the_same_recording_gives_the_same_files(loaded: Child, clip: Path, clip_json: str) -> None:
    assert loaded.run(clip).text("json") == clip_json


@pytest.mark.parametrize(("language", "after"), [("fr", 1), ("", 1), ("", 2)])
def test_a_cancelled_task_leaves_the_engine_as_it_was(
    loaded: Child, clip: Path, clip_json: str, language: str, after: int
) -> None:
    pieces = {"chunk_ms": 2000, "batch_size_max": 1}  # many slices are left to be stopped
    stopped = loaded.run(clip, {"language": language, **pieces}, cancel_after=after)
    assert len(stopped.progress) <= after + 1
    assert isinstance(stopped.answers[-1], msg.TaskStopped)
    assert not stopped.folder.exists()
    assert loaded.run(clip).text("json") == clip_json


def test_a_language_without_an_aligner_gives_a_transcript_and_a_note(
    loaded: Child, clip: Path
) -> None:
    ran = loaded.run(clip, {"language": "fr"})
    assert ran.result.notes == ("no aligner is configured for language fr: no word times",)
    assert ran.transcript["language"] == "fr"
    assert all("words" not in segment for segment in ran.transcript["segments"])
    assert ran.result.numbers["word_count"] > 5
    assert ran.transcript["segments"][0]["text"].strip() in ran.text("srt")


def test_a_language_has_a_name_and_an_aligner_can_be_named(loaded: Child, clip: Path) -> None:
    ran = loaded.run(clip, {"language": "French", "align_model": "de"})
    assert ran.result.notes == ()
    assert ran.transcript["language"] == "fr"
    assert len(ran.transcript["word_segments"]) > 5


def test_a_fixed_language_is_not_kept_for_the_next_recording(loaded: Child, clip: Path) -> None:
    loaded.run(clip, {"language": "fr"})
    assert loaded.run(clip).transcript["language"] == "en"


def test_alignment_can_be_left_out(loaded: Child, clip: Path) -> None:
    ran = loaded.run(clip, {"align": False, "language": "en"})
    assert ran.result.notes == ()
    assert "word_segments" not in ran.transcript


def test_only_the_formats_asked_for_are_written_and_always_the_json(
    loaded: Child, clip: Path
) -> None:
    ran = loaded.run(clip, {"formats": ["vtt"], "align": False})
    assert {path.name for path in ran.folder.iterdir()} == {"transcript.json", "transcript.vtt"}


def test_a_recording_without_speech_is_an_empty_transcript_with_a_note(
    loaded: Child, silence: Path
) -> None:
    ran = loaded.run(silence)
    assert ran.result.notes == ("no speech was found",)
    assert ran.transcript["segments"] == []
    assert set(ran.result.numbers.values()) == {0}
    assert ran.text("srt") == ""


def test_two_windows_make_one_batch_with_times_of_the_whole_recording(
    loaded: Child, long_recording: Path
) -> None:
    ran = loaded.run(long_recording, {"align": False})
    texts = [step for step in ran.progress if step.note == "transcribing"]
    assert len(texts) == 1
    segments = ran.transcript["segments"]
    assert len(segments) == 2
    assert 24 < segments[1]["start"] < segments[1]["end"] < 49.5


IN_PIECES = {"align": False, "chunk_ms": 2000, "batch_size_max": 1}


def test_an_interrupted_text_goes_on_after_the_last_batch(
    loaded: Child, clip: Path, tmp_path: Path
) -> None:
    whole = loaded.run(clip, IN_PIECES)
    texts = [step.note for step in whole.progress].count("transcribing")
    before = len(whole.progress) - texts
    stopped = loaded.run(clip, IN_PIECES, cancel_after=before + 2, resume_dir=tmp_path)
    assert isinstance(stopped.answers[-1], msg.TaskStopped)
    went_on = loaded.run(clip, IN_PIECES, resume_dir=tmp_path)
    resumed = went_on.result.numbers["resumed_segment_count"]
    assert 2 <= resumed <= texts
    assert [step.note for step in went_on.progress] == ["transcribing"] * (texts - resumed)
    assert went_on.text("json") == whole.text("json")
    other = loaded.run(clip, {**IN_PIECES, "beam_size": 2}, resume_dir=tmp_path)
    assert other.result.numbers["resumed_segment_count"] == 0


@pytest.mark.parametrize(
    ("parameters", "reason", "said"),
    [({"language": "xx"}, "LANGUAGE_UNKNOWN", "'xx'"), ({"beam_size": 6}, "BEAM_TOO_WIDE", "5")],
)
def test_what_the_model_cannot_do_is_refused(
    loaded: Child, clip: Path, parameters: dict[str, Any], reason: str, said: str
) -> None:
    failure = loaded.run(clip, parameters).failure
    assert (failure.kind, failure.reason) == ("invalid_input", reason)
    assert said in failure.message


@pytest.mark.parametrize(
    ("codec", "container"),
    [
        ("flac", "flac"), ("libmp3lame", "mp3"), ("aac", "ipod"), ("libopus", "ogg"),
        ("libopus", "webm"), ("aac", "mp4"), ("aac", "matroska"),
    ],
)  # fmt: skip
def test_whatever_the_container_the_words_are_there(  # ipod: what phones call m4a
    loaded: Child, clip: Path, tmp_path: Path, codec: str, container: str
) -> None:
    path = tmp_path / "recording.dat"  # it is the content that counts
    encode(path, audio.read_mono(clip, 16_000)[: 3 * 16_000], codec, container)
    ran = loaded.run(path, {"align": False})
    (segment,) = ran.transcript["segments"]
    assert 0 <= segment["start"] < 1.0
    assert 2.5 < segment["end"] < 3.5
    assert len(segment["text"].split()) >= 3


def encode(path: Path, samples: NDArray[np.float32], codec: str, container: str) -> None:
    """Mono samples at 16 kHz as 48 kHz sound of a codec in a container."""
    resampler = av.AudioResampler("fltp" if codec != "flac" else "s16", "mono", 48_000)
    frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
    frame.sample_rate = 16_000
    with av.open(str(path), "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=48_000, layout="mono")
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            part.pts = None  # counted by the encoder
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))


def test_speakers_that_nobody_can_tell_apart_are_noted(loaded: Child, clip: Path) -> None:
    ran = loaded.run(clip, {"speakers_min": 2, "align": False})
    assert ran.result.notes == ("no diarization model is configured: no speakers",)


@pytest.mark.parametrize("index", [0, 1])
def test_a_damaged_aligner_fails_the_task_and_not_the_engine(
    child: Child, models: Path, clip: Path, index: int
) -> None:
    option, path = child.describe()[index], models / "aligner-de" / "model.safetensors"
    whole = path.read_bytes()
    child.ask(msg.UnloadOption())
    path.write_bytes(_with_a_broken_header(whole))
    child.load(option)  # held or not
    failure = child.run(clip, {"language": "de"}).failure
    path.write_bytes(whole)
    assert (failure.kind, failure.reason) == ("engine_fault", "MODEL_CORRUPT")
    assert child.run(clip, {"language": "de"}).transcript["word_segments"]


def _with_a_broken_header(file: bytes) -> bytes:
    """Its tensors have other names, which only whoever reads them notices."""
    return file.replace(b"wav2vec2.", b"wav2vec3.")


def test_a_task_without_a_model_is_refused(child: Child, clip: Path) -> None:
    option = child.describe()[0]
    child.ask(msg.UnloadOption())
    assert child.run(clip).failure.reason == "NOT_LOADED"
    assert isinstance(child.ask(msg.UnloadOption())[-1], msg.OptionUnloaded)
    held = child.load(option).held
    assert total_bytes(held) == total_bytes(option.resident)
