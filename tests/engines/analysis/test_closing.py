"""Answers cut anywhere: what is left is valid, whole, and was written by the model."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coscheduler.engines.analysis.closing import closed


def text(low: int = 1) -> dict[str, Any]:
    return {"type": "string", "minLength": low, "maxLength": 200}


def list_of(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "maxItems": 10, "items": items}


def object_of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


SUMMARY = object_of(summary=text(), key_points=list_of(text()))
ACTIONS = object_of(actions=list_of(object_of(owner=text(0), task=text(), due=text(0))))

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8)
nonempty = words.filter(bool)
summaries = st.builds(
    lambda summary, points: {"summary": summary, "key_points": points},
    nonempty,
    st.lists(nonempty, max_size=3),
)
actions = st.builds(
    lambda items: {"actions": [dict(zip(("owner", "task", "due"), i, strict=True)) for i in items]},
    st.lists(st.tuples(words, nonempty, words), max_size=3),
)
bounded = settings(max_examples=40, deadline=None)  # each example tries all its prefixes


def cuts(document: Any) -> list[str]:
    text = json.dumps(document, ensure_ascii=False)
    return [text[:size] for size in range(len(text) + 1)]


@bounded
@given(summaries)
def test_a_cut_summary_keeps_what_was_written(document: dict[str, Any]) -> None:
    for prefix in cuts(document):
        value = closed(prefix, SUMMARY)
        if value is None:
            assert len(prefix) <= len('{"summary": "\\"')
            continue
        jsonschema.validate(value, SUMMARY)
        assert document["summary"].startswith(value["summary"])
        assert value["key_points"] == document["key_points"][: len(value["key_points"])]
    assert closed(json.dumps(document), SUMMARY) == document


@bounded
@given(actions)
def test_a_cut_list_of_actions_has_whole_actions_only(document: dict[str, Any]) -> None:
    count = 0
    for prefix in cuts(document):
        value = closed(prefix, ACTIONS)
        if value is None:
            assert prefix == ""
            continue
        found = value["actions"]
        assert found == document["actions"][: len(found)]
        assert len(found) >= count  # a longer prefix never loses an action
        count = len(found)
    assert count == len(document["actions"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("{", None),
        ('{"summary": "', None),
        ('{"summary": "We met\\', {"summary": "We met", "key_points": []}),
        ('{"summary": "We met.", "key_po', {"summary": "We met.", "key_points": []}),
        ('{"summary": "a", "key_points": ["b", "c', {"summary": "a", "key_points": ["b"]}),
        ('{"summary": "a, {b", "key_points": [', {"summary": "a, {b", "key_points": []}),
    ],
)
def test_cases(text: str, expected: Any) -> None:
    assert closed(text, SUMMARY) == expected


def test_a_number_is_whole_only_behind_a_delimiter() -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "array", "items": {"type": "integer"}, "maxItems": 9}},
        "required": ["n"],
    }
    assert closed('{"n": [12, 34', schema) == {"n": [12]}
    assert closed('{"n": [12, 34]', schema) == {"n": [12, 34]}
