"""Transcripts longer than the context, on a real model: every policy, every mode, interrupted."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

from coscheduler import stages
from coscheduler.demo import tiny_llm
from coscheduler.engines.analysis import catalogue
from coscheduler.engines.analysis.engine import AnalysisEngine
from coscheduler.engines.base import Task
from coscheduler.errors import EngineFault, InvalidInput

from .conftest import Runner, settings_for

N_CTX = 2048
WORDS = sorted(tiny_llm.WORDS)


def talk(segment_count: int, words: int = 18) -> dict[str, Any]:
    """A long meeting; every word is one token."""
    return {
        "language": "en",
        "segments": [
            {
                "start": 5.0 * index,
                "end": 5.0 * index + 4,
                "text": " ".join(
                    WORDS[(index * 7 + step * 3) % len(WORDS)] for step in range(words)
                ),
                "speaker": f"SPEAKER_0{index % 3}",
            }
            for index in range(segment_count)
        ],
    }


LONG = talk(120)


@pytest.fixture(scope="module")
def small(tiny_model: Path) -> Iterator[AnalysisEngine]:
    """An engine whose context holds 2,048 tokens."""
    engine = AnalysisEngine(settings_for(tiny_model, n_ctx_max=N_CTX, n_ctx_min=N_CTX))
    engine.start()
    engine.load(engine.describe().options[0], lambda done, total: None)
    yield engine
    engine.unload()


@pytest.fixture
def runner(small: AnalysisEngine, tmp_path: Path) -> Runner:
    return Runner(small, tmp_path)


def check(document: dict[str, Any], name: str, transcript: dict[str, Any]) -> None:
    """The result has the template's shape, and every citation is a segment of the transcript."""
    template = catalogue.load(name)
    jsonschema.validate(document["result"], template.result_schema or {})
    cited = list(places(document["result"]))
    assert cited
    for place in cited:
        segment = transcript["segments"][place["segment"]]
        assert place["start_ms"] == segment["start"] * 1000
        assert place["speaker"] == segment["speaker"]
    for call in document["reading"]["calls"]:
        assert call["prompt_tokens"] + call["completion_tokens"] <= N_CTX


