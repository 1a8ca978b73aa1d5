"""Conversations over the wire: both clients, the history, the command line."""

import asyncio
import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coscheduler import chat
from coscheduler.chat import ChatDone, ChatParameters, ChatText, ChatWaiting
from coscheduler.client import AsyncClient, Client, Conversation
from coscheduler.core.model import Priority
from coscheduler.errors import InvalidInput, Refused
from coscheduler.rpc import convert
from coscheduler.v1 import chat_pb2
from tests.rpc.support import asynchronous, eventually, serving


def asked(text: str = "one two", **values: Any) -> ChatParameters:
    return chat.parse({"messages": [{"role": "user", "content": text}], **values})


FULL = chat.parse(
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Colours?"},
        ],
        "session": "s1", "stop": ["END"], "temperature": 0.0, "top_p": 0.5, "seed": 7,
        "tokens_max": 9, "schema_text": '{"type": "object"}', "overflow": "drop",
    }
)  # fmt: skip
DONE = ChatDone("stop", 1, 2, 3, 4, 5, 6, 7, 8, "n_ctx 8192", 1, ("a note",))


@pytest.mark.parametrize("parameters", [asked(), FULL])
@pytest.mark.parametrize("priority", list(Priority))
def test_a_request_survives_the_wire(parameters: ChatParameters, priority: Priority) -> None:
    message = convert.chat_request_to_wire(parameters, priority)
    back = chat_pb2.GenerateRequest.FromString(message.SerializeToString())
    assert convert.chat_request_from_wire(back) == (parameters, priority)


@pytest.mark.parametrize("event", [ChatWaiting("memory"), ChatText("a b"), DONE])
def test_an_event_survives_the_wire(event: Any) -> None:
    assert convert.chat_event_from_wire(convert.chat_event_to_wire(event)) == event


def test_what_is_not_set_has_its_default() -> None:
    message = chat_pb2.GenerateRequest(
        messages=[chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content="x")]
    )
    parameters, priority = convert.chat_request_from_wire(message)
    assert (parameters, priority) == (asked("x"), Priority.INTERACTIVE)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "last message"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"},
                       {"role": "user", "content": "z"}]}, "first"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop": [""]}, "stop"),
        ({"schema_text": "{"}, "not JSON"),
        ({"schema_text": "[]"}, "not a JSON object"),
        ({"session": "x" * 129}, "session"),
        ({"tokens_max": 0}, "tokens_max"),
        ({"nonsense": 1}, "nonsense"),
    ],
)  # fmt: skip
def test_bad_requests_name_what_is_wrong(values: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput, match=field) as caught:
        chat.parse({"messages": [{"role": "user", "content": "x"}], **values})
    assert caught.value.reason == "PARAMETER_INVALID"


@asynchronous
async def test_an_answer_streams_and_its_end_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, front), AsyncClient(front.address) as client:
        events = [event async for event in client.chat(asked(), Priority.BATCH)]
        assert events[0] == ChatWaiting("analysis is running jobs/0001")
        assert [event for event in events if isinstance(event, ChatText)] == [
            ChatText("one "), ChatText("two "),
        ]  # fmt: skip
        assert isinstance(events[-1], ChatDone) and events[-1].first_token_ms == 10
        assert daemon.chats == [(asked(), Priority.BATCH)]
        with pytest.raises(Refused) as caught:
            async for _ in client.chat(asked("refuse")):
                pass
        assert (caught.value.reason, caught.value.numbers) == ("CHAT_TOO_LONG", {"n_ctx": "8"})


@asynchronous
async def test_ending_the_call_ends_the_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, front), AsyncClient(front.address) as client:
        async with contextlib.aclosing(client.chat(asked("endless"))) as events:
            async for event in events:
                if isinstance(event, ChatText):
                    break
        await eventually(lambda: daemon.chats_ended == 1)


def talk(address: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    with Client(address) as client:
        conversation = Conversation(client, system="Be brief.", seed=3)
        for _ in conversation.say("one"):
            pass
        whole = list(conversation.messages)
        with pytest.raises(Refused):
            list(conversation.say("refuse"))
        events = conversation.say("endless")
        while not isinstance(next(events), ChatText):
            pass
        events.close()
        return whole, conversation.messages


@asynchronous
async def test_a_conversation_keeps_its_history(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, front):
        whole, after = await asyncio.to_thread(talk, front.address)
        assert [message["role"] for message in whole] == ["system", "user", "assistant"]
        assert whole[-1]["content"] == "one "
        assert after[:3] == whole, "what was refused is no part of it"
        assert after[3]["content"] == "endless"
        assert after[4]["content"].startswith("endless"), "as far as it came"
        assert [parameters.seed for parameters, _ in daemon.chats] == [3, 3, 3]


def command(address: str, *arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "coscheduler", "--server", address, "chat", *arguments],
        input=text, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@asynchronous
async def test_the_command_line_asks_once_or_converses(tmp_path: Path) -> None:
    async with serving(tmp_path) as (daemon, front):
        once = await asyncio.to_thread(
            command, front.address, "one two", "--json", "--max-tokens", "5"
        )
        assert once.returncode == 0, once.stderr
        found = json.loads(once.stdout)
        assert (found["text"], found["finish"], found["first_token_ms"]) == (
            "one two ", "length", 10,
        )  # fmt: skip
        lines = "one\ntwo\n/new\nrefuse\nthree\n\nnever\n"
        arguments = ("--system", "Be brief.", "--refuse")
        talked = await asyncio.to_thread(command, front.address, *arguments, text=lines)
        assert talked.stdout.split() == ["one", "two", "three"]
        assert "waiting for analysis is running" in talked.stderr
        assert "CHAT_TOO_LONG" in talked.stderr
        lengths = [len(parameters.messages) for parameters, _ in daemon.chats]
        assert lengths == [1, 2, 4, 2, 2], "a history, and a new one"
        sessions = {parameters.session for parameters, _ in daemon.chats[1:]}
        assert len(sessions) == 1 and "" not in sessions
