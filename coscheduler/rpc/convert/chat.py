"""Conversations <-> v1.GenerateRequest and v1.GenerateResponse."""

from typing import Any

from coscheduler import chat
from coscheduler.chat import (
    ChatDone,
    ChatEvent,
    ChatOverflow,
    ChatParameters,
    ChatText,
    ChatWaiting,
    Role,
)
from coscheduler.core.model import Priority
from coscheduler.rpc.convert.names import PRIORITY, Names
from coscheduler.v1 import chat_pb2

ROLE = Names[Role, chat_pb2.Role.ValueType](
    "role",
    {
        "system": chat_pb2.ROLE_SYSTEM,
        "user": chat_pb2.ROLE_USER,
        "assistant": chat_pb2.ROLE_ASSISTANT,
    },
)
OVERFLOW = Names[ChatOverflow, chat_pb2.ChatOverflow.ValueType](
    "overflow",
    {"refuse": chat_pb2.CHAT_OVERFLOW_REFUSE, "drop": chat_pb2.CHAT_OVERFLOW_DROP},
)
FINISH = Names[str, chat_pb2.FinishReason.ValueType](
    "finish_reason",
    {"stop": chat_pb2.FINISH_REASON_STOP, "length": chat_pb2.FINISH_REASON_LENGTH},
)


def chat_request_to_wire(
    parameters: ChatParameters, priority: Priority
) -> chat_pb2.GenerateRequest:
    """The message for a request."""
    return chat_pb2.GenerateRequest(
        messages=[
            chat_pb2.ChatMessage(role=ROLE.to_wire(message.role), content=message.content)
            for message in parameters.messages
        ],
        session=parameters.session,
        stop=parameters.stop,
        temperature=parameters.temperature,
        top_p=parameters.top_p,
        seed=parameters.seed,
        max_token_count=parameters.tokens_max,
        json_schema=parameters.schema_text,
        overflow=OVERFLOW.to_wire(parameters.overflow),
        priority=PRIORITY.to_wire(priority),
    )


def chat_request_from_wire(message: chat_pb2.GenerateRequest) -> tuple[ChatParameters, Priority]:
    """The checked request and its class. Raises InvalidInput PARAMETER_INVALID, ROLE_UNKNOWN,
    OVERFLOW_UNKNOWN or PRIORITY_UNKNOWN.
    """
    values: dict[str, Any] = {
        "messages": [
            {"role": ROLE.from_wire(one.role), "content": one.content} for one in message.messages
        ],
        "session": message.session,
        "stop": list(message.stop),
        "seed": message.seed,
        "schema_text": message.json_schema,
    }
    for field, name in (
        ("temperature", "temperature"), ("top_p", "top_p"), ("max_token_count", "tokens_max"),
    ):  # fmt: skip
        if message.HasField(field):  # type: ignore[arg-type]
            values[name] = getattr(message, field)
    if message.overflow:
        values["overflow"] = OVERFLOW.from_wire(message.overflow)
    priority = PRIORITY.from_wire(message.priority) if message.priority else Priority.INTERACTIVE
    return chat.parse(values), priority


def chat_event_to_wire(event: ChatEvent) -> chat_pb2.GenerateResponse:
    """The message for a piece of an answer."""
    match event:
        case ChatWaiting(reason):
            return chat_pb2.GenerateResponse(waiting_for=reason)
        case ChatText(text):
            return chat_pb2.GenerateResponse(text=text)
        case ChatDone():
            return chat_pb2.GenerateResponse(done=_done_to_wire(event))


def chat_event_from_wire(message: chat_pb2.GenerateResponse) -> ChatEvent:
    """The piece in a message; an unknown one is no text."""
    match message.WhichOneof("event"):
        case "waiting_for":
            return ChatWaiting(message.waiting_for)
        case "done":
            return _done_from_wire(message.done)
        case _:
            return ChatText(message.text)


def _done_to_wire(done: ChatDone) -> chat_pb2.GenerateDone:
    return chat_pb2.GenerateDone(
        finish_reason=FINISH.to_wire(done.finish),
        prompt_token_count=done.prompt_tokens,
        completion_token_count=done.completion_tokens,
        reused_token_count=done.reused_tokens,
        wait_ms=done.wait_ms,
        load_ms=done.load_ms,
        prefill_ms=done.prefill_ms,
        decode_ms=done.decode_ms,
        first_token_ms=done.first_token_ms,
        option=done.option,
        quality_tier=done.quality_tier,
        notes=done.notes,
    )


def _done_from_wire(message: chat_pb2.GenerateDone) -> ChatDone:
    return ChatDone(
        finish=FINISH.from_wire(message.finish_reason),
        prompt_tokens=message.prompt_token_count,
        completion_tokens=message.completion_token_count,
        reused_tokens=message.reused_token_count,
        wait_ms=message.wait_ms,
        load_ms=message.load_ms,
        prefill_ms=message.prefill_ms,
        decode_ms=message.decode_ms,
        first_token_ms=message.first_token_ms,
        option=message.option,
        quality_tier=message.quality_tier,
        notes=tuple(message.notes),
    )