def places(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        for part in value:
            yield from places(part)
    elif isinstance(value, dict):
        if "segment" in value:
            yield value
        for part in value.values():
            yield from places(part)


@pytest.mark.parametrize("mode", get_args(stages.PieceMode))
@pytest.mark.parametrize("name", ["summary", "chapters", "minutes"])
def test_a_long_talk_is_read_in_pieces(runner: Runner, name: str, mode: str) -> None:
    task = runner.task({"template": name, "mode": mode, "seed": 3, "tokens_max": 400}, LONG)
    document, result, slices = runner.run(task)
    check(document, name, LONG)
    reading = document["reading"]
    assert (reading["how"], reading["mode"]) == ("split", mode)
    pieces = [call for call in reading["calls"] if call["what"] == "piece"]
    assert len(pieces) > 2
    assert pieces[0]["first_segment"] == 0
    assert pieces[-1]["last_segment"] == 119
    for before, after in itertools.pairwise(pieces):
        assert after["first_segment"] == before["last_segment"] - 1  # two turns in common
    merges = [call for call in reading["calls"] if call["what"] == "merge"]
    assert bool(merges) == (name == "summary" and mode != "refine")
    assert any("pieces" in note for note in result.notes)
    assert [piece.done for piece in slices] == sorted(piece.done for piece in slices)
    assert all(piece.done <= piece.total for piece in slices)
    assert any(piece.note == f"piece 2 of {len(pieces)}: writing" for piece in slices)


def test_overlap_is_as_asked(runner: Runner) -> None:
    asked = {"template": "actions", "overlap_turns": 0, "tokens_max": 100}
    pieces = runner.answer(asked, LONG)["reading"]["calls"]
    for before, after in itertools.pairwise(pieces):
        assert after["first_segment"] == before["last_segment"] + 1


def test_the_oldest_turns_are_folded_into_notes(runner: Runner) -> None:
    task = runner.task({"template": "summary", "overflow": "fold", "seed": 3}, LONG)
    document, result, _ = runner.run(task)
    check(document, "summary", LONG)
    assert document["reading"]["how"] == "folded"
    *notes, last = document["reading"]["calls"]
    assert {call["what"] for call in notes} == {"notes"}
    assert (last["what"], last["last_segment"]) == ("whole", 119)
    assert last["first_segment"] == notes[-1]["last_segment"] + 1
    assert any("folded" in note for note in result.notes)
    free = runner.answer({"prompt": "Who pays?", "overflow": "fold", "tokens_max": 100}, LONG)
    assert free["reading"]["how"] == "folded"


def test_one_turn_longer_than_the_context(runner: Runner) -> None:
    monologue = {"segments": [{"text": "we ship the release on friday " * 600, "start": 1}]}
    for overflow in ("split", "fold"):
        asked = {"template": "summary", "overflow": overflow, "seed": 2}
        document = runner.answer(asked, monologue)
        assert {place["segment"] for place in places(document["result"])} == {0}
        assert len(document["reading"]["calls"]) > 2


def test_what_does_not_fit_is_refused_where_that_is_the_policy(runner: Runner) -> None:
    with pytest.raises(EngineFault) as caught:
        runner.answer({"template": "summary", "overflow": "refuse"}, LONG)
    assert caught.value.reason == "TRANSCRIPT_TOO_LONG"
    assert caught.value.numbers["n_ctx"] == str(N_CTX)


@pytest.mark.parametrize("overflow", get_args(stages.Overflow))
def test_what_fits_is_read_at_once_under_every_policy(runner: Runner, overflow: str) -> None:
    document = runner.answer({"template": "summary", "overflow": overflow}, talk(10))
    assert document["reading"]["how"] == "whole"
    assert len(document["reading"]["calls"]) == 1
    check(document, "summary", talk(10))


def test_a_question_about_a_long_talk(runner: Runner) -> None:
    for mode in ("map", "refine"):
        document = runner.answer({"prompt": "Who pays?", "mode": mode, "tokens_max": 200}, LONG)
        assert isinstance(document["result"]["text"], str)
        assert document["reading"]["how"] == "split"


def test_every_line_is_translated_once(runner: Runner) -> None:
    variables = {"to": "Polish"}
    document = runner.answer({"template": "translate", "variables": variables}, LONG)
    check(document, "translate", LONG)
    lines = document["result"]["lines"]
    assert [line["cites"][0]["segment"] for line in lines] == list(range(120))


MAILS = "\n---\n".join(
    f"From: person {number}\nSubject: order\n\nplease send the offer {number} this week"
    for number in range(10)
)


def test_ten_emails_in_one_batch(engine: AnalysisEngine, tmp_path: Path) -> None:
    document = Runner(engine, tmp_path).answer({"template": "triage"}, MAILS)
    emails = document["result"]["emails"]
    assert len(emails) == 10
    assert document["tokens"]["completion"] <= 2048
    assert [mail["cites"][0]["speaker"] for mail in emails] == [f"person {n}" for n in range(10)]
    assert document["reading"]["how"] == "whole"


def test_more_emails_than_fit_are_taken_in_batches(runner: Runner) -> None:
    mails = "\n---\n".join([MAILS, MAILS, MAILS])
    document = runner.answer({"template": "triage"}, mails)
    segments = [mail["cites"][0]["segment"] for mail in document["result"]["emails"]]
    assert segments == list(range(30))
    assert document["reading"]["how"] == "split"


def interrupted(runner: Runner, task: Task, slice_count: int) -> None:
    slices = runner.engine.slices(task)
    for _ in range(slice_count):
        next(slices)
    slices.close()


@pytest.mark.parametrize("name", ["summary", "actions"])
def test_an_interrupted_reading_goes_on_where_it_was(
    runner: Runner, tmp_path: Path, name: str
) -> None:
    asked = {"template": name, "seed": 5, "tokens_max": 300}
    undisturbed, _, slices = runner.run(runner.task(asked, LONG))
    resume_dir = tmp_path / "resume"
    resume_dir.mkdir()
    first = replace(runner.task(asked, LONG), resume_dir=resume_dir)
    interrupted(runner, first, len(slices) * 2 // 3)
    kept = len(list(resume_dir.glob("*.json")))
    assert kept > 0
    again = replace(runner.task(asked, LONG), resume_dir=resume_dir)
    document, result, fewer = runner.run(again)
    assert result.numbers["resumed_calls"] == kept
    assert len(fewer) < len(slices)
    assert document["result"] == undisturbed["result"]
    other = replace(runner.task(asked | {"seed": 6}, LONG), resume_dir=resume_dir)
    assert runner.run(other)[1].numbers["resumed_calls"] == 0  # another question


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"data": "zz", "tokens": [1], "finish": "stop"}', b"[1]"]
)
def test_a_damaged_kept_answer_is_drawn_again(
    runner: Runner, tmp_path: Path, content: bytes
) -> None:
    asked = {"template": "actions", "tokens_max": 60}
    resume_dir = tmp_path / "resume"
    resume_dir.mkdir()
    first = runner.run(replace(runner.task(asked, LONG), resume_dir=resume_dir))[0]
    paths = sorted(resume_dir.glob("*.json"))
    for path in paths[1:]:
        path.write_bytes(content)
    document, result, _ = runner.run(replace(runner.task(asked, LONG), resume_dir=resume_dir))
    assert document["result"] == first["result"]
    assert (result.numbers["resumed_calls"], result.numbers["calls"]) == (1, len(paths))
    assert len(paths) > 2


