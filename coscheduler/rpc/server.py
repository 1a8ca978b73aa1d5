"""The daemon's front door: one grpc.aio server around a `DaemonApi`, opened, drained and closed.

Shutting down, in this order: health says NOT_SERVING and new calls are refused; calls that move
data or change state end; the daemon lets running stages end, while watchers still see them; then
all stops.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from coscheduler.config import ServerSettings, Settings
from coscheduler.rpc import listen
from coscheduler.rpc.guard import Guard
from coscheduler.rpc.services import ArtifactService, ChatService, GpuService, JobService
from coscheduler.runtime.api import DaemonApi
from coscheduler.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    chat_pb2,
    chat_pb2_grpc,
    gpu_pb2,
    gpu_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
)

SERVICES = (
    job_pb2.DESCRIPTOR.services_by_name["JobService"].full_name,
    artifact_pb2.DESCRIPTOR.services_by_name["ArtifactService"].full_name,
    gpu_pb2.DESCRIPTOR.services_by_name["GpuService"].full_name,
    chat_pb2.DESCRIPTOR.services_by_name["ChatService"].full_name,
)
KEEPALIVE_TIMEOUT_MS = 10_000
PING_INTERVAL_MS_MIN = 5_000  # a client that pings more often is cut off
METADATA_BYTES_MAX = 64 * 1024
LAST_WORDS_SECONDS = 0.25  # for streams to deliver what is already on its way to their readers

log = logging.getLogger(__name__)


class Daemon(DaemonApi, Protocol):
    """A daemon that can also be closed."""

    async def close(self, drain_ms: int) -> None:
        """Let running stages end for at most `drain_ms`, then stop everything."""
        ...


def server_options(settings: ServerSettings) -> list[tuple[str, int]]:
    """Channel arguments of the server: every bound that grpc can hold for us."""
    return [
        ("grpc.max_receive_message_length", settings.message_bytes_max),
        ("grpc.max_send_message_length", settings.message_bytes_max),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.keepalive_time_ms", settings.keepalive_ms),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS_MIN),
        ("grpc.so_reuseport", 0),  # else two daemons would share a port, and its calls, silently
    ]


class Front:
    """A running server. Use `open_front`."""

    def __init__(self, daemon: Daemon, settings: Settings) -> None:
        self.address = ""
        self._daemon = daemon
        self._drain_ms_max = settings.server.drain_ms_max
        self._guard = Guard()
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[self._guard], options=server_options(settings.server)
        )
        jobs = JobService(daemon, settings.server.message_bytes_max)
        job_pb2_grpc.add_JobServiceServicer_to_server(jobs, self._server)
        artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(
            ArtifactService(daemon), self._server
        )
        gpu_pb2_grpc.add_GpuServiceServicer_to_server(GpuService(daemon), self._server)
        chat_pb2_grpc.add_ChatServiceServicer_to_server(ChatService(daemon), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self, address: str) -> None:
        """Listen. Raises what `listen.bind` raises."""
        self.address = listen.bind(self._server, address)
        await self._server.start()
        for service in ("", *SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """Drain and stop the server and its daemon, within `drain_ms_max` and a moment."""
        deadline = time.monotonic() + self._drain_ms_max / 1000
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.create_task(self._server.stop(self._drain_ms_max / 1000))
        await self._guard.settle(self._drain_ms_max)
        await self._daemon.close(max(0, round(1000 * (deadline - time.monotonic()))))
        await self._server.stop(LAST_WORDS_SECONDS)
        await stopping
        if self.address.startswith("unix:"):
            listen.socket_path(self.address).unlink(missing_ok=True)


async def open_front(daemon: Daemon, settings: Settings) -> Front:
    """Start serving `daemon` at `settings.listen_address`. On an error nothing listens."""
    front = Front(daemon, settings)
    await front.start(settings.listen_address)
    return front


async def serve(
    settings: Settings,
    ready: Callable[[str], None] | None = None,
    *,
    until_stdin_closes: bool = False,
) -> None:
    """Run the daemon until SIGTERM or SIGINT, then shut down gracefully.

    `ready` is called with the address once calls are answered. With `until_stdin_closes` the end of
    standard input also ends the daemon: a parent that dies takes it along. A second signal does not
    wait for the drain. Raises what opening the daemon and listening raise.
    """
    listen.check(settings.listen_address)  # before any model is looked at
    from coscheduler.runtime.opening import open_daemon

    await serve_daemon(open_daemon, settings, ready, until_stdin_closes=until_stdin_closes)


async def serve_daemon(
    open_daemon: Callable[[Settings], Awaitable[Daemon]],
    settings: Settings,
    ready: Callable[[str], None] | None = None,
    *,
    until_stdin_closes: bool = False,
) -> None:
    """`serve` for any daemon, for tests and for daemons of one's own."""
    stop = _stop_requests(until_stdin_closes)
    daemon = await open_daemon(settings)
    try:
        front = await open_front(daemon, settings)
    except BaseException:
        await daemon.close(0)
        raise
    if ready is not None:
        ready(front.address)
    await stop.wait()
    log.info("stopping: draining for at most %d ms", settings.server.drain_ms_max)
    await front.close()


def _stop_requests(until_stdin_closes: bool) -> asyncio.Event:
    """An event that is set by the first SIGTERM or SIGINT, or by the end of standard input.

    The handlers go with the first signal, so that a second one ends the process as usual.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def asked() -> None:
        stop.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    def readable() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin.fileno())
            stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)
    if until_stdin_closes:
        loop.add_reader(sys.stdin.fileno(), readable)
    return stop
