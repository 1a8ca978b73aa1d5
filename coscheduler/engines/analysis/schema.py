"""JSON schema -> GBNF grammar, for the schemas that templates use.

Objects list all their properties as required, in the order they are to be written; strings and
arrays are bounded, so that an answer has a largest size; texts are printable. Own compiler because
the one in llama-cpp-python lets raw control characters into strings and unrolls bounds into nested
groups.
"""

import json
from collections.abc import Mapping, Sequence, Set
from typing import Any

from coscheduler.errors import EngineFault

LENGTH_MAX = 2000  # llama.cpp refuses longer repetitions
CHAR = r"""[^"\\\x00-\x1F\x7F-\x9F] | "\\" ["\\/nt]"""

Schema = Mapping[str, Any]


def grammar(schema: Schema) -> str:
    """The grammar of all compact JSON documents of a schema, start symbol `root`.

    One space may follow a comma or colon. Raises EngineFault SCHEMA_UNSUPPORTED.
    """
    rules = {"char": CHAR, "space": '" "?', "integer": '"-"? ("0" | [1-9] [0-9]{0,14})'}
    rules["number"] = 'integer ("." [0-9]{1,15})?'
    rules["root"] = _expression(schema, "root", rules)
    return "".join(f"{name} ::= {body}\n" for name, body in rules.items())


def _expression(schema: Schema, name: str, rules: dict[str, str]) -> str:
    """The body for a schema; parts that need a name go into `rules` below `name`."""
    if "enum" in schema:
        return one_of(schema["enum"])
    match schema.get("type"):
        case "object":
            return _object(schema, name, rules)
        case "array":
            return _array(schema, name, rules)
        case "string":
            return _string(schema, name)
        case "integer" | "number" as name_of_rule:
            return str(name_of_rule)
        case "boolean":
            return '("true" | "false")'
        case other:
            raise _unsupported(name, f"type {other!r}")


def one_of(values: Sequence[Any]) -> str:
    """The expression for one of some values; whole numbers are written digit by digit, so that
    hundreds of them stay a small grammar.
    """
    if all(type(value) is int and value >= 0 for value in values):
        return _digits({str(value) for value in values})
    return "(" + " | ".join(_literal(json.dumps(value)) for value in values) + ")"


def _digits(numbers: Set[str]) -> str:
    """One of some texts of digits, by their first digits; digits with the same rest are a class."""
    by_rest: dict[frozenset[str], str] = {}
    for digit in "0123456789":
        rest = frozenset(number[1:] for number in numbers if number.startswith(digit))
        if rest:
            by_rest[rest] = by_rest.get(rest, "") + digit
    branches = [
        f"[{digits}]" if rest == {""} else f"[{digits}] {_tail(rest)}"
        for rest, digits in by_rest.items()
    ]
    return branches[0] if len(branches) == 1 else "(" + " | ".join(branches) + ")"


def _tail(rest: frozenset[str]) -> str:
    if "" not in rest:
        return _digits(rest)
    return f"({_digits(rest - {''})})?"


def _object(schema: Schema, name: str, rules: dict[str, str]) -> str:
    properties: Schema = schema.get("properties", {})
    if not properties or set(schema.get("required", ())) != set(properties):
        raise _unsupported(name, "an object must list all its properties as required")
    members = []
    for index, (key, value) in enumerate(properties.items()):
        part = f"{name}-{index}"  # a key itself may hold what GBNF does not allow in a name
        rules[part] = _expression(value, part, rules)
        members.append(f'{_literal(json.dumps(key))} ":" space {part}')
    return '"{" ' + ' "," space '.join(members) + ' "}"'


def _array(schema: Schema, name: str, rules: dict[str, str]) -> str:
    low, high = int(schema.get("minItems", 0)), int(schema.get("maxItems", 0))
    if not 0 <= low <= high or high == 0 or high > LENGTH_MAX:
        raise _unsupported(name, f"an array needs maxItems from 1 to {LENGTH_MAX}")
    item = f"{name}-item"
    rules[item] = _expression(schema.get("items", {}), item, rules)
    more = f'("," space {item}){{{max(0, low - 1)},{high - 1}}}'
    body = f"{item} {more}" if high > 1 else item
    return f'"[" ({body}) "]"' if low else f'"[" ({body})? "]"'


def _string(schema: Schema, name: str) -> str:
    low, high = int(schema.get("minLength", 0)), int(schema.get("maxLength", 0))
    if not 0 <= low <= high or high == 0 or high > LENGTH_MAX:
        raise _unsupported(name, f"a string needs maxLength from 1 to {LENGTH_MAX}")
    return f'"\\"" char{{{low},{high}}} "\\""'


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _unsupported(name: str, why: str) -> EngineFault:
    return EngineFault("SCHEMA_UNSUPPORTED", f"schema at {name}: {why}", at=name)
