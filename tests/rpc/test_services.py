"""Every rpc through a real server and raw stubs, on a real socket."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from coscheduler.rpc import convert
from coscheduler.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    gpu_pb2,
    gpu_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
)
from tests.rpc.fake_daemon import FakeDaemon, busy_gpu
from tests.rpc.support import asynchronous, eventually, serving

TRANSCRIBE = job_pb2.Stage(transcribe=job_pb2.TranscribeParameters(language="en"))
SOURCE = job_pb2.Input(artifact="artifacts/0000")


class Stubs:
    """The three services behind one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.jobs = job_pb2_grpc.JobServiceStub(channel)
        self.artifacts = artifact_pb2_grpc.ArtifactServiceStub(channel)
        self.gpu = gpu_pb2_grpc.GpuServiceStub(channel)


@asynccontextmanager
async def stubs(folder: Path, **server: Any) -> AsyncIterator[tuple[FakeDaemon, Stubs]]:
    async with (
        serving(folder, **server) as (daemon, front),
        grpc.aio.insecure_channel(front.address) as channel,
    ):
        yield daemon, Stubs(channel)


def create(request_id: str = "r", **job: Any) -> job_pb2.CreateJobRequest:
    job = {"stages": [TRANSCRIBE], "source": SOURCE, **job}
    return job_pb2.CreateJobRequest(request_id=request_id, job=job_pb2.Job(**job))


def upload(*parts: object) -> list[artifact_pb2.WriteArtifactRequest]:
    made = []
    for part in parts:
        if isinstance(part, bytes):
            made.append(artifact_pb2.WriteArtifactRequest(data=part))
        elif isinstance(part, artifact_pb2.ArtifactMetadata):
            made.append(artifact_pb2.WriteArtifactRequest(metadata=part))
        else:
            assert isinstance(part, artifact_pb2.FinishWrite)
            made.append(artifact_pb2.WriteArtifactRequest(finish_write=part))
    return made


METADATA = artifact_pb2.ArtifactMetadata(media_type="audio/wav", filename="a.wav")


def finish(data: bytes) -> artifact_pb2.FinishWrite:
    return artifact_pb2.FinishWrite(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def reason(error: grpc.aio.AioRpcError) -> str:
    found: dict[Any, Any] = dict(error.trailing_metadata())
    info = ErrorInfo()
    assert Status.FromString(found["grpc-status-details-bin"]).details[0].Unpack(info)
    return str(info.reason)


@asynchronous
async def test_create_get_and_repeat_by_request_id(tmp_path: Path) -> None:
    async with stubs(tmp_path) as (daemon, stub):
        made = await stub.jobs.CreateJob(create(title="a.wav"))
        assert made.name == "jobs/0000"
        assert made.state == job_pb2.Job.STATE_QUEUED
        assert made.priority == job_pb2.PRIORITY_NORMAL
        assert made.stages[0].transcribe.language == "en"
        assert made.stages[0].input == made.source == SOURCE
        assert await stub.jobs.GetJob(job_pb2.GetJobRequest(name=made.name)) == made
        assert await stub.jobs.CreateJob(create(title="other")) == made
        assert len(daemon.jobs) == 1


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ({"priority": 17}, "PRIORITY_UNKNOWN"),
        ({"stages": [job_pb2.Stage()]}, "STAGE_EMPTY"),
        (
            {"stages": [job_pb2.Stage(separate=job_pb2.SeparateParameters())]},
            "PARAMETER_INVALID",
        ),
        (
            {"stages": [job_pb2.Stage(analyze=job_pb2.AnalyzeParameters(template="poem"))]},
            "TEMPLATE_UNKNOWN",
        ),
        (
            {"stages": [job_pb2.Stage(transcribe=job_pb2.TranscribeParameters(formats=[77]))]},  # type: ignore[list-item]
            "FORMAT_UNKNOWN",
        ),
    ],
)
@asynchronous
async def test_bad_job_is_an_invalid_argument(
    tmp_path: Path, job: dict[str, Any], expected: str
) -> None:
    async with stubs(tmp_path) as (daemon, stub):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.jobs.CreateJob(create(**job))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert reason(caught.value) == expected
        assert not daemon.jobs


@asynchronous
async def test_list_jobs_pages_newest_first_and_bounds_the_page(tmp_path: Path) -> None:
    async with stubs(tmp_path) as (_, stub):
        for index in range(5):
            await stub.jobs.CreateJob(create(f"r{index}"))
        first = await stub.jobs.ListJobs(job_pb2.ListJobsRequest(page_size=3))
        token = first.next_page_token
        rest = await stub.jobs.ListJobs(job_pb2.ListJobsRequest(page_size=3, page_token=token))
        assert [job.request_id for job in [*first.jobs, *rest.jobs]] == [
            "r4",
            "r3",
            "r2",
            "r1",
            "r0",
        ]
        assert not rest.next_page_token
        assert len((await stub.jobs.ListJobs(job_pb2.ListJobsRequest(page_size=9999))).jobs) == 5
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.jobs.ListJobs(job_pb2.ListJobsRequest(page_size=-1))
        assert reason(caught.value) == "PAGE_SIZE_NEGATIVE"


