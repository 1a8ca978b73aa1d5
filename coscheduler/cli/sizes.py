"""Sizes as they are written on the command line."""

from pydantic import ByteSize, TypeAdapter, ValidationError

from coscheduler.errors import InvalidInput


def parse_size(text: str) -> int:
    """Bytes of "1.25 GiB". Raises InvalidInput SIZE_INVALID."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        message = f'{text!r} is not a size; write it as "1.25 GiB" or as a number of bytes'
        raise InvalidInput("SIZE_INVALID", message, size=text) from None
