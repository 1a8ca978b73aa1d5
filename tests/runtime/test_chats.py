"""Conversations as work for the scheduler: real processes with fake engines."""

import asyncio
import os
import signal
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from coscheduler import chat
from coscheduler.chat import ChatDone, ChatEvent, ChatParameters, ChatText, ChatWaiting
from coscheduler.core.model import EngineName, JobState, Priority
from coscheduler.errors import CoschedulerError, Unavailable
from coscheduler.runtime.daemon import Daemon
from coscheduler.runtime.opening import open_daemon
from tests.runtime.support import ANALYZE, final, request, run, running, settings, upload


def asked(text: str, **values: Any) -> ChatParameters:
    return chat.parse({"messages": [{"role": "user", "content": text}], **values})


async def answer(daemon: Daemon, text: str, **values: Any) -> list[ChatEvent]:
    return [event async for event in daemon.chat(asked(text, **values))]


def words(events: list[ChatEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, ChatText))


async def first_text(events: Any) -> None:
    async for event in events:
        if isinstance(event, ChatText):
            return


def test_an_answer_streams_and_says_what_it_took(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            events = await answer(daemon, "one two three")
            assert words(events) == "one two three "
            done = events[-1]
            assert isinstance(done, ChatDone)
            assert (done.finish, done.completion_tokens) == ("stop", 3)
            assert done.option == "4 of 4 layers"
            assert 0 < done.load_ms <= done.first_token_ms
            assert done.wait_ms + done.load_ms <= done.first_token_ms
            again = (await answer(daemon, "four"))[-1]
            assert isinstance(again, ChatDone) and again.load_ms == 0
            assert (await daemon.list_jobs(0, ""))[0] == [], "conversations are stored nowhere"

    run(story())


def test_requests_share_a_run_and_one_that_hangs_up_leaves_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            async with aclosing(daemon.chat(asked("endless"))) as endless:
                await first_text(endless)
                others = await asyncio.gather(*(answer(daemon, f"a{n} b") for n in range(5)))
                assert [words(events) for events in others] == [f"a{n} b " for n in range(5)]
                (view,) = [
                    e for e in (await daemon.gpu()).engines if e.engine is EngineName.ANALYSIS
                ]
                assert view.state == "running" and view.job.startswith("chats/")
                held = {line.line for line in (await daemon.gpu()).lines}
                assert {"weights", "workspace"} <= held, "its bytes are in the ledger"
            assert words(await answer(daemon, "after")) == "after "
            await daemon._loop.wait_for(lambda: daemon._scheduler.is_quiet, 10_000)
            assert daemon._scheduler.jobs == ()

    run(story())


def test_one_that_gives_up_while_it_waits_leaves_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            await daemon.drain(True)
            async with aclosing(daemon.chat(asked("never"))) as events:
                event = await anext(events)
                assert event == ChatWaiting("the drain to end")
            await daemon._loop.wait_for(lambda: not daemon._scheduler.jobs, 10_000)
            assert daemon._scheduler.jobs == ()
            await daemon.drain(False)
            assert words(await answer(daemon, "now")) == "now "

    run(story())


def test_a_batch_conversation_gives_way_and_goes_on_behind_its_words(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            batch = daemon.chat(asked("patient two three"), int(Priority.BATCH))
            async with aclosing(batch):
                await first_text(batch)
                assert words(await answer(daemon, "urgent")) == "urgent "
                rest = [event async for event in batch]
            assert words(rest) == "two three "

    run(story())


def test_a_crash_costs_the_child_and_the_answer_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            async with aclosing(daemon.chat(asked("patient two three"))) as events:
                await first_text(events)
                pid = daemon._parts.supervisor.pid(EngineName.ANALYSIS)
                os.kill(pid, signal.SIGKILL)
                rest = [event async for event in events]
            assert words(rest) == "two three "
            assert daemon._parts.supervisor.pid(EngineName.ANALYSIS) != pid

    run(story())


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"device": {"memory_cap": "20 MiB", "headroom": 0}}, "NEVER_FITS"),
        ({"scheduling": {"chats_max": 1}}, "TOO_MANY_CHATS"),
        ({"scheduling": {"queue_max": 1, "chat_join_ms": 0}}, "QUEUE_FULL"),
    ],
)
def test_refusals_carry_their_numbers(
    tmp_path: Path, sections: dict[str, Any], reason: str
) -> None:
    async def story() -> None:
        async with (
            running(settings(tmp_path, **sections)) as daemon,
            aclosing(daemon.chat(asked("endless"))) as endless,
        ):
            with pytest.raises(CoschedulerError) as caught:
                await first_text(endless)
                await answer(daemon, "another")
            assert caught.value.reason == reason and caught.value.numbers

    run(story())


def test_a_daemon_that_stops_says_so(tmp_path: Path) -> None:
    kept = tmp_path / "store" / "sessions" / "words.state"

    async def story() -> None:
        daemon = await open_daemon(settings(tmp_path))
        async with aclosing(daemon.chat(asked("endless"))) as endless:
            await first_text(endless)
            kept.parent.mkdir()
            kept.touch()
            await daemon.close()
            with pytest.raises(Unavailable, match="stopping"):
                await first_text(endless)

    run(story())
    assert not kept.exists(), "nothing is left of conversations"


def test_jobs_and_conversations_share_the_engine(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, b"hello", kind="transcript")
            created = await daemon.create_job(request("a", source, ANALYZE, priority=0))
            both = await asyncio.gather(answer(daemon, "x y"), final(daemon, created.job.name))
            assert words(both[0]) == "x y "
            assert both[1].job.state is JobState.SUCCEEDED

    run(story())
