"""The template files and the messages they make."""

from pathlib import Path

import pytest

from coscheduler import stages
from coscheduler.engines.analysis import catalogue
from coscheduler.errors import InvalidInput

FIXTURES = Path(__file__).parent / "fixtures"
TALK = "[0] A: Ich schreibe {{ das }}.\n[1] B: Gut."


def messages(name: str, text: str = TALK, language: str = "de", prompt: str = "") -> list[str]:
    """The contents of a template's messages."""
    template = catalogue.load(name)
    chat = template.messages(text, language, prompt, template.variables)
    assert [message["role"] for message in chat] == ["system", "user"]
    return [message["content"] for message in chat]


def test_the_files_are_the_templates_that_jobs_may_name() -> None:
    assert set(catalogue.names()) == set(stages.TEMPLATES)


@pytest.mark.parametrize("name", [*catalogue.names(), catalogue.CUSTOM, catalogue.FOLD])
def test_every_template_ends_with_the_transcript(name: str) -> None:
    _, user = messages(name, prompt="Wer schreibt?")
    assert user.endswith(TALK)
    assert catalogue.load(name).version >= 1


@pytest.mark.parametrize("name", [*catalogue.names(), catalogue.CUSTOM, catalogue.FOLD])
def test_what_is_said_changes_with_the_version_only(name: str) -> None:
    """The fixture holds the prompts: who changes them raises the version, and writes it anew."""
    template = catalogue.load(name)
    said = "\n=====\n".join(messages(name, prompt="Who writes?"))
    text = f"{name} {template.version}\n=====\n{said}\n"
    path = FIXTURES / f"{name}.txt"
    assert path.read_text(encoding="utf-8") == text


def test_custom_prompt_is_text_not_a_template() -> None:
    assert messages(catalogue.CUSTOM, prompt="{{ 7 * 7 }}?")[1].startswith("{{ 7 * 7 }}?")


def test_language_is_named_when_known() -> None:
    assert "(de)" in messages("summary")[0]
    assert "()" not in messages("summary", language="")[0]


def test_variables_are_declared_and_have_defaults() -> None:
    translate = catalogue.load("translate")
    assert translate.values({}) == {"to": "English"}
    chat = translate.messages(TALK, "de", "", translate.values({"to": "Polish"}))
    assert "into Polish" in chat[0]["content"]
    with pytest.raises(InvalidInput) as caught:
        translate.values({"too": "Polish"})
    assert caught.value.reason == "VARIABLE_UNKNOWN"
    assert caught.value.numbers["known"] == "to"


@pytest.mark.parametrize("name", ["poem", "", "../summary", "_custom.toml"])
def test_unknown_template(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        catalogue.load(name)
    assert caught.value.reason == "TEMPLATE_UNKNOWN"
    assert caught.value.numbers["known"] == ",".join(sorted(stages.TEMPLATES))


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
    chat = catalogue.parse("x", GOOD).messages(TALK, "", "", {})
    assert [message["role"] for message in chat] == ["user"]


def test_a_prompt_that_fails_is_named() -> None:
    text = GOOD.replace("{{ transcript }}", "{{ colour }} {{ transcript }}")
    with pytest.raises(InvalidInput, match="colour"):
        catalogue.parse("x", text).messages(TALK, "", "", {})


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
        ("top_k = 1", 'top_k = 1\nschema = \'{"type": "number"}\''),
        ("top_k = 1", 'top_k = 1\nschema = \'{"type": "null"}\''),
        ("top_k = 1", "top_k = 1\nschema = 'true'"),
        ("top_k = 1", "top_k = 1\nper_turn = true"),
        ("top_k = 1", "top_k = 1\nmerge = 'guess'"),
    ],
)
def test_a_damaged_template_is_refused_by_name(old: str, new: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        catalogue.parse("broken", GOOD.replace(old, new))
    assert caught.value.reason == "TEMPLATE_INVALID"
    assert "broken" in caught.value.message
