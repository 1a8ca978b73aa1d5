"""JSON schema to grammar: the text of the rules, and what is refused."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coscheduler.engines.analysis import catalogue, citing, sampling, schema
from coscheduler.engines.analysis.engine import AnalysisEngine
from coscheduler.errors import EngineFault


def text(**bounds: int) -> dict[str, Any]:
    return {"type": "string", **bounds}


def document(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def rules_of(value: dict[str, Any]) -> dict[str, str]:
    lines = schema.grammar(value).splitlines()
    return dict(line.split(" ::= ", 1) for line in lines)


def test_object_writes_its_properties_in_order() -> None:
    rules = rules_of(document(b=text(maxLength=5), a={"type": "boolean"}))
    assert rules["root"] == r'"{" "\"b\"" ":" space root-0 "," space "\"a\"" ":" space root-1 "}"'
    assert rules["root-0"] == r'"\"" char{0,5} "\""'
    assert rules["root-1"] == '("true" | "false")'


def test_array_bounds() -> None:
    def body(**bounds: int) -> str:
        items = {"type": "array", "items": {"type": "integer"}, **bounds}
        return rules_of(document(n=items))["root-0"]

    assert body(maxItems=1) == '"[" (root-0-item)? "]"'
    assert body(maxItems=3) == '"[" (root-0-item ("," space root-0-item){0,2})? "]"'
    assert body(minItems=2, maxItems=3) == '"[" (root-0-item ("," space root-0-item){1,2}) "]"'


def test_enum_is_a_choice_of_literals() -> None:
    rules = rules_of(document(kind={"enum": ["a", 'b"', 3]}))
    assert rules["root-0"] == r'("\"a\"" | "\"b\\\"\"" | "3")'


@given(st.sets(st.integers(0, 3000), min_size=1, max_size=60))
def test_numbers_are_allowed_digit_by_digit(numbers: set[int]) -> None:
    """The expression read as a regular expression matches these numbers and no others."""
    pattern = re.compile(schema.one_of(sorted(numbers)).replace(" ", ""))
    assert {number for number in range(3100) if pattern.fullmatch(str(number))} == numbers


def test_a_long_range_is_a_small_grammar() -> None:
    assert len(schema.one_of(range(1000, 4000))) < 100


@pytest.mark.parametrize(
    "value",
    [
        document(a=text()),
        document(a=text(maxLength=5000)),
        document(a=text(minLength=3, maxLength=2)),
        document(a={"type": "array", "items": text(maxLength=2)}),
        document(a={"type": "null"}),
        document(a={"$ref": "#/x"}),
        {"type": "object", "properties": {"a": text(maxLength=1)}},
        {"type": "object"},
    ],
)
def test_what_the_grammar_cannot_bound_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(EngineFault) as caught:
        schema.grammar(value)
    assert caught.value.reason == "SCHEMA_UNSUPPORTED"


GREEDY = sampling.Sampling(temperature=0, top_k=1, top_p=1, seed=0)


@pytest.mark.parametrize("name", catalogue.names())
def test_llama_reads_the_grammar_of_every_template(engine: AnalysisEngine, name: str) -> None:
    loaded = engine._loaded
    assert loaded is not None
    narrowed = citing.narrowed(catalogue.load(name).schema, range(90, 1200))
    sampling.Sampler(loaded.model, GREEDY, schema.grammar(narrowed)).close()


def test_a_broken_grammar_is_a_fault(engine: AnalysisEngine) -> None:
    loaded = engine._loaded
    assert loaded is not None
    with pytest.raises(EngineFault) as caught:
        sampling.Sampler(loaded.model, GREEDY, 'root ::= "a" nothing')
    assert caught.value.reason == "GRAMMAR_INVALID"
