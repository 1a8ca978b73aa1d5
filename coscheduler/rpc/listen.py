"""Where the daemon may listen: a unix socket for one user, or 127.0.0.1. Nothing else.

A unix socket is made with mode 0600. Its folder is made with mode 0700 when it is missing; one that
is there must not let other users put a socket of their own in our socket's place. A socket file
that nobody answers at is left from a daemon that was killed, and is removed.
"""

import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from coscheduler.errors import InvalidInput, Refused

SOCKET_PATH_BYTES_MAX = 107  # sun_path of sockaddr_un, less its closing zero
PORT_MAX = 65_535
PROBE_SECONDS = 1.0


def check(address: str) -> None:
    """Raises InvalidInput LISTEN_REFUSED unless `address` is unix:PATH or 127.0.0.1:PORT."""
    if address.startswith("unix:"):
        _check_path(address, socket_path(address))
    elif not re.fullmatch(r"127\.0\.0\.1:\d{1,5}", address) or _port(address) > PORT_MAX:
        raise InvalidInput(
            "LISTEN_REFUSED",
            f"refusing to listen on {address!r}: only unix:PATH or 127.0.0.1:PORT are allowed",
            address=address,
        )


def _check_path(address: str, path: Path) -> None:
    size_bytes = len(os.fsencode(path))
    if not path.is_absolute() or size_bytes > SOCKET_PATH_BYTES_MAX:
        raise InvalidInput(
            "LISTEN_REFUSED",
            f"the socket's path must be absolute and at most {SOCKET_PATH_BYTES_MAX} bytes long: "
            f"{address!r} has {size_bytes}",
            address=address,
            path_bytes=size_bytes,
            path_bytes_max=SOCKET_PATH_BYTES_MAX,
        )


def socket_path(address: str) -> Path:
    """The path in unix:PATH; unix:///PATH is the same."""
    path = address.removeprefix("unix:")
    return Path(path[2:] if path.startswith("//") else path)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def bind(server: grpc.aio.Server, address: str) -> str:
    """Bind the server and return its address, with the port that port 0 became.

    Raises InvalidInput LISTEN_REFUSED and Refused ADDRESS_IN_USE, LISTEN_FOLDER_SHARED or
    LISTEN_PATH_TAKEN.
    """
    check(address)
    if not address.startswith("unix:"):
        return f"127.0.0.1:{_add_port(server, address)}"
    path = socket_path(address)
    _prepare_folder(path.parent)
    _remove_stale(path)
    with _umask(0o177):  # the socket is born with mode 0600: there is no moment at which it is open
        _add_port(server, f"unix:{path}")
    return f"unix:{path}"


def _add_port(server: grpc.aio.Server, address: str) -> int:
    try:
        return server.add_insecure_port(address)
    except RuntimeError:
        raise Refused(
            "ADDRESS_IN_USE", f"cannot listen on {address}: is it in use?", address=address
        ) from None


def _prepare_folder(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.stat()
    writable_by_others = facts.st_mode & 0o022 and not facts.st_mode & stat.S_ISVTX
    if writable_by_others or facts.st_uid not in (0, os.getuid()):
        raise Refused(
            "LISTEN_FOLDER_SHARED",
            f"{folder} belongs to, or is writable by, other users; choose a folder of mode 0700",
            folder=folder,
            mode=oct(stat.S_IMODE(facts.st_mode)),
            owner_uid=facts.st_uid,
        )


def _remove_stale(path: Path) -> None:
    """Remove a socket file that nobody answers at. Raises Refused otherwise."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Refused("LISTEN_PATH_TAKEN", f"{path} is there and is not a socket", path=path)
    if somebody_answers(path):
        raise Refused("ADDRESS_IN_USE", f"another daemon answers at unix:{path}", path=path)
    path.unlink(missing_ok=True)


def somebody_answers(path: Path) -> bool:
    """Whether a process accepts connections at a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # it is there and will not talk to us: not ours to remove
    return True


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
