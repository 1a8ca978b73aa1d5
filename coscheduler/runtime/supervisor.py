"""Carries the scheduler's commands out on engine processes; each command ends in one event.

For each engine there is at most one child and one request in flight. A child that ends, hangs past
its limit, or does not give memory back in time is ended and reported as died: its bytes return to
the ledger with the process.
"""

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from typing import Any, Protocol

from coscheduler.chat import Letter
from coscheduler.config import MIB, Settings
from coscheduler.core import commands as cmd
from coscheduler.core import events as ev
from coscheduler.core.model import EngineName, Failure, Job, Option, StageKind
from coscheduler.core.refusals import failure_of
from coscheduler.engines import messages as msg
from coscheduler.errors import CoschedulerError
from coscheduler.runtime.api import Progress
from coscheduler.runtime.artifacts import Artifacts
from coscheduler.runtime.children import Child, Children, start_ticks
from coscheduler.runtime.clock import Clock
from coscheduler.runtime.conversation import ChildEnded, Conversation, RequestFailed
from coscheduler.runtime.descriptions import Descriptions, ProcessBook
from coscheduler.runtime.meter import Meter
from coscheduler.runtime.runs import Desk, Runs

log = logging.getLogger(__name__)

SAMPLE_SECONDS = 0.02  # between two readings of memory that is to come back
RELEASE_TOLERANCE_BYTES = 16 * MIB
RELEASE_TOLERANCE_PERCENT = 5


class Listener(Protocol):
    """Whom the supervisor tells."""

    def post(self, event: ev.Event) -> None:
        """One event for the scheduler."""
        ...

    def progress(self, job: str, progress: Progress) -> None:
        """The running stage moved on."""
        ...

    def waiting(self, kind: StageKind) -> tuple[Job, int] | None:
        """The stage of that kind that will probably be run next, and its job."""
        ...


