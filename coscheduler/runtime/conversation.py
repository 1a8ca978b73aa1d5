"""The conversation with one engine process: requests out, answers in, until the process ends.

One request is in flight at a time, and beside it at most one resize. A process that is silent for
longer than its limit is ended; whoever waits for an answer then hears why it ended.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence

from coscheduler.chat import Broken, Ended, Letter, Said
from coscheduler.core.model import EngineName, Failure, Option
from coscheduler.engines import messages as msg
from coscheduler.runtime.children import Child
from coscheduler.runtime.clock import Clock

PIPE_TO_END_SECONDS = 2.0  # a process that closed its pipe should end by itself
RETRYABLE = ("OUT_OF_MEMORY", "ENGINE_ERROR")


class ChildEnded(Exception):
    """The process ended while a request was in flight."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class RequestFailed(Exception):
    """The engine answered Failed and is still there."""

    def __init__(self, answer: msg.Failed) -> None:
        super().__init__(answer.message)
        self.failure = Failure(answer.reason, answer.message, tuple(answer.numbers.items()))
        self.is_retryable = answer.reason in RETRYABLE


class Conversation:
    """With `child`. `hear` is told of every answer that belongs to no request."""

    def __init__(self, child: Child, clock: Clock, hear: Callable[[msg.Answer], None]) -> None:
        self.child = child
        self._clock = clock
        self._hear = hear
        self._reply: asyncio.Future[msg.Answer] | None = None
        self._resized: asyncio.Future[str | None] | None = None  # None: it has ended
        self._heard_ms = 0
        self._is_paused = False
        self._end: Failure | None = None

    @property
    def engine(self) -> EngineName:
        """Which engine it is with."""
        return self.child.engine

    # ---- asking ------------------------------------------------------------------------------

    async def ask(
        self, request: msg.Request, silence_ms_max: int, letters: Sequence[Letter] = ()
    ) -> msg.Answer:
        """One request, with letters right behind it, one answer. A child silent for longer than the
        limit is ended.

        Raises ChildEnded and RequestFailed.
        """
        if self.child.ended.done():
            gone = f"the {self.engine} engine ended between two requests"
            raise ChildEnded(self._end or Failure("ENGINE_CRASHED", gone))
        reply: asyncio.Future[msg.Answer] = asyncio.get_running_loop().create_future()
        self._reply = reply
        self.tell(request, *letters)
        try:
            while not reply.done():
                await asyncio.wait({reply}, timeout=self._patience_ms(silence_ms_max) / 1000)
        finally:
            self._reply = None
        answer = reply.result()
        if isinstance(answer, msg.Failed):
            raise RequestFailed(answer)
        return answer

    def _patience_ms(self, silence_ms_max: int) -> int:
        """How long to wait for a sign of life; ends the child where the limit is over."""
        rest_ms = self._heard_ms + silence_ms_max - self._clock.now_ms()
        if self._is_paused or rest_ms > 0:
            return silence_ms_max if self._is_paused else rest_ms
        why = f"{self.engine} was silent for {silence_ms_max} ms"
        self.child.end(Failure("ENGINE_HUNG", why))
        return silence_ms_max

    def tell(self, *messages: msg.Request) -> None:
        """Send what needs no answer of its own; a pause ends with it, until the child says so."""
        self._heard_ms = self._clock.now_ms()
        self._is_paused = False
        for message in messages:
            self.child.send(message)

    async def resize(self, option: Option, silence_ms_max: int) -> str | None:
        """Go to another option between two slices; the name of the one that it is then, None when
        the child has ended.
        """
        resized: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        if self.child.ended.done():
            return None
        self._resized = resized
        self.child.send(msg.ResizeOption(option))
        done, _ = await asyncio.wait({resized}, timeout=silence_ms_max / 1000)
        if not done:
            why = f"{self.engine} was not resized within {silence_ms_max} ms"
            self.child.end(Failure("ENGINE_HUNG", why))
        return await resized

    async def cancel(self, limit_ms: int) -> None:
        """Hasten the end of the running task; one that does not stop in time is ended."""
        reply = self._reply
        if reply is None:
            return
        self.child.send(msg.CancelTask())
        done, _ = await asyncio.wait({reply}, timeout=limit_ms / 1000)
        if not done:
            why = f"{self.engine} did not stop within {limit_ms} ms"
            self.child.end(Failure("CANCEL_TIMED_OUT", why))

    # ---- listening ---------------------------------------------------------------------------

    async def listen(self) -> Failure:
        """Take in what the child says until it has ended; returns why it ended."""
        with contextlib.suppress(ConnectionError, ValueError):
            while line := await self.child.reader.readline():
                self._take(msg.decode_answer(line))
        await asyncio.wait({self.child.ended}, timeout=PIPE_TO_END_SECONDS)
        self.child.end(Failure("ENGINE_CRASHED", f"{self.engine} closed its pipe"))
        status = await self.child.wait()
        self._end = self.child.doom or _crash(self.engine, status)
        return self._end

    def was_waited_for(self, failure: Failure) -> bool:
        """The child has ended: tell whoever waits for its answer; False when nobody did."""
        if self._resized is not None and not self._resized.done():
            self._resized.set_result(None)
        if self._reply is None or self._reply.done():
            return False
        self._reply.set_exception(ChildEnded(failure))
        return True

    def _take(self, answer: msg.Answer) -> None:
        self._heard_ms = self._clock.now_ms()
        match answer:
            case msg.OptionResized(option):
                if self._resized is not None:
                    self._resized.set_result(option)
            case msg.ResizeFailed(reason, message):
                self.child.end(Failure(reason, message))
            case msg.LoadProgress():
                pass
            case msg.TaskProgress() | Said() | Ended() | Broken():
                self._hear(answer)
            case msg.TaskPaused():
                self._is_paused = True
                self._hear(answer)
            case _:
                if self._reply is not None:
                    self._reply.set_result(answer)


def _crash(engine: EngineName, status: int) -> Failure:
    code = os.waitstatus_to_exitcode(status)
    how = f"signal {-code}" if code < 0 else f"exit status {code}"
    return Failure(
        "ENGINE_CRASHED", f"the {engine} engine ended by itself ({how})", (("status", str(code)),)
    )
