"""Numbers of turns in answers, and what becomes of them."""

from typing import Any

import jsonschema
import pytest

from coscheduler.engines.analysis import catalogue, citing
from coscheduler.engines.analysis.transcript import Turn

TURNS = {
    3: Turn("We ship on Friday.", "ANNA", 3, 1000, 2500),
    7: Turn("I will write the report.", "BEN", 7, 9000, 9900),
}
ANNA = {"segment": 3, "start_ms": 1000, "end_ms": 2500, "speaker": "ANNA"}
BEN = {"segment": 7, "start_ms": 9000, "end_ms": 9900, "speaker": "BEN"}


def statement(text: str, *cites: int) -> dict[str, Any]:
    return {"text": text, "cites": list(cites)}


@pytest.mark.parametrize("name", catalogue.names())
def test_a_narrowed_schema_takes_only_these_numbers(name: str) -> None:
    schema = citing.narrowed(catalogue.load(name).schema, {3, 7})
    text = str(schema)
    assert "'integer'" not in text
    assert ("'enum': [3, 7]" in text) == (not catalogue.load(name).per_turn)


def test_numbers_become_times_and_speakers() -> None:
    answer = {"summary": [statement("They ship.", 3, 7)], "key_points": []}
    found = citing.resolved(answer, TURNS, quotes=False)
    assert found == {"summary": [{"text": "They ship.", "cites": [ANNA, BEN]}], "key_points": []}
    jsonschema.validate(found, catalogue.load("summary").result_schema or {})


def test_a_quote_is_what_was_said_not_what_the_model_wrote() -> None:
    answer = {"actions": [{"owner": "Ben", "task": "report", "due": "", "cites": [7, 3]}]}
    (action,) = citing.resolved(answer, TURNS, quotes=True)["actions"]
    assert action["quote"] == "I will write the report."
    jsonschema.validate({"actions": [action]}, catalogue.load("actions").result_schema or {})


def test_what_no_turn_has_is_left_out() -> None:
    assert citing.resolved(statement("x", 5, 7), TURNS, quotes=False)["cites"] == [BEN]
    assert citing.resolved_text("They ship [3], or not [5] [7][3].", TURNS)["cites"] == [ANNA, BEN]


def test_numbers_are_found_at_every_depth() -> None:
    answer = {"topics": [{"topic": "a", "points": [statement("b", 1), statement("c", 2, 4)]}]}
    assert citing.numbers_in(answer) == {1, 2, 4}
    assert citing.numbers_in({"text": "so [12] and [7]."}) == {7, 12}
    assert citing.numbers_in(None) == set()


def test_lists_are_joined_and_what_is_said_twice_is_said_once() -> None:
    first: dict[str, Any] = {"title": "", "points": [statement("a", 1), statement("b", 2)]}
    second = {"title": "T", "points": [statement("b", 2, 3), statement("c", 4)]}
    assert citing.joined([first, second], unique=True) == {
        "title": "T",
        "points": [statement("a", 1), statement("b", 2, 3), statement("c", 4)],
    }
    assert first["points"][1]["cites"] == [2]  # the answers themselves stay as they were
    assert citing.joined([{"n": ["x", "y"]}, {"n": ["y"]}], unique=True) == {"n": ["x", "y"]}
    assert citing.joined([{"n": ["x"]}, {"n": ["x"]}], unique=False) == {"n": ["x", "x"]}


@pytest.mark.parametrize("other", ["a text", ["words"], {"a": 1}, None])
def test_what_is_only_called_cites_stays_as_it_is(other: Any) -> None:
    value = {"items": [{"text": "a", "cites": other}, {"text": "a", "cites": other}]}
    assert citing.numbers_in(value) == set()
    assert citing.resolved(value, TURNS, quotes=True) == value
    assert citing.joined([value], unique=True) == {"items": value["items"][:1]}


def test_one_item_for_each_turn() -> None:
    schema = catalogue.load("triage").schema
    assert schema is not None
    bounded = citing.one_for_each(schema, 3)["properties"]["emails"]
    assert (bounded["minItems"], bounded["maxItems"]) == (3, 3)
    turns = [TURNS[3], TURNS[7]]
    assert citing.numbered({"emails": [{"reply": "a"}]}, turns) == {
        "emails": [{"reply": "a", "cites": [3]}]
    }
