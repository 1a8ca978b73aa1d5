"""A daemon of one's own for the length of one call, where none is running.

It listens on a socket in a private temporary folder and keeps its jobs in a store of its own beside
the config's, so that calls can run side by side and leave nothing behind. Its standard input is a
pipe from us: it ends when we do, however we end.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import coscheduler
from coscheduler import config
from coscheduler.cli.say import notice
from coscheduler.client import Client
from coscheduler.client.channel import Backoff, own
from coscheduler.errors import Unavailable

READY_SECONDS_MAX = 300.0  # a first start may have to read whole checkpoints
STOP_SECONDS_MAX = 15.0
LOG_LINES_SHOWN = 5
STORE_PREFIX = "call-"


@contextmanager
def reachable(
    server: str | None, config_path: Path | None, options: Sequence[str] = ()
) -> Iterator[str]:
    """The address of a daemon: `server`, else a running one, else one started for this call, with
    these further `options`.

    Raises Unavailable SERVER_UNREACHABLE, NO_CONFIG or DAEMON_DIED, and InvalidInput for a config
    that is wrong.
    """
    if server:
        require(server)
        yield server
        return
    settings_path = find_config(config_path)
    settings = config.load(settings_path) if settings_path else config.Settings()
    address = settings.server.listen or own(config.default_address())
    if answers(address):
        yield address
        return
    if settings_path is None:
        raise Unavailable(
            "NO_CONFIG",
            f"no daemon answers at {address}, and there is no config to start one "
            f"with; pass --config FILE or set COSCHEDULER_CONFIG",
        )
    with started(settings_path, options) as address:
        yield address


def require(address: str) -> None:
    """Raises Unavailable SERVER_UNREACHABLE when no daemon answers at the address."""
    with Client(address, backoff=Backoff(patience_ms=0)) as client:
        client.gpu()


def answers(address: str) -> bool:
    """Whether a daemon answers at the address."""
    try:
        require(address)
    except Unavailable:
        return False
    return True


def find_config(given: Path | None) -> Path | None:
    """The config given, else the user's own, else, with a notice, a clone's demonstration."""
    if given is not None:
        return given
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    own = Path(base) / "coscheduler" / "config.toml"
    if own.exists():
        return own
    demo = Path(coscheduler.__file__).resolve().parent.parent / "configs" / "demo.toml"
    if not demo.exists():
        return None
    notice(
        f"There is no config: using {demo}, whose small models know synthetic speech. "
        f"Pass --config FILE, or write {own}, for real ones."
    )
    return demo


def serve_command(config_path: Path, address: str, data_dir: str) -> list[str]:
    """The command that starts the daemon."""
    return [
        sys.executable, "-m", "coscheduler", "serve", "--config", str(config_path),
        "--listen", address, "--data-dir", data_dir, "--until-stdin-closes",
    ]  # fmt: skip


@contextmanager
def started(config_path: Path, options: Sequence[str] = ()) -> Iterator[str]:
    """Start a daemon with further `options`, yield its address, stop it and delete its store.

    Raises Unavailable DAEMON_DIED with its words.
    """
    stores = config.load(config_path).data_dir.parent
    stores.mkdir(parents=True, exist_ok=True)
    _sweep(stores)
    with (
        tempfile.TemporaryDirectory(prefix="coscheduler-") as folder,
        tempfile.TemporaryDirectory(prefix=STORE_PREFIX, dir=stores) as data_dir,
    ):
        log = Path(folder) / "daemon.log"
        address = f"unix:{folder}/d.sock"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [*serve_command(config_path, address, data_dir), *options],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                start_new_session=True,  # a Ctrl-C is ours to answer: the job comes first
            )  # fmt: skip
        try:
            _await_ready(process, log)
            yield address
        finally:
            _stop(process)


def _sweep(stores: Path) -> None:
    """Delete the stores of calls that were killed: those whose lock nobody holds."""
    for store in stores.glob(f"{STORE_PREFIX}*"):
        with contextlib.suppress(OSError), (store / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(store, ignore_errors=True)


def _await_ready(process: "subprocess.Popen[bytes]", log: Path) -> None:
    assert process.stdout is not None
    impatience = threading.Timer(READY_SECONDS_MAX, process.kill)
    impatience.start()
    try:
        ready = any(line.startswith(b"listening on ") for line in process.stdout)
    finally:
        impatience.cancel()
    if not ready:
        words = last_words(log.read_text(encoding="utf-8", errors="replace"))
        raise Unavailable(
            "DAEMON_DIED",
            f"the daemon did not start: {words}",
            exit_status=process.wait(),
        )


def last_words(log: str) -> str:
    """The sentence with which a daemon gave up, else the end of its log."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else " / ".join(lines[-LOG_LINES_SHOWN:]) or "it said nothing"


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()  # its engines end with it; its jobs are on disk
        process.wait()
    for pipe in (process.stdin, process.stdout):
        _close(pipe)


def _close(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
