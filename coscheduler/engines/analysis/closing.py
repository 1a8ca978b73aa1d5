"""Bring an answer that was cut at its token limit to a valid end: never half an object.

What is whole is kept, what is not is dropped: an array loses its unfinished last item, a text at
the top level keeps what was written of it, and properties of the top level that were not reached
become empty where the schema allows that. If nothing valid remains there is no answer.
"""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema

from coscheduler.engines.analysis.schema import Schema

_CLOSER = {"{": "}", "[": "]"}


def closed(text: str, schema: Schema) -> Any | None:
    """The longest valid document that begins as `text` does, or None.

    `text` is a prefix of a document that the schema's grammar produces.
    """
    validator = jsonschema.Draft202012Validator(schema)
    for candidate in _candidates(text):
        try:
            value = json.loads(candidate)
        except json.JSONDecodeError:
            continue  # cut behind a key, or in a number
        value = _filled(value, schema)
        if validator.is_valid(value):
            return value
    return None


def _candidates(text: str) -> Iterator[str]:
    """Prefixes with all their brackets closed, the longest first."""
    stack: list[str] = []
    found: list[str] = []
    in_string = escaped = False
    for index, char in enumerate(text):
        if in_string:
            in_string = escaped or char != '"'
            escaped = char == "\\" and not escaped
            if not in_string:
                found.append(text[: index + 1] + "".join(reversed(stack)))
            continue
        if char == '"':
            in_string = True
        elif char in "{[":
            stack.append(_CLOSER[char])
            found.append(text[: index + 1] + "".join(reversed(stack)))
        elif char in "}]":
            stack.pop()
            found.append(text[: index + 1] + "".join(reversed(stack)))
        elif char == ",":
            found.append(text[:index] + "".join(reversed(stack)))
    if in_string and len(stack) == 1:
        whole = text[:-1] if escaped else text
        found.append(whole + '"' + stack[0])
    return reversed(found)


def _filled(value: Any, schema: Schema) -> Any:
    """The value with the missing properties of its top level empty, where empty is allowed."""
    if not isinstance(value, dict):
        return value
    empty: dict[str, Any] = {"array": [], "string": ""}
    missing = {
        key: empty[part["type"]]
        for key, part in schema.get("properties", {}).items()
        if key not in value and part.get("type") in empty
    }
    return value | missing
