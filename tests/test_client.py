"""Both clients against a real server: what they send, what they raise, what they survive."""

import asyncio
import hashlib
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from coscheduler.client import (
    AsyncClient,
    Client,
    InputRef,
    JobRequest,
    JobState,
    Plan,
    Priority,
    StageKind,
    StageRequest,
    StageState,
    TranscriptPart,
)
from coscheduler.client.channel import Backoff, Patience, resolve_address
from coscheduler.errors import (
    Exhausted,
    InvalidInput,
    NotFound,
    Refused,
    StoreFault,
    Unavailable,
)
from coscheduler.rpc.server import open_front
from tests.rpc.fake_daemon import FakeDaemon, busy_gpu
from tests.rpc.support import QUICK, asynchronous, eventually, serving, settings_for

TRANSCRIBE = StageRequest(StageKind.TRANSCRIBE, {})
WAV = b"RIFF" + bytes(range(256)) * 2000  # two chunks of an upload


class Caller:
    """Either client behind one face, so that each test holds for both.

    The blocking client runs in a thread beside the loop that serves it.
    """

    def __init__(self, name: str, address: str) -> None:
        self.client: Any = {"sync": Client, "async": AsyncClient}[name](address, backoff=QUICK)

    async def __aenter__(self) -> "Caller":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        return lambda *args, **kwargs: self._call(method, *args, **kwargs)

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        bound = getattr(self.client, method)
        if isinstance(self.client, AsyncClient):
            return await bound(*args, **kwargs)
        return await asyncio.to_thread(bound, *args, **kwargs)

    async def watch(self, name: str, on_update: Callable[[Any], None]) -> None:
        if isinstance(self.client, AsyncClient):
            async for snapshot in self.client.watch_job(name):
                on_update(snapshot)
        else:
            await asyncio.to_thread(self._watch, name, on_update)

    def _watch(self, name: str, on_update: Callable[[Any], None]) -> None:
        for snapshot in self.client.watch_job(name):
            on_update(snapshot)


both = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "meeting.wav"
    path.write_bytes(WAV)
    return path


@both
@asynchronous
async def test_jobs_from_creation_to_deletion(tmp_path: Path, kind: str) -> None:
    async with serving(tmp_path) as (daemon, front), Caller(kind, front.address) as client:
        request = JobRequest(
            "r1", (TRANSCRIBE,), InputRef(artifact="artifacts/1"), int(Priority.BATCH), "a.wav"
        )
        made = await client.create_job(request)
        assert made == await client.create_job(request) == await client.get_job("jobs/0000")
        assert made.job.priority is Priority.BATCH
        assert daemon.requests[0].source == InputRef(artifact="artifacts/1")
        jobs, token = await client.list_jobs()
        assert ([job.job.name for job in jobs], token) == (["jobs/0000"], "")
        with pytest.raises(Refused) as caught:
            await client.delete_job("jobs/0000")
        assert caught.value.reason == "JOB_NOT_FINAL"
        assert (await client.cancel_job("jobs/0000")).job.state is JobState.CANCELLED
        await client.delete_job("jobs/0000")
        with pytest.raises(NotFound):
            await client.get_job("jobs/0000")


@both
@asynchronous
async def test_gpu(tmp_path: Path, kind: str) -> None:
    async with serving(tmp_path) as (daemon, front), Caller(kind, front.address) as client:
        daemon.snapshot = busy_gpu()
        assert await client.gpu() == busy_gpu()


@both
@asynchronous
async def test_upload_reports_its_bytes_and_download_verifies(
    tmp_path: Path, recording: Path, kind: str
) -> None:
    async with serving(tmp_path) as (daemon, front), Caller(kind, front.address) as client:
        sent: list[tuple[int, int]] = []
        artifact = await client.upload(recording, lambda done, total: sent.append((done, total)))
        assert sent[-1] == (len(WAV), len(WAV))
        assert len(sent) == 2
        assert artifact.sha256 == hashlib.sha256(WAV).hexdigest()
        assert (artifact.kind, artifact.filename) == ("audio", "meeting.wav")
        assert (await client.list_artifacts())[0] == [artifact]

        got: list[int] = []
        target = tmp_path / "new" / "copy.wav"
        path = await client.download(artifact, target, lambda done, total: got.append(done))
        assert path == target
        assert path.read_bytes() == WAV
        assert got == sorted(got)
        assert got[-1] == len(WAV)
        assert [entry.name for entry in target.parent.iterdir()] == ["copy.wav"]
        await client.delete_artifact(artifact.name)
        assert not daemon.artifacts


