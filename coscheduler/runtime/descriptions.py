"""What engines are: asked in processes of their own, and remembered with the contexts measured."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from coscheduler.core import events as ev
from coscheduler.core.model import EngineDescription, EngineName, Failure, Option
from coscheduler.core.refusals import failure_of
from coscheduler.engines import messages as msg
from coscheduler.errors import CoschedulerError
from coscheduler.runtime.children import Child, Children
from coscheduler.runtime.conversation import ChildEnded, Conversation, RequestFailed

log = logging.getLogger(__name__)


class ProcessBook(Protocol):
    """Where pids and measured contexts are kept for the next daemon (the Store)."""

    async def add_process(self, pid: int, start_ticks: int) -> None:
        """An engine process was started."""
        ...

    async def put_measurement(self, engine: str, model: str, what: str, size_bytes: int) -> None:
        """Keep a measured size."""
        ...

    async def get_measurement(self, engine: str, model: str, what: str) -> int | None:
        """A size that was kept."""
        ...


class Descriptions:
    """Of all engines of the daemon."""

    def __init__(
        self,
        children: Children,
        book: ProcessBook,
        talk_with: Callable[[Child], Conversation],
        silence_ms_max: int,
    ) -> None:
        self._children = children
        self._book = book
        self._talk_with = talk_with
        self._silence_ms_max = silence_ms_max
        self._known: dict[EngineName, EngineDescription] = {}

    def option(self, engine: EngineName, name: str) -> Option:
        """The described engine's option of that name."""
        return next(option for option in self._known[engine].options if option.name == name)

    async def ask(self, engine: EngineName) -> ev.Described | ev.DescribeFailed:
        """Ask now. Whatever goes wrong is the answer: an engine that is never described would keep
        its jobs for ever.
        """
        try:
            description = await self._remembered(await self._asked(engine))
        except (RequestFailed, ChildEnded) as failed:
            return ev.DescribeFailed(engine, failed.failure)
        except CoschedulerError as error:
            return ev.DescribeFailed(engine, failure_of(error))
        except Exception as error:
            log.exception("describing %s failed", engine)
            return ev.DescribeFailed(engine, Failure("SUPERVISOR_ERROR", repr(error)))
        return ev.Described(engine, description)

    async def _asked(self, engine: EngineName) -> EngineDescription:
        """Of a process forked early: a file that breaks the reader breaks nothing else."""
        child = await self._children.spawn(engine, early=True)
        child.is_expected_to_end = True
        try:
            answer = await self._talk_with(child).ask(msg.Describe(), self._silence_ms_max)
        finally:
            child.end()
        assert isinstance(answer, msg.Described)
        return answer.description

    async def _remembered(self, description: EngineDescription) -> EngineDescription:
        """The description with the context's bytes as an earlier start measured them."""
        known = await self._book.get_measurement(description.engine, description.model, "context")
        if known is not None:
            description = replace(description, context_bytes=known)
        self._known[description.engine] = description
        return description

    async def remember_context(self, engine: EngineName, size_bytes: int) -> None:
        """What its context was measured to take, for the next daemon too."""
        model = self._known[engine].model
        await self._book.put_measurement(engine, model, "context", size_bytes)
