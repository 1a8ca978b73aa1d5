"""What a statement rests on: numbers of turns in an answer, their times and speakers in a result.

Three steps. Before: the schema is narrowed, so that the grammar allows only numbers of turns which
the model was shown. After: each number is looked up in the transcript. Between: the answers about
pieces still have numbers, so that they can be merged.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from coscheduler.engines.analysis.transcript import Turn

CITES, QUOTE = "cites", "quote"
_IN_TEXT = re.compile(r"\[(\d{1,9})\]")

Turns = Mapping[int, Turn]


def narrowed(schema: Any, numbers: Collection[int]) -> Any:
    """The schema in which every property "cites" takes only these numbers."""
    if isinstance(schema, list):
        return [narrowed(entry, numbers) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: value | {"items": {"enum": sorted(numbers)}}
        if key == CITES and _is_list_of_numbers(value)
        else narrowed(value, numbers)
        for key, value in schema.items()
    }


def one_for_each(schema: dict[str, Any], count: int) -> dict[str, Any]:
    """A schema of one list, which then has exactly `count` items."""
    ((name, part),) = schema["properties"].items()
    return schema | {"properties": {name: part | {"minItems": count, "maxItems": count}}}


def numbered(value: dict[str, Any], turns: Sequence[Turn]) -> dict[str, Any]:
    """An answer that has one item for each turn, with the turns' numbers as "cites"."""
    ((name, items),) = value.items()
    pairs = zip(items, turns, strict=False)  # an answer that was cut has fewer items
    return {name: [item | {CITES: [turn.number]} for item, turn in pairs]}


def numbers_in(value: Any) -> set[int]:
    """All numbers that an answer cites."""
    if isinstance(value, list):
        return set().union(*(numbers_in(entry) for entry in value))
    if not isinstance(value, dict):
        return set()
    if set(value) == {"text"}:
        return {int(match) for match in _IN_TEXT.findall(str(value["text"]))}
    own = set(value[CITES]) if _cites(value) else set()
    return own.union(*(numbers_in(part) for key, part in value.items() if key != CITES))


def resolved(value: Any, turns: Turns, quotes: bool) -> Any:
    """The answer with times and speakers in place of numbers; what no turn has is left out.

    With `quotes` a statement also has the words of the first turn it cites, taken from the
    transcript and not from the model.
    """
    if isinstance(value, list):
        return [resolved(entry, turns, quotes) for entry in value]
    if not isinstance(value, dict):
        return value
    is_statement = _cites(value)
    found = {
        key: _places(part, turns)
        if is_statement and key == CITES
        else resolved(part, turns, quotes)
        for key, part in value.items()
    }
    if quotes and is_statement:
        cited = [turns[number] for number in value[CITES] if number in turns]
        found[QUOTE] = cited[0].text if cited else ""
    return found


def resolved_text(text: str, turns: Turns) -> dict[str, Any]:
    """Free text, and the turns that it names in brackets."""
    numbers = dict.fromkeys(int(match) for match in _IN_TEXT.findall(text))
    return {"text": text, CITES: _places(list(numbers), turns)}


def with_cites(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of one list of objects, each of which then also has "cites"."""
    ((name, part),) = schema["properties"].items()
    item = part["items"]
    cites = {"type": "array", "items": {"type": "integer"}}
    item = item | {
        "properties": item["properties"] | {CITES: cites},
        "required": [*item["required"], CITES],
    }
    return schema | {"properties": {name: part | {"items": item}}}


def result_schema(schema: Any, quotes: bool) -> Any:
    """The schema of a result: places for numbers, quotes, and no bound on joined lists."""
    if isinstance(schema, list):
        return [result_schema(entry, quotes) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: {"type": "array", "items": _PLACE_SCHEMA}
        if key == CITES and _is_list_of_numbers(value)
        else result_schema(value, quotes)
        for key, value in schema.items()
        if not (key in ("minItems", "maxItems") and isinstance(value, int))
    }
    if quotes and CITES in found.get("properties", {}):
        found["properties"] = found["properties"] | {QUOTE: {"type": "string"}}
        found["required"] = [*found["required"], QUOTE]
    return found


def joined(answers: Sequence[dict[str, Any]], unique: bool) -> dict[str, Any]:
    """The answers about the pieces, in order, as one: lists put together, the first of texts.

    With `unique`, items that say the same (what is said across a cut is read twice) become one,
    with the cites of both.
    """
    whole: dict[str, Any] = {}
    for answer in answers:
        for key, part in answer.items():
            if isinstance(part, list):
                whole[key] = [*whole.get(key, []), *part]
            elif not whole.get(key):
                whole[key] = part
    if not unique:
        return whole
    return {key: _unique(part) if isinstance(part, list) else part for key, part in whole.items()}


def _unique(items: Sequence[Any]) -> list[Any]:
    kept: dict[str, Any] = {}
    for item in items:
        is_statement = _cites(item)
        said = {key: item[key] for key in item if key != CITES} if is_statement else item
        identity = json.dumps(said, sort_keys=True)
        if is_statement and identity in kept:
            cites = sorted({*kept[identity][CITES], *item[CITES]})
            kept[identity] = kept[identity] | {CITES: cites}
        kept.setdefault(identity, item)
    return list(kept.values())


def _cites(value: Any) -> bool:
    """Whether this is a statement with numbers; a user's own schema may call anything "cites"."""
    numbers = value.get(CITES) if isinstance(value, dict) else None
    return isinstance(numbers, list) and all(type(number) is int for number in numbers)


def _is_list_of_numbers(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("items", {}).get("type") == "integer"


def _places(numbers: Sequence[int], turns: Turns) -> list[dict[str, Any]]:
    return [_place(turns[number]) for number in numbers if number in turns]


def _place(turn: Turn) -> dict[str, Any]:
    return {
        "segment": turn.number,
        "start_ms": turn.start_ms,
        "end_ms": turn.end_ms,
        "speaker": turn.speaker,
    }


_PLACE_SCHEMA = {
    "type": "object",
    "properties": {
        "segment": {"type": "integer"},
        "start_ms": {"type": ["integer", "null"]},
        "end_ms": {"type": ["integer", "null"]},
        "speaker": {"type": "string"},
    },
    "required": ["segment", "start_ms", "end_ms", "speaker"],
    "additionalProperties": False,
}