@both
@asynchronous
async def test_download_resumes_where_it_broke(tmp_path: Path, kind: str) -> None:
    async with serving(tmp_path) as (daemon, front), Caller(kind, front.address) as client:
        artifact = daemon.store(WAV, "audio", "audio/wav", "a.wav")
        daemon.break_read_after = 2 * daemon.chunk_bytes
        path = await client.download(artifact.name, tmp_path / "a.wav")
        assert path.read_bytes() == WAV
        assert daemon.offsets == [0, 2 * daemon.chunk_bytes]


@both
@asynchronous
async def test_download_goes_on_with_the_part_of_an_earlier_call(tmp_path: Path, kind: str) -> None:
    async with serving(tmp_path) as (daemon, front), Caller(kind, front.address) as client:
        artifact = daemon.store(WAV, "audio", "audio/wav", "a.wav")
        (tmp_path / f".a.wav.{32 * '0'}.part").write_bytes(WAV[:1000])
        assert (await client.download(artifact, tmp_path / "a.wav")).read_bytes() == WAV
        assert daemon.offsets == [1000]


@both
@asynchronous
async def test_damaged_download_is_refused_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    async with serving(tmp_path) as (daemon, front), Caller(kind, front.address) as client:
        artifact = daemon.store(WAV, "audio", "audio/wav", "a.wav")
        daemon.artifacts[artifact.name] = (artifact, b"y" + WAV[1:])
        with pytest.raises(StoreFault) as caught:
            await client.download(artifact, tmp_path / "out" / "a.wav")
        assert caught.value.reason == "DOWNLOAD_CORRUPT"
        assert not list((tmp_path / "out").iterdir())


@both
@asynchronous
async def test_empty_download_makes_an_empty_file(tmp_path: Path, kind: str) -> None:
    async with serving(tmp_path) as (daemon, front), Caller(kind, front.address) as client:
        artifact = daemon.store(b"", "file", "text/plain", "a.txt")
        path = await client.download(artifact, tmp_path / "a.txt")
        assert path.read_bytes() == b""


@both
@asynchronous
async def test_upload_refused_half_way_raises_the_reason(
    tmp_path: Path, recording: Path, kind: str
) -> None:
    async with serving(tmp_path) as (daemon, front), Caller(kind, front.address) as client:
        daemon.faults["write"] = Exhausted("ARTIFACT_TOO_LARGE", "too large", size_bytes_max=10)
        with pytest.raises(Exhausted) as caught:
            await client.upload(recording)
        assert caught.value.numbers == {"size_bytes_max": "10"}
        assert not daemon.artifacts
        assert not daemon.open_writers


@both
@asynchronous
async def test_upload_whose_reader_fails_raises_that_and_leaves_nothing(
    tmp_path: Path, recording: Path, kind: str
) -> None:
    def fail(done: int, total: int) -> None:
        raise OSError("the disk is gone")

    async with serving(tmp_path) as (daemon, front), Caller(kind, front.address) as client:
        with pytest.raises(OSError, match="the disk is gone"):
            await client.upload(recording, fail)
        await eventually(lambda: not daemon.open_writers)
        assert not daemon.artifacts


@both
@asynchronous
async def test_missing_file_is_invalid_before_anything_is_sent(tmp_path: Path, kind: str) -> None:
    async with Caller(kind, f"unix:{tmp_path}/nobody") as client:
        with pytest.raises(InvalidInput) as caught:
            await client.upload(tmp_path / "none.wav")
        assert caught.value.reason == "FILE_UNREADABLE"


@both
@asynchronous
async def test_watch_survives_a_restart_and_gives_the_end(tmp_path: Path, kind: str) -> None:
    daemon = FakeDaemon()
    front = await open_front(daemon, settings_for(tmp_path, drain_ms_max=1))
    await daemon.create_job(JobRequest("r", (TRANSCRIBE,)))
    seen: list[Any] = []
    async with Caller(kind, front.address) as client:
        watching = asyncio.create_task(client.watch("jobs/0000", seen.append))
        await eventually(lambda: len(seen) == 1)
        await front.close()
        front = await open_front(daemon, settings_for(tmp_path))
        await daemon.cancel_job("jobs/0000")
        await watching
    assert [snapshot.job.state for snapshot in seen] == [JobState.QUEUED, JobState.CANCELLED]
    await front.close()


