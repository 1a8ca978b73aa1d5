"""The template files and the messages they make."""

import pytest

from coscheduler import stages
from coscheduler.engines.analysis import catalogue
from coscheduler.engines.analysis.transcript import Transcript, Turn
from coscheduler.errors import InvalidInput

TALK = Transcript((Turn("Ich schreibe {{ das }}.", "A"), Turn("Gut.", "B")), "de")


def test_the_files_are_the_templates_that_jobs_may_name() -> None:
    assert set(catalogue.names()) == set(stages.TEMPLATES)


@pytest.mark.parametrize("name", [*catalogue.names(), catalogue.CUSTOM])
def test_every_template_speaks_of_the_transcript(name: str) -> None:
    template = catalogue.load(name)
    system, user = template.messages(TALK, prompt="Wer schreibt?")
    assert (system["role"], user["role"]) == ("system", "user")
    assert user["content"].endswith("A: Ich schreibe {{ das }}.\nB: Gut.")
    assert template.version >= 1
    assert (template.grammar is None) == (template.schema is None)


def test_custom_prompt_is_text_not_a_template() -> None:
    user = catalogue.load(catalogue.CUSTOM).messages(TALK, prompt="{{ 7 * 7 }}?")[1]
    assert user["content"].startswith("{{ 7 * 7 }}?")


def test_language_is_named_when_known() -> None:
    summary = catalogue.load("summary")
    assert "(de)" in summary.messages(TALK)[0]["content"]
    assert "()" not in summary.messages(Transcript(TALK.turns))[0]["content"]


def test_silence_is_said_to_be_silence() -> None:
    assert "no speech" in catalogue.load("summary").messages(Transcript(()))[1]["content"]


@pytest.mark.parametrize("name", ["minutes", "", "../summary", "_custom.toml"])
def test_unknown_template(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        catalogue.load(name)
    assert caught.value.reason == "TEMPLATE_UNKNOWN"
    assert caught.value.numbers["known"] == "actions,summary"


GOOD = """
version = 1
description = "d"
system = ""
user = "{{ transcript }}"
temperature = 0.0
top_k = 1
top_p = 1.0
"""


def test_a_template_without_system_prompt_sends_one_message() -> None:
    messages = catalogue.parse("x", GOOD).messages(TALK)
    assert [message["role"] for message in messages] == ["user"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version = 1", "version = 0"),
        ("version = 1", ""),
        ("version = 1", "version = 1\ncolour = 3"),
        ("version = 1", "version ="),
        ("{{ transcript }}", "{{ transcript "),
        ("top_k = 1", 'top_k = 1\nschema = "{"'),
        ("top_k = 1", "top_k = 1\nschema = '{\"type\": 3}'"),
    ],
)
def test_a_damaged_template_is_refused_by_name(old: str, new: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        catalogue.parse("broken", GOOD.replace(old, new))
    assert caught.value.reason == "TEMPLATE_INVALID"
    assert "broken" in caught.value.message
