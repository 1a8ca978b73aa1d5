"""Where engine processes come from: a small process that imports once and forks many times.

It is exec'ed by the daemon, imports the heavy libraries without touching CUDA, freezes the garbage
collector (a collection after the fork would un-share the pages), and forks only while it has ONE
thread. It never imports grpc. It dies with the daemon, and its children die with it.

Over a SEQPACKET socket: {"spawn": engine} with the child's end of a stream socket attached; back
come {"spawned": pid}, {"refused": why} and, as children end, {"ended": pid, "status": status}.
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
from pathlib import Path

from coscheduler import logs
from coscheduler.config import Settings
from coscheduler.core.model import EngineName

log = logging.getLogger("coscheduler.forkserver")

PR_SET_PDEATHSIG = 1
MESSAGE_BYTES_MAX = 64 * 1024

# Imported before the fork: heavy, shared by several engines, and leaving no thread behind. whisperx
# and pyannote start threads when imported, and llama.cpp may touch CUDA: they come after the fork.
PRELOAD = {
    EngineName.SEPARATION: ("numpy", "av", "torch", "transformers.models.t5.modeling_t5"),
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


def preload(engines: tuple[EngineName, ...]) -> None:
    """Import what the configured engines share; what is not installed fails later, in its child."""
    for engine in engines:
        for module in PRELOAD[engine]:
            try:
                importlib.import_module(module)
            except ImportError as error:
                log.warning("cannot preload %s for %s: %s", module, engine, error)
    gc.collect()
    gc.freeze()


class ForkServer:
    """The loop: one request at a time, children reaped as they end."""

    def __init__(self, control: socket.socket, settings: Settings) -> None:
        self._control = control
        self._settings = settings
        self._wakeup_read, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's to handle
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Until the daemon closes its end."""
        while True:
            sources = [self._control.fileno(), self._wakeup_read]
            ready, _, _ = select.select(sources, [], [])
            if self._wakeup_read in ready:
                os.read(self._wakeup_read, 4096)
                self._reap()
            if self._control.fileno() in ready and not self._take_request():
                return

    def _take_request(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES_MAX, 1)
        if not data:
            return False
        with socket.socket(fileno=descriptors[0]) as connection:
            self._send(self._spawn(EngineName(json.loads(data)["spawn"]), connection))
        return True

    def _spawn(self, engine: EngineName, connection: socket.socket) -> dict[str, object]:
        if thread_count() != 1:
            return {"refused": f"the fork server has {thread_count()} threads; forking is unsafe"}
        server_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_child(engine, connection, server_pid)
        return {"spawned": pid}

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
    sections = (settings.separation, settings.transcription, settings.analysis)
    configured = [name for name, section in zip(EngineName, sections, strict=True) if section]
    server = ForkServer(control, settings)
    if settings.engines == "real":
        preload(tuple(configured))
    server.serve()


if __name__ == "__main__":
    main()
