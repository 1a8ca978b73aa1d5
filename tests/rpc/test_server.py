"""Health, reflection, and the way down."""

import asyncio
import signal
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from coscheduler.client import AsyncClient
from coscheduler.errors import CoschedulerError, Unavailable
from coscheduler.rpc.server import SERVICES, open_front, serve_daemon, server_options
from coscheduler.runtime.api import JobRequest
from coscheduler.v1 import artifact_pb2_grpc, gpu_pb2, gpu_pb2_grpc
from tests.rpc.fake_daemon import FakeDaemon
from tests.rpc.support import QUICK, asynchronous, eventually, serving, settings_for
from tests.rpc.test_services import METADATA, finish, upload

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_the_services_are_these() -> None:
    assert SERVICES == (
        "coscheduler.v1.JobService",
        "coscheduler.v1.ArtifactService",
        "coscheduler.v1.GpuService",
        "coscheduler.v1.ChatService",
    )


@asynchronous
async def test_health_overall_and_of_each_service(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as (_, front),
        grpc.aio.insecure_channel(front.address) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="other"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@asynchronous
async def test_reflection_names_the_services_and_gives_their_files(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as (_, front),
        grpc.aio.insecure_channel(front.address) as channel,
    ):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest
        asked = [request(list_services=""), request(file_containing_symbol=SERVICES[0])]
        names, files = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
    assert {one.name for one in names.list_services_response.service} >= set(SERVICES)
    raw = files.file_descriptor_response.file_descriptor_proto[0]
    assert FileDescriptorProto.FromString(raw).name == "coscheduler/v1/job.proto"


@asynchronous
async def test_watchers_of_health_hear_of_the_shutdown(tmp_path: Path) -> None:
    front = await open_front(FakeDaemon(), settings_for(tmp_path))
    async with grpc.aio.insecure_channel(front.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        closing = asyncio.create_task(front.close())
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        await closing


@asynchronous
async def test_shutdown_lets_an_upload_end_and_refuses_new_calls(tmp_path: Path) -> None:
    daemon = FakeDaemon()
    front = await open_front(daemon, settings_for(tmp_path, drain_ms_max=20_000))
    async with grpc.aio.insecure_channel(front.address) as channel:
        first, second, last = upload(METADATA, b"abc", finish(b"abc"))
        call = artifact_pb2_grpc.ArtifactServiceStub(channel).WriteArtifact()
        await call.write(first)
        await eventually(lambda: bool(daemon.open_writers))
        closing = asyncio.create_task(front.close())
        await asyncio.sleep(0)
        async with AsyncClient(front.address) as late:
            while await answers(late):  # noqa: ASYNC110 only calls can tell
                await asyncio.sleep(0.005)
        assert daemon.drained_ms is None, "the daemon must not close under an upload"
        await call.write(second)
        await call.write(last)
        assert (await call).size_bytes == 3
        await closing
    assert daemon.drained_ms is not None
    assert 0 < daemon.drained_ms <= 20_000


async def answers(client: AsyncClient) -> bool:
    try:
        await client.gpu()
    except Unavailable:
        return False
    return True


@asynchronous
async def test_shutdown_does_not_wait_for_an_upload_longer_than_the_drain(tmp_path: Path) -> None:
    daemon = FakeDaemon()
    front = await open_front(daemon, settings_for(tmp_path, drain_ms_max=50))
    async with grpc.aio.insecure_channel(front.address) as channel:
        call = artifact_pb2_grpc.ArtifactServiceStub(channel).WriteArtifact()
        await call.write(upload(METADATA)[0])
        await eventually(lambda: bool(daemon.open_writers))
        await front.close()
        await eventually(lambda: not daemon.open_writers)
        assert daemon.drained_ms == 0
        assert not daemon.artifacts
        call.cancel()


@asynchronous
async def test_watchers_see_what_happens_while_the_daemon_drains(tmp_path: Path) -> None:
    class Draining(FakeDaemon):
        async def close(self, drain_ms: int) -> None:
            await self.cancel_job("jobs/0000")
            await eventually(lambda: self.watch_count == 0)
            await super().close(drain_ms)

    daemon = Draining()
    front = await open_front(daemon, settings_for(tmp_path, drain_ms_max=20_000))
    await daemon.create_job(JobRequest("r", ()))
    async with AsyncClient(front.address, backoff=QUICK) as client:
        watch = client.watch_job("jobs/0000")
        seen = [await anext(watch)]
        closing = asyncio.create_task(front.close())
        seen += [snapshot async for snapshot in watch]
        await closing
    assert seen[-1].job.state.is_final


@asynchronous
async def test_daemon_is_closed_when_the_address_cannot_be_had(tmp_path: Path) -> None:
    made: list[FakeDaemon] = []

    async def open_daemon(settings: object) -> FakeDaemon:
        made.append(FakeDaemon())
        return made[0]

    (tmp_path / "d.sock").write_text("in the way")
    with pytest.raises(CoschedulerError, match="not a socket"):
        await serve_daemon(open_daemon, settings_for(tmp_path))
    assert made[0].drained_ms == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@asynchronous
async def test_signal_drains_and_a_second_one_does_not_wait(tmp_path: Path, number: int) -> None:
    address = f"unix:{tmp_path / 'd.sock'}"
    command = [sys.executable, "-m", "tests.rpc.fake_daemon", "--listen", address]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == f"listening on {address}\n".encode()
    async with grpc.aio.insecure_channel(address) as channel, AsyncClient(address) as client:
        upload_stub = artifact_pb2_grpc.ArtifactServiceStub(channel)
        call = upload_stub.WriteArtifact()
        await call.write(upload(METADATA)[0])
        # Over the same connection: when this is answered, the upload has begun.
        assert await gpu_pb2_grpc.GpuServiceStub(channel).GetGpu(gpu_pb2.GetGpuRequest())
        process.send_signal(number)
        while await answers(client):  # noqa: ASYNC110 only calls can tell
            await asyncio.sleep(0.005)
        assert process.returncode is None, "the upload in flight holds it for its drain of 30 s"
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == -signal.SIGTERM
        call.cancel()


def test_options_hold_every_bound() -> None:
    settings = settings_for(Path("/x"), message_bytes_max=1000, keepalive_ms=2000).server
    options = dict(server_options(settings))
    assert options["grpc.max_receive_message_length"] == 1000
    assert options["grpc.max_send_message_length"] == 1000
    assert options["grpc.keepalive_time_ms"] == 2000
    assert options["grpc.so_reuseport"] == 0
