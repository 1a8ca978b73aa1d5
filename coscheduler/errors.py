"""Every error the product raises on purpose. No grpc here; `rpc/status.py` maps these to codes.

    CoschedulerError                reason, a sentence, and every number as metadata
    ├── InvalidInput                the caller's data or parameters are wrong
    ├── NotFound                    no job or artifact of that name
    ├── Refused                     right in itself, impossible in this state or with this config
    │   └── LedgerRefusal           the bytes are not there
    ├── Exhausted                   a bound is reached for now; trying later may help
    ├── EngineFault                 a model or engine failed while loading or running
    ├── Unavailable                 the daemon cannot be reached or is stopping
    └── StoreFault                  the disk or the database failed

The `reason` is the stable identity (UPPER_SNAKE), the class is the kind. A message says what was
asked, what there is, and what to do.
"""

from collections.abc import Mapping
from typing import ClassVar


class CoschedulerError(Exception):
    """Base of the tree. `numbers` become metadata of the wire's ErrorInfo, as text."""

    kind: ClassVar[str] = "internal"

    def __init__(self, reason: str, message: str, **numbers: object) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.numbers: dict[str, str] = {key: str(value) for key, value in numbers.items()}


class InvalidInput(CoschedulerError):
    """The caller's data or parameters are wrong; the same call will always fail."""

    kind = "invalid_input"


class NotFound(CoschedulerError):
    """There is no such job or artifact."""

    kind = "not_found"


class Refused(CoschedulerError):
    """The request is well formed but cannot be served in this state or with this config."""

    kind = "refused"


class LedgerRefusal(Refused):
    """The ledger does not have the bytes. Nothing was changed."""

    kind = "ledger_refusal"


class Exhausted(CoschedulerError):
    """A bound (queue, disk, size) is reached; `retry_ms` says when to come back, if ever."""

    kind = "exhausted"


class EngineFault(CoschedulerError):
    """A model file or an engine failed while describing, loading or running."""

    kind = "engine_fault"


class Unavailable(CoschedulerError):
    """The daemon cannot be reached, or is shutting down."""

    kind = "unavailable"


class StoreFault(CoschedulerError):
    """The disk or the database failed."""

    kind = "store_fault"


_BY_KIND: dict[str, type[CoschedulerError]] = {
    cls.kind: cls
    for cls in (
        CoschedulerError, InvalidInput, NotFound, Refused, LedgerRefusal,
        Exhausted, EngineFault, Unavailable, StoreFault,
    )
}  # fmt: skip


def from_parts(
    kind: str, reason: str, message: str, numbers: Mapping[str, str]
) -> CoschedulerError:
    """Build the error again beyond a pipe or a wire; an unknown kind becomes the base."""
    return _BY_KIND.get(kind, CoschedulerError)(reason, message, **numbers)
