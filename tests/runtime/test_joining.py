"""Transcripts joined by the daemon: a new artifact, read in a child, or nothing at all."""

import asyncio
import json
from pathlib import Path

import pytest

from coscheduler import transcripts
from coscheduler.core.model import InputRef, JobState
from coscheduler.errors import InvalidInput, NotFound, StoreFault
from coscheduler.runtime import joining
from coscheduler.runtime.api import TranscriptPart
from tests.runtime.support import ANALYZE, final, recording, request, run, running, settings, upload


def saying(text: str, start: float) -> bytes:
    segment = {"start": start, "end": start + 1, "text": text}
    return json.dumps({"segments": [segment], "language": "en"}).encode()


def test_a_joined_transcript_is_one_like_any_other(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            late = await upload(daemon, saying("Später.", 5.0), kind="transcript")
            early = await upload(daemon, saying("Now.", 1.0), kind="transcript")
            parts = [TranscriptPart(late.name, "Zoë"), TranscriptPart(early.name)]
            joined = await daemon.join_transcripts(parts)
            assert (joined.kind, joined.job, joined.audio) == ("transcript", "", None)
            data = b"".join([chunk async for chunk in daemon.read_artifact(joined.name, 0)])
            segments = json.loads(data)["segments"]
            assert [entry["text"] for entry in segments] == ["Now.", "Später."]
            assert [entry.get("speaker") for entry in segments] == [None, "Zoë"]
            job = await daemon.create_job(request("a", joined, ANALYZE))
            assert (await final(daemon, job.job.name)).job.state is JobState.SUCCEEDED
            assert job.job.stages[0].input == InputRef(artifact=joined.name)

    run(story())


REFUSED: list[tuple[list[tuple[str, str]], str, str]] = [
    ([], "PARTS_INVALID", "0 transcripts to join"),
    ([("good", "")] * 65, "PARTS_INVALID", "65 transcripts"),
    ([("good", "a\nb")], "PARTS_INVALID", "cannot stand for a speaker"),
    ([("good", ""), ("wav", "")], "INPUT_KIND_MISMATCH", "is of kind audio"),
    ([("text", "")], "TRANSCRIPT_INVALID", "it is not JSON"),
    ([("good", ""), ("list", "")], "TRANSCRIPT_INVALID", 'no list "segments"'),
]


def test_what_cannot_be_joined_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            data = {"good": saying("Yes.", 0.0), "text": b"Yes.", "list": b"[1]"}
            made = {kind: await upload(daemon, text, "transcript") for kind, text in data.items()}
            made["wav"] = await upload(daemon, recording())
            for parts, reason, why in REFUSED:
                asked = [TranscriptPart(made[name].name, speaker) for name, speaker in parts]
                with pytest.raises(InvalidInput, match=why) as caught:
                    await daemon.join_transcripts(asked)
                assert caught.value.reason == reason
            with pytest.raises(NotFound):
                await daemon.join_transcripts([TranscriptPart(f"artifacts/{32 * '0'}")])
            monkeypatch.setattr(transcripts, "BYTES_MAX", 10)
            with pytest.raises(InvalidInput, match="at most 10 are joined"):
                await daemon.join_transcripts([TranscriptPart(made["good"].name)])
            assert len((await daemon.list_artifacts(50, "", ""))[0]) == len(made)
            assert len(list((tmp_path / "store" / "artifacts").iterdir())) == len(made)

    run(story())


def test_a_reader_that_dies_is_told_and_one_that_hangs_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InvalidInput, match="ended the reader"):
        asyncio.run(joining._joined(b"not what it understands"))
    monkeypatch.setattr(joining, "JOIN_SECONDS_MAX", 0.0)
    with pytest.raises(StoreFault, match=r"more than 0.0 s"):
        asyncio.run(joining._joined(b"{}"))
