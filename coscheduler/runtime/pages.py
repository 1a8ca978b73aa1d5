"""Pages of lists: how many entries one has, and the token that says where the next one begins."""

import base64
import binascii

from coscheduler.errors import InvalidInput

PAGE_SIZE_MAX = 500


def size(asked: int) -> int:
    """How many entries a page has; 0 asks for the usual. Raises InvalidInput PAGE_SIZE_INVALID."""
    if asked < 0:
        raise InvalidInput("PAGE_SIZE_INVALID", f"page_size {asked} is negative", page_size=asked)
    return min(asked or 50, PAGE_SIZE_MAX)


def encode(time_ms: int, name: str) -> str:
    """The token for what comes after an entry."""
    return base64.urlsafe_b64encode(f"{time_ms} {name}".encode()).decode()


def decode(token: str) -> tuple[int, str] | None:
    """The time and name of the entry before; None is the first page. Raises InvalidInput
    PAGE_TOKEN_INVALID.
    """
    if not token:
        return None
    try:
        time_ms, _, name = base64.urlsafe_b64decode(token.encode()).decode().partition(" ")
        return int(time_ms), name
    except (ValueError, binascii.Error, UnicodeError):
        raise InvalidInput(
            "PAGE_TOKEN_INVALID", "the page_token is not one that a list call returned"
        ) from None
