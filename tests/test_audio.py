import json
import struct
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from coscheduler import audio
from coscheduler.errors import EngineFault, InvalidInput

RATE_HZ = 16_000
LIMITS = (100, 60_000)


def tone(seconds: float, hz: float = 440.0, rate_hz: int = RATE_HZ) -> NDArray[np.float32]:
    times = np.arange(int(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * hz * times)).astype(np.float32)


def wav(path: Path, samples: NDArray[np.float32], rate_hz: int = RATE_HZ) -> Path:
    audio.write_wav(path, samples, rate_hz)
    return path


def encode(
    path: Path, samples: NDArray[np.float32], codec: str, container: str, rate_hz: int = RATE_HZ
) -> Path:
    """Encode float32 [channels, n] with PyAV."""
    with av.open(str(path), "w", format=container) as out:
        stream: Any = out.add_stream(
            codec, rate=rate_hz, layout="stereo" if len(samples) == 2 else "mono"
        )
        resampler = av.AudioResampler(
            format=stream.codec_context.format, layout=stream.layout, rate=rate_hz
        )
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples), "fltp", stream.layout.name
        )
        frame.sample_rate = rate_hz
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            for packet in stream.encode(piece):
                out.mux(packet)
        for packet in stream.encode(None):
            out.mux(packet)
    return path


def float_wav(path: Path, samples: NDArray[np.float32]) -> Path:
    data = samples.astype("<f4").tobytes()
    head = struct.pack("<HHIIHH", 3, 1, RATE_HZ, RATE_HZ * 4, 4, 32)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head
    body += b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


def refused(path: Path, reason: str) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        audio.probe(path, *LIMITS)
    assert caught.value.reason == reason, caught.value.message
    return caught.value.numbers


def test_written_wav_reads_back_to_the_sample(tmp_path: Path) -> None:
    samples = np.round(tone(0.5) * 32768) / np.float32(32768)
    path = wav(tmp_path / "a.wav", samples)
    assert np.array_equal(audio.read_mono(path, RATE_HZ), samples)


def test_clipped_samples_are_counted_and_saturate(tmp_path: Path) -> None:
    samples = np.array([0.0, 1.5, -1.5, 1.0, -1.0], np.float32)
    assert audio.write_wav(tmp_path / "a.wav", samples, RATE_HZ) == 2
    with wave.open(str(tmp_path / "a.wav")) as file:
        values = np.frombuffer(file.readframes(5), "<i2")
    assert values.tolist() == [0, 32767, -32768, 32767, -32768]


def test_a_result_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(EngineFault) as caught:
        audio.write_wav(tmp_path / "a.wav", np.array([0.0, np.nan], np.float32), RATE_HZ)
    assert caught.value.numbers == {"not_finite_count": "1", "sample_count": "2"}
    assert not (tmp_path / "a.wav").exists()


def test_channels_are_averaged(tmp_path: Path) -> None:
    left = tone(0.5)
    path = encode(tmp_path / "a.flac", np.stack([left, -0.5 * left]), "flac", "flac")
    assert np.abs(audio.read_mono(path, RATE_HZ) - 0.25 * left).max() < 1e-4
    assert audio.probe(path, *LIMITS).channel_count == 2


