"""Every template against a talk and an answer that a good model would give."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from coscheduler import stages
from coscheduler.engines.analysis import catalogue, citing, sampling, transcript
from coscheduler.engines.analysis import schema as schemas
from coscheduler.engines.analysis.catalogue import Template
from coscheduler.engines.analysis.engine import AnalysisEngine
from coscheduler.engines.analysis.transcript import Turn

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "answers.json").read_text("utf-8"))
ANSWERS: dict[str, Any] = FIXTURE["answers"]
GREEDY = sampling.Sampling(temperature=0, top_k=1, top_p=1, seed=0)


@pytest.fixture
def turns(tmp_path: Path) -> tuple[Turn, ...]:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(FIXTURE["talk"]), encoding="utf-8")
    return transcript.read(path).turns


def schema_of(template: Template, turns: tuple[Turn, ...]) -> dict[str, Any]:
    assert template.schema is not None
    if template.per_turn:
        return citing.one_for_each(template.schema, len(turns))
    found: dict[str, Any] = citing.narrowed(template.schema, {turn.number for turn in turns})
    return found


def test_every_template_has_an_answer() -> None:
    assert set(ANSWERS) == set(stages.TEMPLATES)


@pytest.mark.parametrize("name", ANSWERS)
def test_the_result_has_the_promised_shape(name: str, turns: tuple[Turn, ...]) -> None:
    template = catalogue.load(name)
    answer = ANSWERS[name]
    jsonschema.validate(answer, schema_of(template, turns))
    if template.per_turn:
        answer = citing.numbered(answer, turns)
    result = citing.resolved(answer, {turn.number: turn for turn in turns}, template.quotes)
    jsonschema.validate(result, template.result_schema or {})
    assert result == FIXTURE["results"].get(name, result)


def allowed_length(engine: AnalysisEngine, grammar: str, text: str) -> tuple[int, bool]:
    """How many bytes of a text the grammar allows, token by token, and whether it may end there."""
    loaded = engine._loaded
    assert loaded is not None
    from llama_cpp import llama_sampler_accept, llama_vocab_eos

    sampler = sampling.Sampler(loaded.model, GREEDY, grammar)
    length = 0
    for token in loaded.model.tokenize(text, add_special=False, parse_special=False):
        if not sampler._allows(token):
            sampler.close()
            return length, False
        llama_sampler_accept(sampler._grammar, token)
        length += len(loaded.model.piece(token))
    may_end = sampler._allows(llama_vocab_eos(loaded.model.vocab))
    sampler.close()
    return length, may_end


@pytest.mark.parametrize("name", ANSWERS)
def test_the_grammar_allows_the_answer_and_nothing_after_it(
    name: str, engine: AnalysisEngine, turns: tuple[Turn, ...]
) -> None:
    grammar = schemas.grammar(schema_of(catalogue.load(name), turns))
    text = json.dumps(ANSWERS[name], ensure_ascii=False)
    assert allowed_length(engine, grammar, text) == (len(text.encode()), True)
    assert allowed_length(engine, grammar, text + "!")[0] == len(text.encode())


def test_the_grammar_allows_no_number_that_was_not_shown(
    engine: AnalysisEngine, turns: tuple[Turn, ...]
) -> None:
    grammar = schemas.grammar(schema_of(catalogue.load("actions"), turns))
    text = json.dumps(ANSWERS["actions"]).replace("[3]", "[7]")
    assert allowed_length(engine, grammar, text) == (text.index("7]"), False)


def test_the_grammar_wants_an_item_for_each_turn(
    engine: AnalysisEngine, turns: tuple[Turn, ...]
) -> None:
    grammar = schemas.grammar(schema_of(catalogue.load("translate"), turns))
    text = json.dumps({"lines": ANSWERS["translate"]["lines"][:-1]}, ensure_ascii=False)
    assert allowed_length(engine, grammar, text) == (len(text.encode()) - 2, False)
