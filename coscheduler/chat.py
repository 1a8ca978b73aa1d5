"""What a chat asks for and what comes back: plain data for the wire, the daemon and the engine.

A `Question` is a request on its way to the engine; `Said`, `Ended` and `Broken` come back. Each
request is answered by any number of `Said` and then one of the other two.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from coscheduler.errors import InvalidInput

Role = Literal["system", "user", "assistant"]
ChatOverflow = Literal["refuse", "drop"]
CHARACTERS_MAX = 1_000_000  # of all messages of a request
# Files in `session_dir`: the state of a sequence, its tokens, what is being written.
STATE_SUFFIX, TOKENS_SUFFIX, PART_SUFFIX = ".state", ".tokens", ".part"
StopText = Annotated[str, Field(min_length=1, max_length=200)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(_Section):
    """One turn of a conversation."""

    role: Role
    content: str


class ChatParameters(_Section):
    """A conversation to go on with, and how.

    The messages are the whole conversation: the daemon keeps none. `session` names it, so that what
    was read of it before need not be read again. `overflow` says what becomes of a conversation
    that does not fit the context: it is refused, or its oldest turns are dropped (never the system
    prompt, never the last turn). With `schema_text` the answer is JSON of that schema. Temperature
    0 always takes the likeliest token. `tokens_max` None: what the context leaves, 1,024 at most.
    """

    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=1000)]
    session: Annotated[str, Field(max_length=128)] = ""
    stop: Annotated[tuple[StopText, ...], Field(max_length=8)] = ()
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    tokens_max: Annotated[int, Field(ge=1, le=32_768)] | None = None
    schema_text: Annotated[str, Field(max_length=100_000)] = ""
    overflow: ChatOverflow = "refuse"

    @field_validator("schema_text")
    @classmethod
    def _is_object(cls, text: str) -> str:
        if text:
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"the schema is not JSON: {error}") from None
            if not isinstance(value, dict):
                raise ValueError("the schema is not a JSON object")
        return text

    @model_validator(mode="after")
    def _in_order(self) -> "ChatParameters":
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's")
        if any(message.role == "system" for message in self.messages[1:]):
            raise ValueError("a system message can only be the first")
        length = sum(len(message.content) for message in self.messages)
        if length > CHARACTERS_MAX:
            raise ValueError(f"{length} characters; {CHARACTERS_MAX} are allowed")
        return self

    @property
    def schema_object(self) -> dict[str, Any] | None:
        """The schema, if there is one."""
        return json.loads(self.schema_text) if self.schema_text else None


def parse(values: Mapping[str, Any]) -> ChatParameters:
    """Check a request. Raises InvalidInput PARAMETER_INVALID with the field."""
    try:
        return ChatParameters.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "messages"
        raise InvalidInput(
            "PARAMETER_INVALID", f"chat: {where}: {first['msg']}", field=where
        ) from None


@dataclass(frozen=True)
class Question:
    """A request for the engine. An answer that was interrupted is gone on with behind the tokens in
    `drawn`, of whose text `sent_count` characters are known already.
    """

    id: str
    parameters: ChatParameters
    drawn: tuple[int, ...] = ()
    sent_count: int = 0
    type: Literal["question"] = "question"


@dataclass(frozen=True)
class HangUp:
    """Nobody waits for the answer any more."""

    id: str
    type: Literal["hang_up"] = "hang_up"


@dataclass(frozen=True)
class Said:
    """More of an answer: its text, and the tokens drawn meanwhile."""

    id: str
    text: str
    tokens: tuple[int, ...]
    type: Literal["said"] = "said"


@dataclass(frozen=True)
class Ended:
    """An answer is whole. `finish`: "stop" (the model's end, or a stop text) or "length".

    `reused_tokens` of the prompt were in memory or saved; `queue_ms` is the time until a sequence
    and its cells were free.
    """

    id: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int
    dropped_count: int
    queue_ms: int
    prefill_ms: int
    decode_ms: int
    type: Literal["ended"] = "ended"


@dataclass(frozen=True)
class Broken:
    """A request cannot be answered; the fields are those of an error."""

    id: str
    kind: str
    reason: str
    message: str
    numbers: dict[str, str] = field(default_factory=dict)
    type: Literal["broken"] = "broken"


Letter = Question | HangUp
Reply = Said | Ended | Broken


# ---- what the caller sees ----------------------------------------------------------------------


@dataclass(frozen=True)
class ChatWaiting:
    """Why the answer has not begun, in words; again whenever that changes."""

    reason: str


@dataclass(frozen=True)
class ChatText:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True)
class ChatDone:
    """The answer is whole: how it ended, its tokens, and where the time went, in ms.

    First token = wait (for memory, the engine, a sequence) + load + prefill, and the first of the
    decoding; `first_token_ms` is measured, from the request to the first text. `notes` say what was
    left out or done otherwise than asked.
    """

    finish: str
    prompt_tokens: int
    completion_tokens: int
    reused_tokens: int
    wait_ms: int
    load_ms: int
    prefill_ms: int
    decode_ms: int
    first_token_ms: int
    option: str = ""
    quality_tier: int = 0
    notes: tuple[str, ...] = ()


ChatEvent = ChatWaiting | ChatText | ChatDone
