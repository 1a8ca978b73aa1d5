"""The only table of error codes: `coscheduler.errors` <-> google.rpc.Status.

A status carries exactly one ErrorInfo: the reason, the domain "coscheduler", every number, and the
error's kind, from which a client builds the same class again. RetryInfo is added where the numbers
say when to come back. What is not ours becomes INTERNAL with an id; the log has the rest.
"""

import logging
import secrets
from collections.abc import Iterable
from typing import Final, NoReturn, cast

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from coscheduler.errors import CoschedulerError, from_parts

DOMAIN: Final = "coscheduler"
DETAILS_KEY: Final = "grpc-status-details-bin"
KIND_KEY: Final = "error_kind"
# A status travels in HTTP/2 trailers, twice (text and details), and peers bound those: text from
# files or logs must not turn a clear error into a broken stream.
MESSAGE_CHARACTERS_MAX: Final = 1000
NUMBER_CHARACTERS_MAX: Final = 300
NUMBERS_MAX: Final = 24

CODES: Final[dict[str, grpc.StatusCode]] = {
    "internal": grpc.StatusCode.INTERNAL,
    "invalid_input": grpc.StatusCode.INVALID_ARGUMENT,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "refused": grpc.StatusCode.FAILED_PRECONDITION,
    "ledger_refusal": grpc.StatusCode.FAILED_PRECONDITION,
    "exhausted": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "engine_fault": grpc.StatusCode.FAILED_PRECONDITION,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "store_fault": grpc.StatusCode.INTERNAL,
}
# For a status without our ErrorInfo: grpc itself, or a proxy, made it.
_KIND_OF_CODE: Final[dict[grpc.StatusCode, str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: "invalid_input",
    grpc.StatusCode.NOT_FOUND: "not_found",
    grpc.StatusCode.FAILED_PRECONDITION: "refused",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "exhausted",
    grpc.StatusCode.UNAVAILABLE: "unavailable",
    grpc.StatusCode.DEADLINE_EXCEEDED: "unavailable",
    grpc.StatusCode.CANCELLED: "unavailable",  # by a daemon that could not wait any longer
}

log = logging.getLogger(__name__)


def to_status(error: CoschedulerError) -> Status:
    """The status of an error; text beyond the bounds is cut, and ends in an ellipsis then."""
    numbers = list(error.numbers.items())[:NUMBERS_MAX]
    metadata = {key: _cut(value, NUMBER_CHARACTERS_MAX) for key, value in numbers}
    info = ErrorInfo(
        reason=error.reason, domain=DOMAIN, metadata={**metadata, KIND_KEY: type(error).kind}
    )
    status = Status(
        code=CODES[type(error).kind].value[0], message=_cut(error.message, MESSAGE_CHARACTERS_MAX)
    )
    status.details.add().Pack(info)
    if error.numbers.get("retry_ms", "").isdecimal():
        status.details.add().Pack(_retry_info(int(error.numbers["retry_ms"])))
    return status


def _cut(text: str, characters_max: int) -> str:
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return clean if len(clean) <= characters_max else clean[: characters_max - 1] + "…"


def _retry_info(retry_ms: int) -> RetryInfo:
    info = RetryInfo()
    info.retry_delay.FromMilliseconds(retry_ms)
    return info


def conceal(error: Exception, call: str) -> CoschedulerError:
    """An INTERNAL error in place of an unexpected one, which goes to the log under the same id."""
    error_id = secrets.token_hex(4)
    log.error("error %s in %s", error_id, call, exc_info=error)
    return CoschedulerError(
        "INTERNAL", f"internal error {error_id}; the daemon's log has more", error_id=error_id
    )


async def abort(
    context: grpc.aio.ServicerContext[object, object], error: Exception, call: str
) -> NoReturn:
    """End a call with the status of `error`; `call` is the method's full name, for the log."""
    known = error if isinstance(error, CoschedulerError) else conceal(error, call)
    status = to_status(known)
    await context.abort(
        CODES[type(known).kind],
        status.message,
        trailing_metadata=((DETAILS_KEY, status.SerializeToString()),),
    )


def from_rpc_error(error: grpc.RpcError, address: str) -> CoschedulerError:
    """The error behind a failed call to the daemon at `address`, as the class the daemon raised.

    Without an ErrorInfo of ours: Unavailable SERVER_UNREACHABLE when there was no connection, else
    the class that fits the code, with the code's name as its reason.
    """
    code, message = error.code(), error.details() or ""
    trailers = cast("Iterable[tuple[str, bytes]]", error.trailing_metadata() or ())
    for key, value in trailers:
        if key == DETAILS_KEY:
            return _from_status(Status.FromString(value))
    if code is grpc.StatusCode.UNAVAILABLE:
        text = f"no daemon answers at {address}; start one with `coscheduler serve --config FILE`"
        return from_parts("unavailable", "SERVER_UNREACHABLE", text, {"address": address})
    kind = _KIND_OF_CODE.get(code, "internal")
    return from_parts(kind, code.name, message or code.name, {"address": address})


def _from_status(status: Status) -> CoschedulerError:
    info = next((found for found in map(_error_info, status.details) if found), ErrorInfo())
    numbers = dict(info.metadata)
    kind = numbers.pop(KIND_KEY, "internal")
    return from_parts(kind, info.reason or "UNKNOWN", status.message, numbers)


def _error_info(detail: Any) -> ErrorInfo | None:
    info = ErrorInfo()
    return info if detail.Unpack(info) else None
