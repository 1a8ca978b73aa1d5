"""What may come in, and what stays of what may not."""

import asyncio
import hashlib
import struct
from pathlib import Path

import pytest

from coscheduler.errors import CoschedulerError, InvalidInput, NotFound
from tests.runtime.support import recording, run, running, settings, upload

FLAC = Path(__file__).parents[2] / "coscheduler" / "demo" / "meeting.flac"


def wav_of(samples: list[float]) -> bytes:
    """32-bit float WAV, so that it can hold what is not a number."""
    data = b"".join(struct.pack("<f", sample) for sample in samples)
    head = struct.pack("<IHHIIHH", 16, 3, 1, 16_000, 64_000, 4, 32)
    body = b"WAVEfmt " + head + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    ("reason", "data"),
    [
        ("ARTIFACT_EMPTY", b""),
        ("AUDIO_UNREADABLE", b"Dear diary, today I renamed a text to .wav" * 50),
        ("AUDIO_UNREADABLE", FLAC.read_bytes()[:200_000]),
        ("AUDIO_TOO_SHORT", wav_of([0.5])),
        ("AUDIO_NOT_FINITE", wav_of([0.1] * 8000 + [float("nan")] + [0.1] * 8000)),
    ],
)
def test_bad_recordings_are_refused_and_leave_nothing(
    tmp_path: Path, reason: str, data: bytes
) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            with pytest.raises(InvalidInput) as refusal:
                await upload(daemon, data)
            assert refusal.value.reason == reason
            assert list((tmp_path / "store" / "artifacts").iterdir()) == []
            assert (await upload(daemon, recording())).audio is not None

    run(story())


def test_a_recording_over_the_limit_is_refused_with_the_numbers(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path, store={"recording_ms_max": 500})) as daemon:
            with pytest.raises(InvalidInput) as refusal:
                await upload(daemon, recording(seconds=2))
            assert refusal.value.reason == "AUDIO_TOO_LONG"

    run(story())


def test_an_upload_that_differs_from_its_announcement_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        data = recording()
        good = hashlib.sha256(data).hexdigest()
        async with running(settings(tmp_path)) as daemon:
            for size, digest, reason in (
                (len(data) + 1, good, "UPLOAD_INCOMPLETE"),
                (len(data), "0" * 64, "CHECKSUM_MISMATCH"),
            ):
                writer = await daemon.begin_artifact("audio", "audio/wav", "a.wav")
                await writer.write(data)
                with pytest.raises(InvalidInput) as refusal:
                    await writer.finish(size, digest)
                assert refusal.value.reason == reason
            abandoned = await daemon.begin_artifact("audio", "audio/wav", "a.wav")
            await abandoned.write(data)
            await abandoned.abort()
            assert list((tmp_path / "store" / "artifacts").iterdir()) == []

    run(story())


def test_sizes_are_bounded(tmp_path: Path) -> None:
    async def story() -> None:
        chosen = settings(tmp_path, store={"artifact_bytes_max": 1000})
        async with running(chosen) as daemon:
            with pytest.raises(CoschedulerError) as refusal:
                await upload(daemon, recording())
            assert refusal.value.reason == "ARTIFACT_TOO_LARGE"
        full = settings(tmp_path, store={"disk_free_bytes_min": 2**60})
        async with running(full) as daemon:
            with pytest.raises(CoschedulerError) as refusal:
                await upload(daemon, recording())
            assert refusal.value.reason == "DISK_FULL"

    run(story())


def test_names_never_become_paths(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            writer = await daemon.begin_artifact("file", "text/plain", "../../etc/passwd")
            await writer.write(b"x")
            artifact = await writer.finish(1, hashlib.sha256(b"x").hexdigest())
            assert artifact.filename == "passwd"
            for name in ("artifacts/../lock", "../store.sqlite3", "", "artifacts/" + "g" * 32):
                with pytest.raises(NotFound):
                    await daemon.get_artifact(name)
                with pytest.raises(NotFound):
                    async for _ in daemon.read_artifact(name, 0):
                        pass
            for offset in (-1, 2):
                with pytest.raises(InvalidInput, match="offset"):
                    async for _ in daemon.read_artifact(artifact.name, offset):
                        pass

    run(story())


def test_reading_does_not_block_the_event_loop(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            artifact = await upload(daemon, recording(seconds=30))
            turns = 0

            async def count_turns() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0)
                    turns += 1

            counter = asyncio.create_task(count_turns())
            size = sum([len(chunk) async for chunk in daemon.read_artifact(artifact.name, 0)])
            counter.cancel()
            assert size == artifact.size_bytes and turns > 3

    run(story())
