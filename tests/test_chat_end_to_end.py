"""The daemon with the real language engine: conversations, evictions, aborts."""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from coscheduler import chat, config
from coscheduler.chat import ChatDone, ChatEvent, ChatText
from coscheduler.config import Settings
from coscheduler.core.model import EngineName, JobState, Line, Priority, StageKind
from coscheduler.demo import tiny_llm
from coscheduler.runtime.api import JobSnapshot, StageRequest
from coscheduler.runtime.daemon import Daemon
from tests.runtime.support import final, request, run, running, until, upload

WORDS = sorted(tiny_llm.WORDS)
TALK = "\n".join(" ".join(WORDS[(7 * n + m) % len(WORDS)] for m in range(15)) for n in range(60))
SUMMARY = StageRequest(StageKind.ANALYZE, {"template": "summary", "seed": 5, "tokens_max": 900})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llm") / "tiny.gguf"
    tiny_llm.write(path)
    return path


def settings(model: Path, folder: Path) -> Settings:
    return config.parse(
        {
            "store": {"data_dir": str(folder / "store"), "disk_free_bytes_min": 0},
            "device": {"memory_cap": "512 MiB", "headroom": 0, "threads": 1},
            "analysis": {"model": str(model), "n_ctx_max": 4096, "n_ctx_min": 4096},
        },
        folder,
    )


def story(model: Path, folder: Path, told: Callable[[Daemon], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with running(settings(model, folder)) as daemon:
            await told(daemon)

    run(whole())


async def answer(
    daemon: Daemon, messages: list[dict[str, str]], **values: Any
) -> tuple[str, ChatDone]:
    asked = chat.parse({"messages": messages, "tokens_max": 24, "temperature": 0.5, **values})
    events: list[ChatEvent] = [event async for event in daemon.chat(asked)]
    text = "".join(event.text for event in events if isinstance(event, ChatText))
    assert isinstance(events[-1], ChatDone)
    return text, events[-1]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def analysis_of(daemon: Daemon, job: JobSnapshot) -> bytes:
    name = job.job.stages[0].outputs[0].artifact
    return b"".join([chunk async for chunk in daemon.read_artifact(name, 0)])


def at_work(snapshot: JobSnapshot) -> bool:
    return snapshot.progress is not None


def test_an_interactive_conversation_interrupts_a_batch_analysis_unharmed(
    model: Path, tmp_path: Path
) -> None:
    async def told(daemon: Daemon) -> None:
        source = await upload(daemon, TALK.encode(), kind="transcript")
        alone = (await daemon.create_job(request("a", source, SUMMARY))).job.name
        undisturbed = await final(daemon, alone)
        batch = request("b", source, SUMMARY, priority=int(Priority.BATCH))
        name = (await daemon.create_job(batch)).job.name
        await until(daemon, name, at_work)
        _, done = await answer(daemon, [user("What is a ledger?")])
        assert not (await daemon.get_job(name)).job.state.is_final, "it came first"
        assert done.load_ms == 0, "the weights stayed"
        ended = await final(daemon, name)
        assert ended.job.state is JobState.SUCCEEDED
        assert ended.job.stages[0].preempt_count == 1
        assert await analysis_of(daemon, ended) == await analysis_of(daemon, undisturbed)
        for stage in (ended.job.stages[0], undisturbed.job.stages[0]):
            difference = abs(stage.predicted_peak_bytes - stage.measured_peak_bytes)
            assert difference <= max(16 << 20, stage.predicted_peak_bytes // 20)

    story(model, tmp_path, told)


def test_finding_out_what_the_model_takes_is_in_the_ledger(model: Path, tmp_path: Path) -> None:
    async def told(daemon: Daemon) -> None:
        given = settings(model, tmp_path).analysis
        assert given is not None
        (line,) = (await daemon.gpu()).lines
        assert (line.line, line.bytes) == (Line.SURVEY, given.survey_bytes_max)
        source = await upload(daemon, TALK.encode(), kind="transcript")
        name = (await daemon.create_job(request("a", source, SUMMARY))).job.name
        await final(daemon, name)
        assert Line.SURVEY not in {line.line for line in (await daemon.gpu()).lines}

    story(model, tmp_path, told)


async def share_the_context(daemon: Daemon) -> None:
    alone = await answer(daemon, [user("Colours?")], seed=9)
    several = await asyncio.gather(
        answer(daemon, [user("Colours?")], seed=9),
        *(answer(daemon, [user(f"Number {n}?")], seed=n) for n in range(5)),
    )
    assert several[0][0] == alone[0]
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    text, _ = await answer(daemon, [user("How many?")], schema_text=json.dumps(schema))
    assert isinstance(json.loads(text)["n"], int)


def test_sessions_survive_the_process_and_requests_share_the_context(
    model: Path, tmp_path: Path
) -> None:
    async def told(daemon: Daemon) -> None:
        first = user("Tell me about the budget of the week.")
        text, before = await answer(daemon, [first], session="s", seed=1)
        then = [first, {"role": "assistant", "content": text}, user("And then?")]
        await daemon.unload_engine(EngineName.ANALYSIS)
        supervisor = daemon._parts.supervisor
        await daemon._loop.wait_for(lambda: supervisor.pid(EngineName.ANALYSIS) == 0, 20_000)
        assert supervisor.pid(EngineName.ANALYSIS) == 0
        _, after = await answer(daemon, then, session="s", seed=1)
        assert after.reused_tokens >= before.prompt_tokens
        assert after.load_ms > 0
        _, other = await answer(daemon, then, session="t", seed=1)
        assert other.reused_tokens > 0, "a beginning in common is used, whoever had it"
        await share_the_context(daemon)

    story(model, tmp_path, told)


def test_an_abort_costs_the_child_and_the_next_option_is_the_safe_one(
    model: Path, tmp_path: Path
) -> None:
    async def told(daemon: Daemon) -> None:
        asked = chat.parse({"messages": [user("Go on.")], "tokens_max": 2000, "seed": 2})
        async with aclosing(daemon.chat(asked)) as events:
            async for event in events:
                if isinstance(event, ChatText):
                    break
            os.kill(daemon._parts.supervisor.pid(EngineName.ANALYSIS), signal.SIGABRT)
            rest = [event async for event in events]
        done = rest[-1]
        assert isinstance(done, ChatDone)
        assert done.option == "n_ctx 4096, KV f16, safe"
        assert done.completion_tokens > 1

    story(model, tmp_path, told)