@asynchronous
async def test_list_of_long_prompts_comes_in_pages_that_fit(tmp_path: Path) -> None:
    async with stubs(tmp_path, message_bytes_max=10_000) as (_, stub):
        for index in range(7):
            ask = job_pb2.AnalyzeParameters(prompt="x" * 3000)
            await stub.jobs.CreateJob(create(f"r{index}", stages=[job_pb2.Stage(analyze=ask)]))
        seen: list[str] = []
        token = ""
        while True:
            page = await stub.jobs.ListJobs(job_pb2.ListJobsRequest(page_token=token))
            seen += [job.request_id for job in page.jobs]
            token = page.next_page_token
            if not token:
                break
        assert seen == [f"r{index}" for index in reversed(range(7))]


@asynchronous
async def test_watch_gives_the_changes_and_the_end(tmp_path: Path) -> None:
    async with stubs(tmp_path) as (daemon, stub):
        daemon.auto = True
        hang = job_pb2.Stage(separate=job_pb2.SeparateParameters(prompt="hang"))
        made = await stub.jobs.CreateJob(create(stages=[hang]))
        call = stub.jobs.WatchJob(job_pb2.WatchJobRequest(name=made.name))
        async for job in call:
            if job.stages[0].state == job_pb2.Stage.STATE_RUNNING:
                break
        assert job.progress == job_pb2.Progress(done_count=1, total_count=2, note="half way")
        await stub.jobs.CancelJob(job_pb2.CancelJobRequest(name=made.name))
        rest = [job async for job in call]
        assert rest[-1].state == job_pb2.Job.STATE_CANCELLED
        assert await call.code() is grpc.StatusCode.OK


@asynchronous
async def test_watch_of_a_job_that_has_ended_gives_its_end_once(tmp_path: Path) -> None:
    async with stubs(tmp_path) as (daemon, stub):
        daemon.auto = True
        made = await stub.jobs.CreateJob(create())
        await eventually(lambda: daemon.jobs[made.name].job.state.is_final)
        call = stub.jobs.WatchJob(job_pb2.WatchJobRequest(name=made.name))
        (only,) = [job async for job in call]
        assert only.state == job_pb2.Job.STATE_SUCCEEDED
        assert only.stages[0].real_time_factor == 0.25
        assert {output.role for output in only.stages[0].outputs} >= {"transcript", "srt"}


@asynchronous
async def test_watch_that_is_left_ends_in_the_daemon_and_not_the_job(tmp_path: Path) -> None:
    async with stubs(tmp_path) as (daemon, stub):
        made = await stub.jobs.CreateJob(create())
        call = stub.jobs.WatchJob(job_pb2.WatchJobRequest(name=made.name))
        await call.read()
        assert daemon.watch_count == 1
        call.cancel()
        await eventually(lambda: daemon.watch_count == 0)
        assert not daemon.jobs[made.name].job.state.is_final


@asynchronous
async def test_cancel_then_delete(tmp_path: Path) -> None:
    async with stubs(tmp_path) as (daemon, stub):
        made = await stub.jobs.CreateJob(create())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.jobs.DeleteJob(job_pb2.DeleteJobRequest(name=made.name))
        assert reason(caught.value) == "JOB_NOT_FINAL"
        ended = await stub.jobs.CancelJob(job_pb2.CancelJobRequest(name=made.name))
        assert ended.state == job_pb2.Job.STATE_CANCELLED
        await stub.jobs.DeleteJob(job_pb2.DeleteJobRequest(name=made.name))
        assert not daemon.jobs


