"""Engine processes from the daemon's side: the fork server, its children, and their endings.

A `Child` is a pid, a stream of messages, and a future that is done when the process has ended. When
the fork server itself ends, the kernel ends its children with it; the next spawn starts another.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from coscheduler.config import Settings
from coscheduler.core.model import EngineName, Failure
from coscheduler.engines import messages as msg
from coscheduler.errors import EngineFault

log = logging.getLogger(__name__)

CONTROL_BYTES_MAX = 64 * 1024
GONE_SECONDS_MAX = 2.0


@dataclass(eq=False)
class Child:
    """One engine process. `ended` gets its wait status."""

    engine: EngineName
    pid: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    ended: asyncio.Future[int]
    baseline_bytes: int = 0  # anonymous memory right after the fork
    context_bytes: int = 0
    is_started: bool = False
    doom: Failure | None = None  # why we ended it, when it was us
    is_expected_to_end: bool = False

    def send(self, request: msg.Request) -> None:
        """Queue a request; a closed pipe shows in `ended`, not here."""
        self.writer.write(msg.encode_request(request))

    async def wait(self) -> int:
        """The wait status once the process has ended. Being cancelled here changes nothing."""
        await asyncio.wait({self.ended})
        return self.ended.result()

    def end(self, why: Failure | None = None) -> None:
        """End the process now, if it has not ended; the first reason given is kept."""
        if not self.ended.done():
            self.doom = self.doom or why
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class Children:
    """The fork server and every process that came from it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._listener: asyncio.Task[None] | None = None
        self._spawning: dict[int, asyncio.Future[int]] = {}
        self._requests = itertools.count(1)
        self._children: dict[int, Child] = {}
        self._early_ends: dict[int, int] = {}
        self._lock = asyncio.Lock()
        self._is_closing = False

    @property
    def server_pid(self) -> int:
        """The fork server's process, 0 when there is none."""
        return self._process.pid if self._process else 0

    async def start(self) -> None:
        """Exec the fork server; it imports in the background, a spawn waits until it is done.

        Raises EngineFault FORK_FAILED.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "coscheduler.engines.forkserver",
                str(theirs.fileno()), str(os.getpid()),
                pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL,
                env=environment(self._settings),
            )  # fmt: skip
        self._control = ours
        try:
            settings_json = self._settings.model_dump_json().encode()
            await asyncio.get_running_loop().sock_sendall(ours, settings_json)
        except OSError as error:
            ours.close()
            await self._process.wait()
            self._process = self._control = None
            why = f"the fork server ended at its start: {error}"
            raise EngineFault("FORK_FAILED", why) from error
        self._listener = asyncio.create_task(self._listen(ours), name="fork server")

    async def spawn(self, engine: EngineName, *, early: bool = False) -> Child:
        """A fresh process for the engine; an early one does not wait for the fork server's imports.

        Raises EngineFault FORK_FAILED.
        """
        async with self._lock:
            if self._process is None:
                await self.start()
        pid, connection = await self._fork(engine, early)
        reader, writer = await asyncio.open_unix_connection(
            sock=connection, limit=msg.LINE_BYTES_MAX
        )
        child = Child(engine, pid, reader, writer, asyncio.get_running_loop().create_future())
        self._children[pid] = child
        if pid in self._early_ends:  # it ended before we had a name for it
            self._end(pid, self._early_ends.pop(pid))
        return child

    async def _fork(self, engine: EngineName, early: bool) -> tuple[int, socket.socket]:
        assert self._control is not None
        ours, theirs = socket.socketpair()
        number = next(self._requests)
        self._spawning[number] = asyncio.get_running_loop().create_future()
        request = json.dumps({"spawn": engine, "early": early, "id": number}).encode()
        try:
            with theirs:
                socket.send_fds(self._control, [request], [theirs.fileno()])
            pid = await self._spawning[number]
        except OSError as error:
            ours.close()
            raise EngineFault("FORK_FAILED", f"the fork server is gone: {error}") from error
        except BaseException:
            ours.close()
            raise
        finally:
            del self._spawning[number]
        return pid, ours

    async def _listen(self, control: socket.socket) -> None:
        """Until the fork server ends: then everything that it forked has ended too."""
        loop = asyncio.get_running_loop()
        while data := await _receive(loop, control):
            self._take(json.loads(data))
        if not self._is_closing:
            log.error("the fork server ended")
        control.close()
        if self._process is not None:
            await self._process.wait()
        self._process = self._control = None
        for waiting in self._spawning.values():
            if not waiting.done():
                waiting.set_exception(EngineFault("FORK_FAILED", "the fork server ended"))
        for pid in list(self._children):
            self._end(pid, signal.SIGKILL)

    def _take(self, message: dict[str, int | str]) -> None:
        if "ended" in message:
            self._end(int(message["ended"]), int(message["status"]))
            return
        waiting = self._spawning.get(int(message["id"]))
        if waiting is None or waiting.done():
            return
        if "spawned" in message:
            waiting.set_result(int(message["spawned"]))
        else:
            waiting.set_exception(EngineFault("FORK_FAILED", str(message["refused"])))

    def _end(self, pid: int, status: int) -> None:
        child = self._children.pop(pid, None)
        if child is None:
            self._early_ends[pid] = status
            return
        child.ended.set_result(status)
        child.writer.close()

    async def close(self) -> None:
        """End the fork server and every child; they are gone when this returns."""
        self._is_closing = True
        process, listener = self._process, self._listener
        if process is None or listener is None:
            return
        pids = list(self._children)
        for child in list(self._children.values()):
            child.end()
        with contextlib.suppress(ProcessLookupError):
            process.kill()  # it may be in the middle of an import and reap nobody
        await process.wait()
        await listener
        await asyncio.to_thread(_wait_until_gone, pids)


async def _receive(loop: asyncio.AbstractEventLoop, control: socket.socket) -> bytes:
    try:
        return await loop.sock_recv(control, CONTROL_BYTES_MAX)
    except OSError:
        return b""


def environment(settings: Settings) -> dict[str, str]:
    """What must be set before the libraries are imported. Passive waiting: with GNU OpenMP's spin
    barriers two engines on shared cores slow each other a hundredfold.
    """
    threads = str(settings.device.threads)
    return os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
        "GGML_NO_BACKTRACE": "1",  # an abort would start a debugger and wait
        "MALLOC_ARENA_MAX": "2",
        "TOKENIZERS_PARALLELISM": "false",
        "PYANNOTE_METRICS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: with the pid it names it for good."""
    stat = _stat(pid)
    return int(stat[19]) if stat else None


def is_gone(pid: int) -> bool:
    """Whether nothing is left of the process but, perhaps, its entry: a zombie has given its memory
    back once its last thread has ended.
    """
    stat = _stat(pid)
    return not stat or (stat[0] in "ZX" and int(stat[17]) <= 1)


def _stat(pid: int) -> list[str]:
    """What /proc/PID/stat says from the state on, see proc(5); nothing without a process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def _wait_until_gone(pids: list[int]) -> None:
    """Killed processes need a moment. They may stay zombies for longer: once the fork server is
    gone, only init reaps them, and some inits look once a second.
    """
    deadline = time.monotonic() + GONE_SECONDS_MAX
    while not all(map(is_gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.005)


def end_leftovers(processes: list[tuple[int, int]]) -> int:
    """Kill the recorded processes that still are what they were; returns how many there were."""
    count = 0
    for pid, ticks in processes:
        if start_ticks(pid) == ticks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                count += 1
    return count
