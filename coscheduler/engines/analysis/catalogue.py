"""The templates: data files with a version, prompts in Jinja2 and a JSON schema for the answer.

A file `templates/NAME.toml` has `version`, `description`, `system`, `user`, `temperature`,
`top_k`, `top_p` and `schema` (JSON as text). Prompts may use `transcript`, `language` and
`prompt`. A template without a schema answers in free text, which becomes {"text": ...}. Names that
begin with an underscore are not offered to users.
"""

import json
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import jsonschema
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coscheduler.engines.analysis import schema as schemas
from coscheduler.engines.analysis.transcript import Transcript
from coscheduler.errors import InvalidInput

CUSTOM = "_custom"


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
    schema_text: str = Field(default="", alias="schema")


@dataclass(frozen=True)
class Template:
    """A checked template. `schema` None: free text. `grammar` None likewise."""

    name: str
    version: int
    description: str
    system: str
    user: str
    temperature: float
    top_k: int
    top_p: float
    schema: dict[str, Any] | None
    grammar: str | None

    def messages(self, transcript: Transcript, prompt: str = "") -> list[dict[str, str]]:
        """The chat to send: a system message where the template has one, and a user message."""
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
        values = {
            "transcript": transcript.text or "(no speech was recognised)",
            "language": transcript.language,
            "prompt": prompt,
        }
        roles = (("system", self.system), ("user", self.user))
        rendered = ((role, environment.from_string(text).render(values)) for role, text in roles)
        return [{"role": role, "content": text.strip()} for role, text in rendered if text.strip()]


def names() -> tuple[str, ...]:
    """The templates on offer, sorted."""
    files = (entry.name for entry in _folder().iterdir())
    stems = (name.removesuffix(".toml") for name in files if name.endswith(".toml"))
    return tuple(sorted(stem for stem in stems if not stem.startswith("_")))


def load(name: str) -> Template:
    """Read a template. Raises InvalidInput TEMPLATE_UNKNOWN or TEMPLATE_INVALID."""
    if name not in (*names(), CUSTOM):
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
        for prompt in (file.system, file.user):
            ImmutableSandboxedEnvironment().parse(prompt)
    except (tomllib.TOMLDecodeError, ValidationError, ValueError) as error:
        raise _invalid(name, str(error)) from None
    except (jsonschema.SchemaError, jinja2.TemplateSyntaxError) as error:
        raise _invalid(name, error.message or "a prompt is not Jinja2") from None
    grammar = schemas.grammar(schema) if schema is not None else None
    return Template(
        name=name.removeprefix("_"),
        schema=schema,
        grammar=grammar,
        **file.model_dump(exclude={"schema_text"}),
    )


def _folder() -> Any:
    return resources.files("coscheduler.engines.analysis") / "templates"


def _invalid(name: str, why: str) -> InvalidInput:
    return InvalidInput("TEMPLATE_INVALID", f"template {name!r}: {why}", template=name)