class Supervisor:
    """All engine processes of the daemon."""

    def __init__(
        self,
        settings: Settings,
        children: Children,
        meter: Meter,
        artifacts: Artifacts,
        book: ProcessBook,
        clock: Clock,
        listener: Listener,
    ) -> None:
        self._limits = settings.scheduling
        self._children = children
        self._meter = meter
        self._artifacts = artifacts
        self._book = book
        self._clock = clock
        self._listener = listener
        self._live: dict[EngineName, Conversation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._at_work: set[EngineName] = set()  # a command is being carried out
        self._deaths_at_work: dict[EngineName, Failure] = {}  # within it, not told yet
        self._undelivered_deaths: set[EngineName] = set()
        self._closing = False
        self._descriptions = Descriptions(
            children, book, self._talk_with, self._limits.start_ms_max
        )
        self._runs = Runs(meter, artifacts, listener.progress, self._limits.slice_ms_max)
        if settings.transcription is not None and settings.transcription.detect_ahead:
            self._runs.foresee = listener.waiting

    def attach(self, desk: Desk) -> None:
        """Who keeps the requests of conversations."""
        self._runs.desk = desk

    # ---- what may be asked -------------------------------------------------------------------

    def obey(self, command: cmd.Command, job: Job | None) -> None:
        """Carry a command out in the background. `job` is the one that Run names.

        A child may have died idle while the command was being decided: its death is already on the
        way to the scheduler and is the command's one answer.
        """
        if command.engine in self._undelivered_deaths:
            return
        match command:
            case cmd.Describe():
                self._go(self._describe(command.engine))
            case cmd.Load():
                self._go(self._guard(command.engine, self._load(command)))
            case cmd.Run():
                assert job is not None
                self._go(self._guard(command.engine, self._run(command, job)))
            case cmd.Cancel() | cmd.Preempt():
                self._go(self._cancel(command.engine))
            case cmd.Pause():
                self._tell_task(command.engine, msg.PauseTask())
            case cmd.Resume():
                self._tell_task(command.engine, msg.ResumeTask())
            case cmd.Resize():
                self._go(self._resize(command))
            case cmd.Unload():
                self._go(self._guard(command.engine, self._unload(command.engine)))
            case cmd.Stop():
                self._go(self._guard(command.engine, self._stop(command.engine)))

    def write(self, engine: EngineName, letter: Letter) -> None:
        """Send a letter to the conversations that run there; without a process it is lost."""
        if talk := self._live.get(engine):
            talk.child.send(letter)

    def delivered(self, event: ev.Event) -> None:
        """The scheduler is about to handle this event."""
        if isinstance(event, ev.EngineDied):
            self._undelivered_deaths.discard(event.engine)

    def forget(self, job: str) -> None:
        """The job is final: what its attempts kept for the next one may go."""
        self._go(asyncio.to_thread(self._artifacts.forget_resume_dirs, job))

    def measured_bytes(self, engine: EngineName) -> int:
        """What the engine's process holds now, by the meter; 0 without a process."""
        talk = self._live.get(engine)
        return self._used(talk) if talk else 0

    def pid(self, engine: EngineName) -> int:
        """The engine's process, or 0."""
        talk = self._live.get(engine)
        return talk.child.pid if talk else 0

    async def close(self) -> None:
        """End every process. No event is posted any more."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._children.close()

    # ---- commands ----------------------------------------------------------------------------

    async def _guard(self, engine: EngineName, work: Awaitable[ev.Event]) -> None:
        """Run a command; whatever happens, exactly one event comes of it.

        A child that dies between two requests of a command, or while its results are kept, dies
        within the command: the next request says so, or the death is told after the answer.
        """
        self._at_work.add(engine)
        try:
            event = await work
        except ChildEnded as ended:
            event = ev.EngineDied(engine, ended.failure)
        except CoschedulerError as error:
            await self._end(engine, failure_of(error))
            event = ev.EngineDied(engine, failure_of(error))
        except Exception as error:  # a bug here must not leave a command unanswered
            log.exception("a command for %s failed", engine)
            failure = Failure("SUPERVISOR_ERROR", repr(error))
            await self._end(engine, failure)
            event = ev.EngineDied(engine, failure)
        self._at_work.discard(engine)
        self._post(event)
        death = self._deaths_at_work.pop(engine, None)
        if death is not None and not isinstance(event, ev.EngineDied | ev.Stopped):
            self._tell_death(engine, death)

    def _tell_death(self, engine: EngineName, failure: Failure) -> None:
        self._undelivered_deaths.add(engine)
        self._post(ev.EngineDied(engine, failure))

    async def _describe(self, engine: EngineName) -> None:
        self._post(await self._descriptions.ask(engine))

    async def _load(self, command: cmd.Load) -> ev.Event:
        started_ms = self._clock.now_ms()
        talk = await self._process(command.engine)
        child = talk.child
        try:
            if not child.is_started:
                await self._start(talk)
            await talk.ask(msg.LoadOption(self._option(command)), self._limits.load_ms_max)
        except RequestFailed as failed:
            context_bytes = child.context_bytes
            return ev.LoadFailed(command.engine, failed.failure, failed.is_retryable, context_bytes)
        resident = max(0, self._used(talk) - child.context_bytes)
        load_ms = self._clock.now_ms() - started_ms
        return ev.Loaded(command.engine, child.context_bytes, resident, load_ms)

    async def _start(self, talk: Conversation) -> None:
        """Let the child take its context, and measure it."""
        child = talk.child
        await talk.ask(msg.Start(), self._limits.start_ms_max)
        child.context_bytes = self._used(talk)
        child.is_started = True
        await self._descriptions.remember_context(child.engine, child.context_bytes)

    async def _run(self, command: cmd.Run, job: Job) -> ev.Event:
        option = self._option(command) if command.option else None
        return await self._runs.run(self._there(command.engine), command, job, option)

    def _option(self, command: cmd.Load | cmd.Run | cmd.Resize) -> Option:
        return self._descriptions.option(command.engine, command.option)

    def _tell_task(self, engine: EngineName, request: msg.Request) -> None:
        """Pause or resume what runs there; a task that has just ended ignores it."""
        if talk := self._live.get(engine):
            talk.tell(request)

    async def _cancel(self, engine: EngineName) -> None:
        if talk := self._live.get(engine):
            await talk.cancel(self._limits.cancel_ms_max)

    async def _resize(self, command: cmd.Resize) -> None:
        """Beside whatever else the engine does. A process that ends meanwhile is told of as ever,
        and that is the answer.
        """
        talk = self._live.get(command.engine)
        if talk is None:
            return
        silence_ms_max = self._limits.slice_ms_max + self._limits.load_ms_max
        option = await talk.resize(self._option(command), silence_ms_max)
        if option is None:
            return
        rest = await self._wait_for_release(talk, command.bytes_max, command.bytes_max)
        if rest is not None:
            talk.child.end(_kept(command.engine, rest))
        if not talk.child.ended.done() and talk.child.doom is None:
            self._post(ev.Resized(command.engine, option))

    async def _unload(self, engine: EngineName) -> ev.Event:
        talk = self._there(engine)
        held = self._used(talk) - talk.child.context_bytes
        try:
            await talk.ask(msg.UnloadOption(), self._limits.load_ms_max)
        except RequestFailed as failed:
            await self._end(engine, failed.failure)
            return ev.EngineDied(engine, failed.failure)
        rest = await self._wait_for_release(talk, 0, held)
        if rest is None:
            return ev.Unloaded(engine)
        await self._end(engine, _kept(engine, rest))
        return ev.EngineDied(engine, _kept(engine, rest))

    async def _wait_for_release(
        self, talk: Conversation, bytes_max: int, moved_bytes: int
    ) -> int | None:
        """None once the meter sees no more than `bytes_max` beside the context; else what there is
        at the time limit. The tolerance is a part of what moved.
        """
        tolerance = max(RELEASE_TOLERANCE_BYTES, moved_bytes * RELEASE_TOLERANCE_PERCENT // 100)
        deadline_ms = self._clock.now_ms() + self._limits.release_ms_max
        while (held := self._used(talk) - talk.child.context_bytes) > bytes_max + tolerance:
            if self._clock.now_ms() >= deadline_ms:
                return held
            await asyncio.sleep(SAMPLE_SECONDS)
        return None

    async def _stop(self, engine: EngineName) -> ev.Event:
        await self._end(engine, Failure("STOPPED", "ended on purpose"))
        return ev.Stopped(engine)

    # ---- children ----------------------------------------------------------------------------

    async def _process(self, engine: EngineName) -> Conversation:
        """The engine's process, forked now if there is none."""
        if talk := self._live.get(engine):
            return talk
        child = await self._children.spawn(engine)
        child.baseline_bytes = self._meter.baseline_bytes(child.pid)
        talk = self._live[engine] = self._talk_with(child)
        if (ticks := start_ticks(child.pid)) is not None:
            await self._book.add_process(child.pid, ticks)
        return talk

    def _there(self, engine: EngineName) -> Conversation:
        """The engine's process. Raises ChildEnded."""
        if talk := self._live.get(engine):
            return talk
        raise ChildEnded(Failure("ENGINE_CRASHED", f"the {engine} engine is gone"))

    def _talk_with(self, child: Child) -> Conversation:
        talk = Conversation(child, self._clock, lambda answer: self._hear(child.engine, answer))
        self._go(self._attend(talk))
        return talk

    async def _attend(self, talk: Conversation) -> None:
        """Listen until the child ends, then report the end once."""
        failure = await talk.listen()
        engine = talk.engine
        if self._live.get(engine) is talk:
            del self._live[engine]
        if talk.was_waited_for(failure) or talk.child.is_expected_to_end:
            return
        if engine in self._at_work:
            self._deaths_at_work[engine] = failure
        else:
            self._tell_death(engine, failure)

    def _hear(self, engine: EngineName, answer: msg.Answer) -> None:
        if isinstance(answer, msg.TaskPaused):
            self._post(ev.Paused(engine, self._runs.job_on(engine)))
        else:
            self._runs.hear(engine, answer)

    async def _end(self, engine: EngineName, why: Failure) -> None:
        """End the engine's process on purpose and wait until it is gone."""
        talk = self._live.pop(engine, None)
        if talk is not None:
            talk.child.is_expected_to_end = True
            talk.child.end(why)
            await talk.child.wait()

    def _used(self, talk: Conversation) -> int:
        return self._meter.used_bytes(talk.child.pid, talk.child.baseline_bytes)

    # ---- plumbing ----------------------------------------------------------------------------

    def _go(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _post(self, event: ev.Event) -> None:
        if not self._closing:
            self._listener.post(event)


def _kept(engine: EngineName, held_bytes: int) -> Failure:
    return Failure("RELEASE_NOT_CONFIRMED", f"{engine} still holds {held_bytes} bytes; ended")
