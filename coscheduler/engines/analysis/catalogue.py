"""The templates: data files with a version, prompts in Jinja2 and a JSON schema for the answer.

A file `templates/NAME.toml`, or one of a user's own, has `version`, `description`, `system`,
`user`, `temperature`, `top_k`, `top_p`, `tokens_max` and `schema` (JSON as text). Prompts may use
`transcript`, `language`, `prompt` and the template's own `variables`. A template without a schema
answers in free text, which becomes {"text": ...}. Names that begin with an underscore are not
offered to users.

In the schema a property "cites" is a list of integers: the model may only write numbers of lines it
was shown, and the result has their times and speakers instead (`citing.py`). With `quotes` it also
has the words that were said. `merge` says how the answers about the pieces of a long transcript
become one: "join" puts their lists together, "model" asks the model. With `per_turn` there is
exactly one item for each turn, in order, and the items need no "cites"; `answer_ratio` says how
many tokens of an answer to expect for each token of transcript, 0 where that does not follow.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import jinja2
import jsonschema
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coscheduler.engines.analysis import citing
from coscheduler.engines.analysis import schema as schemas
from coscheduler.engines.analysis.transcript import Unit
from coscheduler.errors import EngineFault, InvalidInput

CUSTOM = "_custom"
FOLD = "_fold"
OWN = "own"  # the name of a template that came with the job
Merge = Literal["join", "model"]


class _File(BaseModel):
    """A template as it stands in its file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=1)
    description: str = Field(min_length=1)
    system: str
    user: str = Field(min_length=1)
    temperature: float = Field(ge=0, le=2)
    top_k: int = Field(ge=1)
    top_p: float = Field(gt=0, le=1)
    tokens_max: int = Field(default=512, ge=1, le=32_768)
    merge: Merge = "model"
    per_turn: bool = False
    answer_ratio: float = Field(default=0, ge=0, le=10)
    unit: Unit = "line"
    quotes: bool = False
    variables: dict[str, str] = {}
    schema_text: str = Field(default="", alias="schema")


@dataclass(frozen=True)
class Template:
    """A checked template. `schema` None: free text. `variables` are the defaults."""

    name: str
    version: int
    description: str
    system: str
    user: str
    temperature: float
    top_k: int
    top_p: float
    tokens_max: int
    merge: Merge
    per_turn: bool
    answer_ratio: float
    unit: Unit
    quotes: bool
    variables: Mapping[str, str]
    schema: dict[str, Any] | None

    @property
    def result_schema(self) -> dict[str, Any] | None:
        """The schema of `result` in the written document; None for free text."""
        if self.schema is None:
            return None
        whole = citing.with_cites(self.schema) if self.per_turn else self.schema
        found: dict[str, Any] = citing.result_schema(whole, self.quotes)
        return found

    def messages(
        self, text: str, language: str, prompt: str, variables: Mapping[str, str]
    ) -> list[dict[str, str]]:
        """The chat to send: a system message where the template has one, and a user message.

        `text` is what stands for the transcript. Raises InvalidInput TEMPLATE_INVALID when a prompt
        fails.
        """
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
        values = dict(variables) | {"transcript": text, "language": language, "prompt": prompt}
        roles = (("system", self.system), ("user", self.user))
        try:
            rendered = [
                (role, environment.from_string(text).render(values)) for role, text in roles
            ]
        except Exception as error:  # a stranger's program: it may raise anything
            raise _invalid(self.name, f"a prompt fails: {error}") from None
        return [{"role": role, "content": text.strip()} for role, text in rendered if text.strip()]

    def values(self, given: Mapping[str, str]) -> dict[str, str]:
        """The variables, with the defaults of those not given.

        Raises InvalidInput VARIABLE_UNKNOWN.
        """
        for name in given:
            if name not in self.variables:
                known = ", ".join(self.variables) or "none"
                raise InvalidInput(
                    "VARIABLE_UNKNOWN",
                    f"template {self.name!r} has no variable {name!r}; it has: {known}",
                    variable=name,
                    known=known,
                )
        return dict(self.variables) | dict(given)


def names() -> tuple[str, ...]:
    """The templates on offer, sorted."""
    files = (entry.name for entry in _folder().iterdir())
    stems = (name.removesuffix(".toml") for name in files if name.endswith(".toml"))
    return tuple(sorted(stem for stem in stems if not stem.startswith("_")))


def load(name: str) -> Template:
    """Read a template. Raises InvalidInput TEMPLATE_UNKNOWN or TEMPLATE_INVALID."""
    if name not in (*names(), CUSTOM, FOLD):
        raise InvalidInput(
            "TEMPLATE_UNKNOWN",
            f"no template {name!r}; there are: {', '.join(names())}",
            template=name,
            known=",".join(names()),
        )
    return parse(name, (_folder() / f"{name}.toml").read_text(encoding="utf-8"))


def parse(name: str, text: str) -> Template:
    """Check the text of a template file. Raises InvalidInput TEMPLATE_INVALID."""
    try:
        file = _File.model_validate(tomllib.loads(text))
        schema = json.loads(file.schema_text) if file.schema_text else None
        if schema is not None:
            jsonschema.Draft202012Validator.check_schema(schema)
            if not isinstance(schema, dict) or schema.get("type") != "object":
                raise ValueError("the schema must be that of an object")
            schemas.grammar(schema)
        for prompt in (file.system, file.user):
            ImmutableSandboxedEnvironment().parse(prompt)
    except (tomllib.TOMLDecodeError, ValidationError, ValueError) as error:
        raise _invalid(name, str(error)) from None
    except (jsonschema.SchemaError, jinja2.TemplateSyntaxError) as error:
        raise _invalid(name, error.message or "a prompt is not Jinja2") from None
    except EngineFault as fault:
        raise _invalid(name, fault.message) from None
    if file.per_turn and not _has_one_list(schema):
        raise _invalid(name, "per_turn needs a schema with one property, a list of objects")
    return Template(
        name=name.removeprefix("_"), schema=schema, **file.model_dump(exclude={"schema_text"})
    )


def _has_one_list(schema: dict[str, Any] | None) -> bool:
    parts = list((schema or {}).get("properties", {}).values())
    return len(parts) == 1 and parts[0].get("items", {}).get("type") == "object"


def _folder() -> Any:
    return resources.files("coscheduler.engines.analysis") / "templates"


def _invalid(name: str, why: str) -> InvalidInput:
    return InvalidInput("TEMPLATE_INVALID", f"template {name!r}: {why}", template=name)