OWN = """
version = 3
description = "Names."
system = ""
user = "List the names of {{ what }}.\\n\\n{{ transcript }}"
temperature = 0.0
top_k = 1
top_p = 1.0
merge = "join"
schema = '''{"type": "object", "required": ["names", "mood"], "properties": {"names": {
  "type": "array", "maxItems": 5, "items": {"type": "string", "minLength": 1, "maxLength": 40}
}, "mood": {"type": "number"}}}'''
[variables]
what = "people"
"""


def test_a_template_of_ones_own(runner: Runner) -> None:
    asked = {"template_text": OWN, "variables": {"what": "products"}}
    document = runner.answer(asked, LONG)
    assert (document["template"], document["template_version"]) == ("own", 3)
    assert all(isinstance(name, str) for name in document["result"]["names"])
    assert isinstance(document["result"]["mood"], int | float)
    with pytest.raises(InvalidInput, match="colour"):
        runner.answer(asked | {"variables": {"colour": "red"}}, LONG)
    with pytest.raises(InvalidInput) as caught:
        runner.answer({"template_text": "version = 'x'"}, LONG)
    assert caught.value.reason == "TEMPLATE_INVALID"


def test_too_little_room_is_refused_with_numbers(runner: Runner) -> None:
    long_prompt = "word " * 1800
    with pytest.raises(EngineFault) as caught:
        runner.answer({"prompt": long_prompt}, LONG)
    assert caught.value.reason in ("PIECE_TOO_SMALL", "TRANSCRIPT_TOO_LONG")
    assert caught.value.numbers


def test_the_same_however_often_the_shared_beginning_was_reused(
    small: AnalysisEngine, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers of a conversation are those of as many fresh contexts."""
    from coscheduler.engines.analysis import sequences

    asked = {"template": "actions", "seed": 9, "tokens_max": 200}
    reused = runner.answer(asked, LONG)
    decoded: list[int] = []
    decode = sequences.Context.decode

    def counted(self: sequences.Context, tokens: Any, sequence: int = 0) -> None:
        decoded.append(len(tokens))
        decode(self, tokens, sequence)

    monkeypatch.setattr(sequences.Context, "decode", counted)
    assert runner.answer(asked, LONG) == reused
    with_reuse = sum(decoded)
    decoded.clear()
    rewind = sequences.Context.rewind
    monkeypatch.setattr(
        sequences.Context, "rewind", lambda self, count, sequence=0: rewind(self, 0, sequence)
    )
    monkeypatch.setattr(sequences.Context, "restore", lambda self, path, sequence: False)
    assert runner.answer(asked, LONG) == reused
    assert with_reuse < sum(decoded)


def test_four_hours_within_8k(engine: AnalysisEngine, tmp_path: Path) -> None:
    """36,000 words: 2,400 segments of six seconds with 15 words each."""
    hours = talk(2400, words=15)
    document = Runner(engine, tmp_path).answer(
        {"template": "decisions", "tokens_max": 200, "seed": 2}, hours
    )
    assert document["reading"]["n_ctx"] == 8192
    calls = document["reading"]["calls"]
    assert calls[-1]["last_segment"] == 2399
    assert all(call["prompt_tokens"] + 200 <= 8192 for call in calls)
    assert sum(call["prompt_tokens"] for call in calls) > 40_000
    assert list(places(json.loads(json.dumps(document["result"]))))
