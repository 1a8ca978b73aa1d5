"""Conversations: requests that end with their calls, as work for the scheduler.

Requests of a class that come close together share a job that is stored nowhere (`Job.is_durable`).
The scheduler treats it as any other: it is admitted, waits, says for what, has its bytes reserved,
gives way. While it runs, more requests may join, for `chat_join_ms`; then the next job begins to
wait its turn. A run that was stopped or has died goes on behind the words that were said.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from coscheduler.chat import (
    PART_SUFFIX,
    STATE_SUFFIX,
    TOKENS_SUFFIX,
    Broken,
    ChatDone,
    ChatEvent,
    ChatParameters,
    ChatText,
    ChatWaiting,
    Ended,
    HangUp,
    Question,
    Reply,
    Said,
)
from coscheduler.config import Settings
from coscheduler.core import events as ev
from coscheduler.core.model import (
    EngineName,
    Failure,
    InputRef,
    Job,
    JobState,
    Priority,
    Stage,
    StageKind,
)
from coscheduler.errors import (
    CoschedulerError,
    EngineFault,
    Exhausted,
    Refused,
    Unavailable,
    from_parts,
)
from coscheduler.runtime.api import JobSnapshot
from coscheduler.runtime.clock import Clock
from coscheduler.runtime.loop import Loop
from coscheduler.runtime.supervisor import Supervisor
from coscheduler.runtime.watchers import Watchers

ENGINE = EngineName.ANALYSIS
PLANNED_MS = 60_000  # of talk: what options are compared by
REFUSALS = ("NEVER_FITS", "QUALITY_TOO_LOW", "ENGINE_NOT_CONFIGURED")


@dataclass(eq=False)
class _Call:
    """A request, and what is known of its answer."""

    id: str
    parameters: ChatParameters
    arrival_ms: int
    events: asyncio.Queue[ChatEvent | CoschedulerError] = field(default_factory=asyncio.Queue)
    tokens: list[int] = field(default_factory=list)
    sent_count: int = 0
    begun_ms: int | None = None
    first_ms: int | None = None

    @property
    def question(self) -> Question:
        """As the engine is to be asked now."""
        return Question(self.id, self.parameters, tuple(self.tokens), self.sent_count)


@dataclass(eq=False)
class _Group:
    """The requests of one job."""

    job: Job
    calls: dict[str, _Call] = field(default_factory=dict)
    is_running: bool = False
    is_given_up: bool = False
    begun_ms: int = 0


class Chats:
    """Implements `runs.Desk`."""

    def __init__(
        self, settings: Settings, loop: Loop, supervisor: Supervisor, watchers: Watchers,
        clock: Clock,
    ) -> None:  # fmt: skip
        self._limits = settings.scheduling
        self._loop = loop
        self._supervisor = supervisor
        self._watchers = watchers
        self._clock = clock
        self._groups: dict[str, _Group] = {}
        self._followers: set[asyncio.Task[None]] = set()

    async def generate(
        self, parameters: ChatParameters, priority: Priority
    ) -> AsyncGenerator[ChatEvent, None]:
        """The answer as it comes, `ChatDone` last; closing the generator ends it. Raises Exhausted
        TOO_MANY_CHATS or QUEUE_FULL, Refused as `Scheduler.admit` or CHAT_TOO_LONG, EngineFault.
        """
        self._check_count()
        call = _Call(secrets.token_hex(6), parameters, self._clock.now_ms())
        await self._enter(call, priority)
        try:
            while True:
                event = await call.events.get()
                if isinstance(event, CoschedulerError):
                    raise event
                yield event
                if isinstance(event, ChatDone):
                    return
        finally:
            self._leave(call)

    def close(self) -> None:
        """The daemon ends: whoever still waits is told so."""
        for task in self._followers:
            task.cancel()
        for group in self._groups.values():
            _tell(group, Unavailable("DRAINING", "the daemon is stopping"))

    def _check_count(self) -> None:
        count = sum(len(group.calls) for group in self._groups.values())
        if count >= self._limits.chats_max:
            raise Exhausted(
                "TOO_MANY_CHATS",
                f"{count} conversations wait for answers and {self._limits.chats_max} are allowed; "
                "try again when some are done",
                chats_max=self._limits.chats_max,
                retry_ms=1000,
            )

    # ---- jobs --------------------------------------------------------------------------------

    async def _enter(self, call: _Call, priority: Priority) -> None:
        """Join a job of this class, or make one."""
        for group in self._groups.values():
            if group.job.priority == priority and self._may_join(group):
                group.calls[call.id] = call
                if group.is_running:
                    call.begun_ms = self._clock.now_ms()
                    self._supervisor.write(ENGINE, call.question)
                return
        await self._begin_job([call], priority)

    def _may_join(self, group: _Group) -> bool:
        if group.is_given_up or not group.is_running:
            return not group.is_given_up
        return self._clock.now_ms() < group.begun_ms + self._limits.chat_join_ms

    async def _begin_job(self, calls: list[_Call], priority: Priority) -> None:
        """Raises what `Scheduler.admit` raises."""
        name = f"chats/{secrets.token_hex(6)}"
        stage = Stage(StageKind.ANALYZE, "{}", InputRef(artifact=name), PLANNED_MS)
        arrival_ms = min(call.arrival_ms for call in calls)
        job = Job(name, name, priority, arrival_ms, (stage,), "conversation", is_durable=False)
        self._loop.scheduler.admit(job)
        group = _Group(job, {call.id: call for call in calls})
        self._groups[name] = group
        updates = self._watchers.watch(name, lambda: self._read(job))
        try:
            await anext(updates)  # from here on nothing is missed
        except BaseException:
            del self._groups[name]
            raise
        task = asyncio.create_task(self._follow(group, updates), name=name)
        self._followers.add(task)
        task.add_done_callback(self._followers.discard)
        await self._loop.deliver(ev.Submitted(job))

    async def _read(self, job: Job) -> JobSnapshot:
        return self._loop.snapshot(job)

    async def _follow(self, group: _Group, updates: AsyncGenerator[JobSnapshot, None]) -> None:
        """Tell the callers why they wait; at the job's end, what became of those not answered."""
        told = ""
        async with contextlib.aclosing(updates):
            async for snapshot in updates:
                group.job = snapshot.job
                if snapshot.waiting_for and snapshot.waiting_for != told:
                    told = snapshot.waiting_for
                    _tell_waiting(group, told)
        del self._groups[group.job.name]
        if group.job.state is JobState.SUCCEEDED:
            await self._again(group)
        elif group.job.state is JobState.CANCELLED:
            _tell(group, Unavailable("CHAT_CANCELLED", "the conversation was cancelled"))
        elif group.job.failure is not None:
            _tell(group, _error(group.job.failure))

    async def _again(self, group: _Group) -> None:
        """Requests that came when the run was just ending."""
        if group.calls:
            try:
                await self._begin_job(list(group.calls.values()), group.job.priority)
            except CoschedulerError as error:
                _tell(group, error)

    def _leave(self, call: _Call) -> None:
        """The call is over: answered, failed, or nobody waits any more."""
        for group in self._groups.values():
            if group.calls.pop(call.id, None) is None:
                continue
            if group.is_running:
                self._supervisor.write(ENGINE, HangUp(call.id))
            elif not group.calls:
                group.is_given_up = True
                self._loop.post(ev.CancelRequested(group.job.name))

    # ---- what the supervisor says ------------------------------------------------------------

    def begin(self, job: str) -> tuple[Question, ...]:
        """See `runs.Desk`."""
        group, now_ms = self._groups[job], self._clock.now_ms()
        group.is_running, group.begun_ms = True, now_ms
        for call in group.calls.values():
            call.begun_ms = call.begun_ms or now_ms
        return tuple(call.question for call in group.calls.values())

    def end(self, job: str) -> None:
        """See `runs.Desk`."""
        if job in self._groups:
            self._groups[job].is_running = False

    def hear(self, reply: Reply) -> None:
        """See `runs.Desk`."""
        for group in self._groups.values():
            call = group.calls.get(reply.id)
            if call is None:
                continue
            match reply:
                case Said():
                    self._hear_words(call, reply)
                case Ended():
                    del group.calls[reply.id]
                    call.events.put_nowait(self._done(group, call, reply))
                case Broken(_, kind, reason, message, numbers):
                    del group.calls[reply.id]
                    call.events.put_nowait(from_parts(kind, reason, message, numbers))
            return

    def _hear_words(self, call: _Call, said: Said) -> None:
        call.first_ms = call.first_ms or self._clock.now_ms()
        call.tokens += said.tokens
        call.sent_count += len(said.text)
        if said.text:
            call.events.put_nowait(ChatText(said.text))

    def _done(self, group: _Group, call: _Call, ended: Ended) -> ChatDone:
        now_ms = self._clock.now_ms()
        job = self._loop.scheduler.job(group.job.name) or group.job
        stage = job.stages[0]
        before_ms = (call.begun_ms or now_ms) - call.arrival_ms
        load_ms = min(stage.load_ms, before_ms)
        return ChatDone(
            finish=ended.finish,
            prompt_tokens=ended.prompt_tokens,
            completion_tokens=ended.completion_tokens,
            reused_tokens=ended.reused_tokens,
            wait_ms=before_ms - load_ms + ended.queue_ms,
            load_ms=load_ms,
            prefill_ms=ended.prefill_ms,
            decode_ms=ended.decode_ms,
            first_token_ms=(call.first_ms or now_ms) - call.arrival_ms,
            option=stage.option,
            quality_tier=stage.quality_tier,
            notes=_notes(ended, stage),
        )


def _tell(group: _Group, error: CoschedulerError) -> None:
    for call in group.calls.values():
        call.events.put_nowait(error)


def _tell_waiting(group: _Group, reason: str) -> None:
    for call in group.calls.values():
        if call.first_ms is None:
            call.events.put_nowait(ChatWaiting(reason))


def _error(failure: Failure) -> CoschedulerError:
    kind = Refused if failure.reason in REFUSALS else EngineFault
    return kind(failure.reason, failure.message, **dict(failure.numbers))


def _notes(ended: Ended, stage: Stage) -> tuple[str, ...]:
    notes = [f"It made room for this: {what}." for what in stage.evicted]
    if ended.dropped_count:
        notes.append(
            f"{ended.dropped_count} of the oldest messages were left out: they did not fit."
        )
    return tuple(notes)


def forget_sessions(settings: Settings) -> None:
    """What was kept of conversations goes with the daemon, or at its next start."""
    if settings.analysis is None or settings.analysis.session_dir is None:
        return
    for suffix in (STATE_SUFFIX, TOKENS_SUFFIX, PART_SUFFIX):
        for path in settings.analysis.session_dir.glob(f"*{suffix}"):
            path.unlink(missing_ok=True)
