"""How a client reaches a daemon: the address, the channel's bounds, and when to try again."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coscheduler.config import default_address
from coscheduler.errors import CoschedulerError, Refused, Unavailable

SERVER_VARIABLE: Final = "COSCHEDULER_SERVER"
CHUNK_BYTES: Final = 256 * 1024
CALL_SECONDS_MAX: Final = 60.0  # for calls that neither move a file nor follow a job

# Both sides bound a message at 4 MiB unless configured; metadata holds a status with its numbers.
CHANNEL_OPTIONS: Final[list[tuple[str, int]]] = [
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_metadata_size", 64 * 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),  # one client's broken connection is not another's
    ("grpc.enable_http_proxy", 0),  # the daemon is on this machine
]


@dataclass(frozen=True)
class Backoff:
    """Pauses between attempts to reach a daemon again: doubling from `first_ms` up to `max_ms`.

    `patience_ms` bounds the sum of the pauses in a row.
    """

    first_ms: int = 100
    max_ms: int = 2_000
    patience_ms: int = 60_000


class Patience:
    """What is left of a `Backoff`; hearing from the daemon renews it."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self.renew()

    def renew(self) -> None:
        """Start anew: the daemon was heard."""
        self._next_ms = self._backoff.first_ms
        self._left_ms = self._backoff.patience_ms

    def pause_ms(self, error: CoschedulerError) -> int:
        """How long to wait now. Raises `error` when it is not Unavailable, or patience is over."""
        pause_ms = self._next_ms
        if not isinstance(error, Unavailable) or pause_ms > self._left_ms:
            raise error
        self._left_ms -= pause_ms
        self._next_ms = min(2 * pause_ms, self._backoff.max_ms)
        return pause_ms


def resolve_address(address: str | None) -> str:
    """The address given, else COSCHEDULER_SERVER, else the default socket of this user.

    Raises Refused SOCKET_FOREIGN when somebody else listens at the default.
    """
    return address or os.environ.get(SERVER_VARIABLE) or own(default_address())


def own(address: str) -> str:
    """The default address, unless the socket there belongs to another user.

    Without a runtime directory it lies below /tmp, where anybody may have been first; recordings
    must not go to a stranger.
    """
    try:
        owner_uid = Path(address.removeprefix("unix:")).lstat().st_uid
    except OSError:
        return address  # nobody's, or out of reach: connecting to it says so
    if owner_uid not in (0, os.getuid()):
        raise Refused(
            "SOCKET_FOREIGN",
            f"the daemon at {address} belongs to another user; name one with {SERVER_VARIABLE}",
            address=address,
            owner_uid=owner_uid,
        )
    return address