@both
@asynchronous
async def test_watch_gives_up_when_patience_is_over(tmp_path: Path, kind: str) -> None:
    daemon = FakeDaemon()
    front = await open_front(daemon, settings_for(tmp_path, drain_ms_max=1))
    await daemon.create_job(JobRequest("r", (TRANSCRIBE,)))
    seen: list[Any] = []
    async with Caller(kind, front.address) as client:
        client.client._backoff = Backoff(first_ms=1, max_ms=1, patience_ms=3)
        watching = asyncio.create_task(client.watch("jobs/0000", seen.append))
        await eventually(lambda: len(seen) == 1)
        await front.close()
        with pytest.raises(Unavailable):
            await watching


@both
@asynchronous
async def test_watch_of_no_daemon_or_no_job_fails_at_once(tmp_path: Path, kind: str) -> None:
    async with Caller(kind, f"unix:{tmp_path}/nobody") as client:
        with pytest.raises(Unavailable) as caught:
            await client.watch("jobs/1", print)
        assert caught.value.reason == "SERVER_UNREACHABLE"
    async with serving(tmp_path) as (_, front), Caller(kind, front.address) as client:
        with pytest.raises(NotFound):
            await client.watch("jobs/1", print)


@both
@asynchronous
async def test_watch_that_is_left_ends_in_the_daemon(tmp_path: Path, kind: str) -> None:
    async with serving(tmp_path) as (daemon, front), Caller(kind, front.address) as client:
        await daemon.create_job(JobRequest("r", (TRANSCRIBE,)))
        watch = client.client.watch_job("jobs/0000")
        if kind == "async":
            await anext(watch)
            await watch.aclose()
        else:
            await asyncio.to_thread(next, watch)
            watch.close()
        await eventually(lambda: daemon.watch_count == 0)


@both
@asynchronous
async def test_run_does_everything_in_one_call(tmp_path: Path, recording: Path, kind: str) -> None:
    daemon = FakeDaemon(auto=True)
    async with serving(tmp_path, daemon) as (_, front), Caller(kind, front.address) as client:
        states: list[Any] = []
        result = await client.run(
            recording,
            separate="a person speaking",
            analyze="summary",
            language="en",
            priority=Priority.INTERACTIVE,
            out=tmp_path / "out",
            on_update=lambda snapshot: states.append(snapshot.job.state),
        )
        assert result.succeeded
        assert states[-1] is JobState.SUCCEEDED
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            "target.wav", "residual.wav", "transcript.json", "transcript.srt", "transcript.vtt",
            "transcript.txt", "transcript.tsv", "analysis.json", "metrics.json",
        }  # fmt: skip
        assert result.files["target"].read_text() == "target of jobs/0000"
        metrics = json.loads(result.files["metrics"].read_text())
        assert metrics == result.metrics
        assert metrics["state"] == "SUCCEEDED"
        assert [stage["stage"] for stage in metrics["stages"]] == [
            "separate", "transcribe", "analyze",
        ]  # fmt: skip
        assert metrics["stages"][0]["real_time_factor"] == 0.25
        request = daemon.requests[0]
        assert request.priority == Priority.INTERACTIVE
        assert request.title == "meeting.wav"
        assert request.stages[1].parameters["language"] == "en"


@both
@asynchronous
async def test_clips_of_voices_are_sent_and_named(
    tmp_path: Path, recording: Path, kind: str
) -> None:
    clip = tmp_path / "anna.wav"
    clip.write_bytes(b"RIFF of Anna")
    async with (
        serving(tmp_path, FakeDaemon(auto=True)) as (daemon, front),
        Caller(kind, front.address) as client,
    ):
        await client.run(recording, transcription={"speakers": 2}, clips=[("Anna", clip)])
        (stage,) = daemon.requests[0].stages
        (known,) = stage.parameters["known_speakers"]
        assert known["name"] == "Anna"
        assert daemon.artifacts[known["artifact"]][1] == b"RIFF of Anna"
        assert stage.parameters["speakers"] == 2
        assert (await client.run(recording, clips=[])).succeeded


@both
@asynchronous
async def test_transcripts_are_joined_by_the_daemon(tmp_path: Path, kind: str) -> None:
    async with serving(tmp_path) as (daemon, front), Caller(kind, front.address) as client:
        made = [daemon.store(text, "transcript", "x/y", "t.json") for text in (b"yes", b"no")]
        parts = [TranscriptPart(made[0].name, "Zoë"), TranscriptPart(made[1].name)]
        joined = await client.join_transcripts(parts)
        assert joined.kind == "transcript"
        assert daemon.artifacts[joined.name][1].decode() == "Zoë: yes\n: no"


