"""Where engine processes come from: a small process that imports once and forks many times.

It is exec'ed by the daemon, imports the heavy libraries without touching CUDA, freezes the garbage
collector (a collection after the fork would un-share the pages), and forks only while it has ONE
thread. It never imports grpc. It dies with the daemon, and its children die with it.

Over a SEQPACKET socket: {"spawn": engine, "early": bool, "id": n} with the child's end of a stream
socket attached; back come {"spawned": pid, "id": n} or {"refused": why, "id": n} and, as children
end, {"ended": pid, "status": status}. An
early child is forked at once, with what is imported by then; the others wait for all of it.
"""

import ctypes
import gc
import importlib
import json
import logging
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from coscheduler import logs
from coscheduler.config import Settings
from coscheduler.core.model import EngineName

log = logging.getLogger("coscheduler.forkserver")

PR_SET_PDEATHSIG = 1
MESSAGE_BYTES_MAX = 64 * 1024
QUIET_SECONDS = 0.05  # nobody asked for this long: time for the next import

# Imported before the fork: heavy, shared by several engines, and leaving no thread behind. whisperx
# and pyannote start threads when imported, and llama.cpp may touch CUDA: they come after the fork.
PRELOAD = {
    EngineName.SEPARATION: ("numpy", "av", "torch"),
    EngineName.TRANSCRIPTION: (
        "numpy",
        "av",
        "torch",
        "torchaudio",
        "ctranslate2",
        "faster_whisper",
        "pandas",
        "nltk",
        "transformers.models.wav2vec2.modeling_wav2vec2",
        "lightning.pytorch",  # two thirds of what importing pyannote costs
    ),
    EngineName.ANALYSIS: ("numpy", "jinja2"),
}


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies; leave now if it is dead already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def thread_count() -> int:
    """Threads of this process, native ones included."""
    return len(list(Path("/proc/self/task").iterdir()))


def modules_to_preload(settings: Settings) -> list[str]:
    """What the configured engines import, each module once, in order."""
    if settings.engines == "fake":
        return []
    sections = (settings.separation, settings.transcription, settings.analysis)
    configured = [name for name, section in zip(EngineName, sections, strict=True) if section]
    return list(dict.fromkeys(module for name in configured for module in PRELOAD[name]))


def preload(module: str) -> None:
    """Import a module; one that is not installed fails later, in the child that needs it."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        log.warning("cannot preload %s: %s", module, error)


@dataclass(frozen=True)
class _Request:
    spawn: str
    early: bool
    id: int
    connection: socket.socket


class ForkServer:
    """The loop: requests, ended children, and in between one import after the other."""

    def __init__(self, control: socket.socket, settings: Settings) -> None:
        self._control = control
        self._settings = settings
        self._modules = modules_to_preload(settings)
        self._waiting: list[_Request] = []
        self._wakeup_read, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's to handle
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Until the daemon closes its end."""
        while True:
            sources = [self._control.fileno(), self._wakeup_read]
            pause = QUIET_SECONDS if self._modules else None
            ready, _, _ = select.select(sources, [], [], pause)
            if self._wakeup_read in ready:
                os.read(self._wakeup_read, 4096)
                self._reap()
            if self._control.fileno() in ready and not self._take_request():
                return
            if not ready and self._modules:
                self._preload_next()

    def _preload_next(self) -> None:
        """One more import; after the last one, those who waited get their processes."""
        preload(self._modules.pop(0))
        if not self._modules:
            gc.collect()
            gc.freeze()
            waiting, self._waiting = self._waiting, []
            for request in waiting:
                self._spawn(request)

    def _take_request(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES_MAX, 1)
        if not data:
            return False
        request = _Request(**json.loads(data), connection=socket.socket(fileno=descriptors[0]))
        if self._modules and not request.early:
            self._waiting.append(request)
        else:
            self._spawn(request)
        return True

    def _spawn(self, request: "_Request") -> None:
        with request.connection:
            if (count := thread_count()) != 1:
                why = f"the fork server has {count} threads; forking is unsafe"
                self._send({"refused": why, "id": request.id})
                return
            server_pid = os.getpid()
            pid = os.fork()
            if pid == 0:
                self._become_child(EngineName(request.spawn), request.connection, server_pid)
        self._send({"spawned": pid, "id": request.id})

    def _become_child(self, engine: EngineName, connection: socket.socket, server_pid: int) -> None:
        """Never returns: a child that fell back into the server's loop would be a second server."""
        status = 1
        try:
            die_with_parent(server_pid)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            os.close(self._wakeup_read)
            logs.configure(engine=engine)
            from coscheduler.engines import host

            host.main(engine, self._settings, connection)
            status = 0
        except BaseException:
            log.exception("the %s engine ended", engine)
        finally:
            logging.shutdown()
            os._exit(status)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._send({"ended": pid, "status": status})

    def _send(self, message: dict[str, object]) -> None:
        self._control.send(json.dumps(message).encode())


def main() -> None:
    """Usage: python -m coscheduler.engines.forkserver FD PARENT_PID; the settings come first."""
    control = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(int(sys.argv[2]))
    logs.configure(engine="forkserver")
    settings = Settings.model_validate_json(control.recv(MESSAGE_BYTES_MAX))
    ForkServer(control, settings).serve()


if __name__ == "__main__":
    main()
