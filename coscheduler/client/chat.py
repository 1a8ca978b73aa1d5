"""Conversations from the client's side: the streams of both clients, and a history."""

from collections.abc import AsyncGenerator, Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import grpc

from coscheduler import chat
from coscheduler.chat import ChatDone, ChatEvent, ChatParameters, ChatText
from coscheduler.core.model import Priority
from coscheduler.errors import CoschedulerError
from coscheduler.rpc import convert, status
from coscheduler.v1 import chat_pb2_grpc

if TYPE_CHECKING:
    from coscheduler.client.blocking import Client


async def stream_async(
    channel: grpc.aio.Channel, address: str, parameters: ChatParameters, priority: Priority
) -> AsyncGenerator[ChatEvent, None]:
    """The events of an answer; closing the generator ends the call, and with it the answer."""
    stub: Any = chat_pb2_grpc.ChatServiceStub(channel)
    call = stub.Generate(convert.chat_request_to_wire(parameters, priority))
    try:
        async for message in call:
            yield convert.chat_event_from_wire(message)
    except grpc.aio.AioRpcError as error:
        raise status.from_rpc_error(error, address) from None
    finally:
        call.cancel()


def stream(
    channel: grpc.Channel, address: str, parameters: ChatParameters, priority: Priority
) -> Generator[ChatEvent, None]:
    """The same, blocking."""
    call = chat_pb2_grpc.ChatServiceStub(channel).Generate(
        convert.chat_request_to_wire(parameters, priority)
    )
    try:
        for message in call:
            yield convert.chat_event_from_wire(message)
    except grpc.RpcError as error:
        raise status.from_rpc_error(error, address) from None
    finally:
        call.cancel()


class Conversation:
    """A history, and how to go on with it: `options` are fields of `ChatParameters`."""

    def __init__(
        self,
        client: "Client",
        *,
        system: str = "",
        priority: Priority = Priority.INTERACTIVE,
        **options: Any,
    ) -> None:
        """An option that there is not is told by `say`."""
        self._client = client
        self._options = options
        self._priority = priority
        self.messages: list[dict[str, str]] = []
        if system:
            self.messages.append({"role": "system", "content": system})

    def say(self, text: str) -> Generator[ChatEvent, None]:
        """The answer as it comes. It becomes part of the history when it is whole, as far as it
        came when the generator is closed early; a question that failed does not. Raises
        InvalidInput PARAMETER_INVALID and what `Client.chat` raises.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        parameters = chat.parse({"messages": asked, **self._options})
        answer: list[str] = []
        try:
            with closing(self._client.chat(parameters, self._priority)) as events:
                for event in events:
                    if isinstance(event, ChatText):
                        answer.append(event.text)
                    yield event
                    if isinstance(event, ChatDone):
                        break
        except CoschedulerError:
            answer.clear()
            raise
        finally:
            if answer:
                self.messages = [*asked, {"role": "assistant", "content": "".join(answer)}]