@both
@asynchronous
async def test_residual_or_original_can_be_transcribed(
    tmp_path: Path, recording: Path, kind: str
) -> None:
    async with (
        serving(tmp_path, FakeDaemon(auto=True)) as (daemon, front),
        Caller(kind, front.address) as client,
    ):
        for wanted in ("target", "residual", "original"):
            await client.run(recording, separate="music", transcribe_from=wanted)
        inputs = [request.stages[1].input for request in daemon.requests]
        assert inputs == [None, InputRef(role="residual"), daemon.requests[2].source]


@both
@asynchronous
async def test_run_returns_a_failed_job_with_its_reason(
    tmp_path: Path, recording: Path, kind: str
) -> None:
    daemon = FakeDaemon(auto=True)
    async with serving(tmp_path, daemon) as (_, front), Caller(kind, front.address) as client:
        result = await client.run(recording, separate="fail")
        assert not result.succeeded
        assert result.files == {}
        assert result.snapshot.job.stages[0].state is StageState.FAILED
        assert result.metrics["failure"] == {
            "reason": "MODEL_CORRUPT",
            "message": "the model is damaged",
            "numbers": {"offset_bytes": "7"},
        }


@pytest.mark.parametrize(
    ("plan", "kind", "reason"),
    [
        (Plan(transcribe=False), "audio", "NO_STAGES"),
        (Plan(analyze="poem"), "audio", "TEMPLATE_UNKNOWN"),
        (Plan(analyze="summary", prompt="why?"), "audio", "PARAMETER_INVALID"),
        (Plan(separate=""), "audio", "PARAMETER_INVALID"),
        (Plan(language="en-GB"), "audio", "PARAMETER_INVALID"),
        (Plan(transcribe=False, analyze="summary"), "audio", "TRANSCRIPT_NEEDED"),
        (Plan(), "transcript", "AUDIO_NEEDED"),
        (Plan(transcribe_from="residual"), "audio", "NOTHING_SEPARATED"),
        (Plan(clips=(("SPEAKER_01", Path("a.wav")),)), "audio", "PARAMETER_INVALID"),
    ],
)
def test_plan_that_cannot_be_done_is_refused_before_anything_is_sent(
    plan: Plan, kind: str, reason: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        plan.check(kind)
    assert caught.value.reason == reason


def test_transcript_can_be_analyzed_by_itself() -> None:
    Plan(transcribe=False, prompt="Who came?").check("transcript")


def test_title_of_a_long_file_name_is_cut_to_what_is_allowed() -> None:
    assert len(Plan().request("artifacts/1", "x" * 255).title) == 200


def test_filename_of_any_bytes_can_be_sent(tmp_path: Path) -> None:
    from coscheduler.client.transfer import label_of

    assert label_of(Path("caf\udce9.wav"), None, None).filename == "caf?.wav"


def test_address_is_the_argument_or_the_variable_or_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.delenv("COSCHEDULER_SERVER", raising=False)
    assert resolve_address(None) == "unix:/run/user/7/coscheduler.sock"
    monkeypatch.setenv("COSCHEDULER_SERVER", "127.0.0.1:7")
    assert resolve_address(None) == "127.0.0.1:7"
    assert resolve_address("unix:/x") == "unix:/x"


def test_socket_of_a_stranger_at_the_default_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("COSCHEDULER_SERVER", raising=False)
    (tmp_path / "coscheduler.sock").touch()
    assert resolve_address(None) == f"unix:{tmp_path}/coscheduler.sock"
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    if mine == 0:
        os.chown(tmp_path / "coscheduler.sock", 12345, -1)
    with pytest.raises(Refused) as caught:
        resolve_address(None)
    assert caught.value.reason == "SOCKET_FOREIGN"


def test_pauses_double_up_to_their_limits_and_end() -> None:
    patience = Patience(Backoff(first_ms=10, max_ms=25, patience_ms=80))
    lost = Unavailable("LOST", "lost")
    assert [patience.pause_ms(lost) for _ in range(3)] == [10, 20, 25]
    assert patience.pause_ms(lost) == 25
    with pytest.raises(Unavailable):
        patience.pause_ms(lost)
    patience.renew()
    assert patience.pause_ms(lost) == 10
    with pytest.raises(NotFound):
        patience.pause_ms(NotFound("GONE", "gone"))


def test_client_needs_no_torch_and_no_numpy() -> None:
    import subprocess
    import sys

    code = (
        "import sys, coscheduler.client; "
        "print([m for m in ('torch', 'numpy', 'coscheduler.runtime.daemon') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