@pytest.mark.parametrize(
    ("service", "method", "request_type"),
    [
        ("jobs", "GetJob", job_pb2.GetJobRequest),
        ("jobs", "CancelJob", job_pb2.CancelJobRequest),
        ("jobs", "DeleteJob", job_pb2.DeleteJobRequest),
        ("artifacts", "GetArtifact", artifact_pb2.GetArtifactRequest),
        ("artifacts", "DeleteArtifact", artifact_pb2.DeleteArtifactRequest),
    ],
)
@asynchronous
async def test_unknown_name_is_not_found(
    tmp_path: Path, service: str, method: str, request_type: type
) -> None:
    async with stubs(tmp_path) as (_, stub):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(getattr(stub, service), method)(request_type(name="none/1"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@asynchronous
async def test_unknown_name_is_not_found_by_streams_too(tmp_path: Path) -> None:
    async with stubs(tmp_path) as (_, stub):
        for call in (
            stub.jobs.WatchJob(job_pb2.WatchJobRequest(name="none")),
            stub.artifacts.ReadArtifact(artifact_pb2.ReadArtifactRequest(name="none")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@asynchronous
async def test_upload_read_from_an_offset_list_and_delete(tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    async with stubs(tmp_path) as (daemon, stub):
        messages = upload(METADATA, data[:100_000], data[100_000:], finish(data))
        made = await stub.artifacts.WriteArtifact(iter(messages))
        assert (made.size_bytes, made.filename) == (256_000, "a.wav")
        assert made.kind == artifact_pb2.Artifact.KIND_AUDIO
        assert made.audio.sample_rate_hz == 16_000
        assert not daemon.open_writers

        for offset in (0, 1, 70_000, 255_999, 256_000):
            request = artifact_pb2.ReadArtifactRequest(name=made.name, offset_bytes=offset)
            got = b"".join([part.data async for part in stub.artifacts.ReadArtifact(request)])
            assert got == data[offset:]
        listed = await stub.artifacts.ListArtifacts(artifact_pb2.ListArtifactsRequest())
        assert list(listed.artifacts) == [made]
        of_job = artifact_pb2.ListArtifactsRequest(job="jobs/1")
        assert not (await stub.artifacts.ListArtifacts(of_job)).artifacts
        await stub.artifacts.DeleteArtifact(artifact_pb2.DeleteArtifactRequest(name=made.name))
        assert not daemon.artifacts


@pytest.mark.parametrize("offset", [-1, 257])
@asynchronous
async def test_offset_outside_is_refused(tmp_path: Path, offset: int) -> None:
    async with stubs(tmp_path) as (daemon, stub):
        name = daemon.store(b"x" * 256, "file", "", "f").name
        request = artifact_pb2.ReadArtifactRequest(name=name, offset_bytes=offset)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.artifacts.ReadArtifact(request).read()
        assert reason(caught.value) == "OFFSET_OUT_OF_RANGE"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], "UPLOAD_MALFORMED"),
        ([b"data first"], "UPLOAD_MALFORMED"),
        ([finish(b"")], "UPLOAD_MALFORMED"),
        ([METADATA], "UPLOAD_INCOMPLETE"),
        ([METADATA, b"half"], "UPLOAD_INCOMPLETE"),
        ([METADATA, METADATA], "UPLOAD_MALFORMED"),
        ([METADATA, b"half", finish(b"half and half")], "UPLOAD_INCOMPLETE"),
        ([METADATA, b"half", finish(b"flah")], "CHECKSUM_MISMATCH"),
        ([artifact_pb2.ArtifactMetadata(filename="a/b")], "FILENAME_INVALID"),
    ],
)
@asynchronous
async def test_upload_that_does_not_end_well_leaves_nothing(
    tmp_path: Path, parts: list[object], expected: str
) -> None:
    async with stubs(tmp_path) as (daemon, stub):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.artifacts.WriteArtifact(iter(upload(*parts)))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert reason(caught.value) == expected
        assert not daemon.artifacts
        assert not daemon.open_writers


@pytest.mark.parametrize("how", ["cancel", "close"])
@asynchronous
async def test_client_that_dies_in_an_upload_leaves_nothing(tmp_path: Path, how: str) -> None:
    async with serving(tmp_path) as (daemon, front):
        channel = grpc.aio.insecure_channel(front.address)
        call = Stubs(channel).artifacts.WriteArtifact()
        for message in upload(METADATA, b"x" * 100_000):
            await call.write(message)
        await eventually(lambda: bool(daemon.open_writers))
        if how == "cancel":
            call.cancel()
        await channel.close()
        await eventually(lambda: not daemon.open_writers)
        assert not daemon.artifacts
        async with grpc.aio.insecure_channel(front.address) as again:
            assert await Stubs(again).gpu.GetGpu(gpu_pb2.GetGpuRequest())


@asynchronous
async def test_message_over_the_limit_is_refused_and_the_server_goes_on(tmp_path: Path) -> None:
    async with stubs(tmp_path, message_bytes_max=10_000) as (daemon, stub):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.artifacts.WriteArtifact(iter(upload(METADATA, b"x" * 20_000)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.jobs.CreateJob(create(title="x" * 20_000))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not daemon.artifacts
        assert (await stub.gpu.GetGpu(gpu_pb2.GetGpuRequest())).device == "cpu"


@asynchronous
async def test_gpu(tmp_path: Path) -> None:
    async with stubs(tmp_path) as (daemon, stub):
        daemon.snapshot = busy_gpu()
        message = await stub.gpu.GetGpu(gpu_pb2.GetGpuRequest())
        assert message.lines[2].state == gpu_pb2.LedgerLine.STATE_RELEASING
        assert message.engines[0].pid == 4711
        assert convert.gpu_from_wire(message) == daemon.snapshot