@pytest.mark.parametrize(("source_hz", "target_hz"), [(48_000, 16_000), (44_100, 48_000)])
def test_resampling_keeps_time_pitch_and_level(
    tmp_path: Path, source_hz: int, target_hz: int
) -> None:
    path = wav(tmp_path / "a.wav", tone(1.0, rate_hz=source_hz), source_hz)
    got = audio.read_mono(path, target_hz)
    assert got.dtype == np.float32
    assert abs(len(got) - target_hz) <= 2
    want = tone(1.0, rate_hz=target_hz)[: len(got)]
    middle = slice(target_hz // 10, -target_hz // 10)
    assert np.abs(got[: len(want)] - want)[middle].max() < 2e-3


@pytest.mark.parametrize(
    ("codec", "container"),
    [("flac", "flac"), ("libmp3lame", "mp3"), ("aac", "ipod"), ("libopus", "ogg"),
     ("libopus", "webm"), ("aac", "matroska"), ("pcm_s24le", "wav"), ("pcm_u8", "wav")],
)  # fmt: skip
def test_a_recording_is_known_by_its_bytes_and_not_by_its_name(
    tmp_path: Path, codec: str, container: str
) -> None:
    samples = np.stack([tone(1.0, rate_hz=48_000)])
    path = encode(tmp_path / "recording.txt", samples, codec, container, 48_000)
    facts = audio.probe(path, *LIMITS)
    assert abs(facts.duration_ms - 1000) < 100
    assert facts.sample_rate_hz == 48_000
    got = audio.read_mono(path, RATE_HZ)
    assert abs(float(np.sqrt(np.mean(got**2))) - 0.5 / np.sqrt(2)) < 0.05


@pytest.mark.parametrize("count", [64, 65])
def test_a_file_of_very_many_streams_is_refused(tmp_path: Path, count: int) -> None:
    path = tmp_path / "many.mkv"
    with av.open(str(path), "w", format="matroska") as out:
        streams: list[Any] = [
            out.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono") for _ in range(count)
        ]
        frame = av.AudioFrame.from_ndarray(np.zeros((1, RATE_HZ), np.int16), "s16", "mono")
        frame.sample_rate = RATE_HZ
        for stream in streams:
            out.mux(stream.encode(frame))
    if count == 65:
        assert refused(path, "AUDIO_UNREADABLE")["stream_count"] == "65"
    else:
        assert audio.probe(path, *LIMITS).duration_ms == 1000


@pytest.mark.parametrize("name", ["notes.wav", "notes.mp3", "notes.flac"])
def test_text_under_an_audio_name_is_unreadable(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("These are the minutes of the meeting. " * 500, encoding="utf-8")
    refused(tmp_path / name, "AUDIO_UNREADABLE")


def test_an_empty_file_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    refused(tmp_path / "a.wav", "AUDIO_UNREADABLE")


def test_a_playlist_that_names_another_file_is_not_followed(tmp_path: Path) -> None:
    wav(tmp_path / "secret.wav", tone(1.0))
    listing = f"ffconcat version 1.0\nfile {tmp_path / 'secret.wav'}\n"
    (tmp_path / "list.wav").write_text(listing, encoding="utf-8")
    refused(tmp_path / "list.wav", "AUDIO_UNREADABLE")


@pytest.mark.parametrize(("codec", "container"), [("flac", "flac"), ("pcm_s16le", "wav")])
def test_a_truncated_file_is_unreadable_and_says_how_much_is_missing(
    tmp_path: Path, codec: str, container: str
) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 2 * RATE_HZ)).astype(np.float32)
    path = encode(tmp_path / "a", noise, codec, container)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    numbers = refused(path, "AUDIO_UNREADABLE")
    assert int(numbers["missing_count"]) + int(numbers["sample_count"]) == 2 * RATE_HZ
    with pytest.raises(InvalidInput):
        audio.read_mono(path, RATE_HZ)


def test_a_wav_from_a_pipe_has_no_declared_length_and_is_read(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", tone(1.0))
    raw = bytearray(path.read_bytes())
    raw[4:8] = raw[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(raw)
    assert audio.probe(path, *LIMITS).duration_ms == 1000


def test_a_video_without_sound_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "silent.mp4"
    with av.open(str(path), "w", format="mp4") as out:
        stream: Any = out.add_stream("mpeg4", rate=5, width=32, height=32, pix_fmt="yuv420p")
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    refused(path, "AUDIO_UNREADABLE")


def test_one_sample_is_too_short(tmp_path: Path) -> None:
    numbers = refused(wav(tmp_path / "a.wav", tone(1 / RATE_HZ)), "AUDIO_TOO_SHORT")
    assert numbers == {"duration_ms": "0", "duration_ms_min": "100", "sample_count": "1"}


def test_a_header_without_samples_is_too_short(tmp_path: Path) -> None:
    refused(wav(tmp_path / "a.wav", tone(0.0)), "AUDIO_TOO_SHORT")


def test_the_limits_themselves_are_allowed(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", tone(1.0))
    assert audio.probe(path, 1000, 1000).duration_ms == 1000
    with pytest.raises(InvalidInput, match="longer"):
        audio.probe(path, 0, 999)


def test_decoding_stops_once_the_recording_is_too_long(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", tone(2.0))
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])  # the missing half must not be reached
    with pytest.raises(InvalidInput) as caught:
        audio.probe(path, 100, 500)
    assert caught.value.reason == "AUDIO_TOO_LONG"
    assert caught.value.numbers == {"duration_ms_max": "500"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_counted(tmp_path: Path, value: float) -> None:
    samples = tone(0.5)
    samples[[10, 4000]] = value
    path = float_wav(tmp_path / "a.wav", samples)
    assert refused(path, "AUDIO_NOT_FINITE") == {"not_finite_count": "2"}
    with pytest.raises(InvalidInput):
        audio.read_mono(path, RATE_HZ)


def run_probe(path: Path) -> dict[str, dict[str, object]]:
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "coscheduler.audio_probe",
        str(path),
        "100",
        "5000",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, dict[str, object]] = json.loads(done.stdout)
    return answer


def test_the_probe_process_answers_in_json(tmp_path: Path) -> None:
    good = wav(tmp_path / "a.wav", tone(1.0))
    assert run_probe(good) == {
        "ok": {
            "duration_ms": 1000,
            "sample_rate_hz": RATE_HZ,
            "channel_count": 1,
            "codec": "pcm_s16le",
        }
    }
    bad = tmp_path / "b.wav"
    bad.write_bytes(b"not audio at all")
    error = run_probe(bad)["error"]
    assert error["reason"] == "AUDIO_UNREADABLE"
    assert error["numbers"] == {}


def test_the_probe_process_does_not_import_torch() -> None:
    code = "import sys, coscheduler.audio_probe; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
