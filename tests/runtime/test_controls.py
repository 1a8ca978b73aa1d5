"""An operator's requests to a whole daemon with fake engines: real processes, real memory."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coscheduler.config import MIB
from coscheduler.core.model import EngineName, JobState, StageState
from coscheduler.errors import Exhausted, InvalidInput, Refused
from coscheduler.runtime.api import EngineView, GpuSnapshot, JobSnapshot
from coscheduler.runtime.device import Settling
from tests.runtime.support import (
    SEPARATE,
    TRANSCRIBE,
    final,
    recording,
    request,
    run,
    running,
    scripted,
    settings,
    until,
    upload,
)

S, T, A = EngineName.SEPARATION, EngineName.TRANSCRIPTION, EngineName.ANALYSIS


def view(snapshot: GpuSnapshot, engine: EngineName) -> EngineView:
    return next(each for each in snapshot.engines if each.engine is engine)


async def seen(
    watch: AsyncIterator[GpuSnapshot], condition: Callable[[GpuSnapshot], bool]
) -> GpuSnapshot:
    async for snapshot in watch:
        if condition(snapshot):
            return snapshot
    raise AssertionError("the watch ended before it was seen")


def at_work(snapshot: JobSnapshot) -> bool:
    return snapshot.progress is not None


def test_engines_come_stay_and_go_as_they_are_told(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            watch = daemon.watch_gpu()
            option = "2 of 4 layers"
            assert view(await daemon.load_engine(S, option), S).option == option
            loaded = await seen(watch, lambda gpu: view(gpu, S).state == "loaded")
            assert view(loaded, S).measured_bytes >= 16 * MIB
            assert view(await daemon.pin_engine(S, True), S).is_pinned
            with pytest.raises(Refused) as refusal:
                await daemon.unload_engine(S)
            assert refusal.value.reason == "ENGINE_PINNED"
            await daemon.pin_engine(S, False)
            await daemon.unload_engine(S)
            gone = await seen(watch, lambda gpu: view(gpu, S).state == "stopped")
            assert (view(gone, S).pid, gone.reserved_bytes) == (0, 0)
            with pytest.raises(InvalidInput) as unknown:
                await daemon.load_engine(S, "none")
            assert unknown.value.reason == "OPTION_UNKNOWN"

    run(story())


def test_a_budget_shrinks_and_grows_under_a_running_stage(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            await daemon.load_engine(T, "")
            watch = daemon.watch_gpu()
            await seen(watch, lambda gpu: view(gpu, T).state == "loaded")
            slow = (await daemon.create_job(request("s", source, scripted("slow")))).job.name
            await until(daemon, slow, at_work)
            small = await daemon.set_budget(72 * MIB)
            assert (small.capacity_bytes, small.budget_bytes) == (72 * MIB, 72 * MIB)
            fits = await seen(watch, lambda gpu: gpu.reserved_bytes <= 72 * MIB)
            assert view(fits, T).option == "2 of 4 layers", "the idle one gave half of them"
            await daemon.pin_engine(T, True)
            await daemon.set_budget(56 * MIB)
            fits = await seen(watch, lambda gpu: gpu.reserved_bytes <= 56 * MIB)
            running_one = view(fits, S)
            assert (running_one.state, running_one.option) == ("running", "2 of 4 layers")
            assert view(fits, T).state == "loaded"
            await daemon.set_budget(40 * MIB)
            fits = await seen(watch, lambda gpu: gpu.reserved_bytes <= 40 * MIB)
            assert view(fits, T).state == "loaded", "the pinned one is the last to go"
            await daemon.cancel_job(slow)
            ended = (await final(daemon, slow)).job
            assert ended.state is JobState.CANCELLED
            assert "the budget shrank" in ended.stages[0].notes[0]
            assert (await daemon.set_budget(0)).capacity_bytes == 512 * MIB
            with pytest.raises(InvalidInput) as refusal:
                await daemon.set_budget(-1)
            assert refusal.value.reason == "BUDGET_NEGATIVE"

    run(story())


def test_a_drained_daemon_takes_jobs_and_starts_them_when_the_drain_ends(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            assert (await daemon.drain(True)).is_draining
            name = (await daemon.create_job(request("a", source, SEPARATE))).job.name
            assert (await daemon.get_job(name)).job.state is JobState.QUEUED
            assert view(await daemon.gpu(), S).state == "stopped"
            await daemon.drain(False)
            assert (await final(daemon, name)).job.state is JobState.SUCCEEDED

    run(story())


def test_a_dry_run_of_a_real_job_names_what_then_happens(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path, device={"memory_cap": "72 MiB"})) as daemon:
            source = await upload(daemon, recording())
            asked = request("a", source, SEPARATE, TRANSCRIBE)
            plan = await daemon.plan_job(asked)
            assert plan.end_ms is not None and plan.refusal is None
            assert (await daemon.list_jobs(10, ""))[0] == []
            job = (await final(daemon, (await daemon.create_job(asked)).job.name)).job
            for planned, real in zip(plan.job.stages, job.stages, strict=True):
                assert planned.option == real.option
                assert planned.evicted == real.evicted
                assert real.state is StageState.SUCCEEDED
            await daemon.set_budget(32 * MIB)
            refused = await daemon.plan_job(asked)
            assert refused.refusal is not None and refused.refusal.reason == "NEVER_FITS"

    run(story())


def test_a_deadline_that_cannot_be_met_is_told(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            asked = request("a", source, SEPARATE)
            snapshot = await daemon.create_job(replace(asked, deadline_ms=1))
            assert snapshot.expected_end_ms is not None
            assert "will probably miss its deadline" in snapshot.notes[0]
            ended = await final(daemon, snapshot.job.name)
            assert "missed its deadline" in ended.notes[0]
            assert ended.expected_end_ms is None
            wrongs: list[dict[str, Any]] = [{"deadline_ms": 0}, {"quality_min": -1}]
            for wrong in wrongs:
                with pytest.raises(InvalidInput):
                    await daemon.create_job(replace(request("b", source), **wrong))

    run(story())


def test_watches_of_the_device_are_bounded_and_end_with_the_daemon(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path, server={"watchers_max": 1})) as daemon:
            watch = daemon.watch_gpu()
            await anext(watch)
            with pytest.raises(Exhausted) as refusal:
                await anext(daemon.watch_gpu())
            assert refusal.value.reason == "TOO_MANY_WATCHERS"
            rest = asyncio.ensure_future(_to_the_end(watch))
            await asyncio.sleep(0)
        assert await asyncio.wait_for(rest, 10) >= 0

    run(story())


async def _to_the_end(watch: AsyncIterator[GpuSnapshot]) -> int:
    return len([snapshot async for snapshot in watch])


def test_less_memory_is_told_at_once_and_more_when_it_lasts() -> None:
    settling = Settling(grow_ms=5_000, step_bytes=10)
    assert settling.next(100, 95, 0) is None, "noise"
    assert settling.next(100, 90, 0) == 90
    assert settling.next(90, 200, 1_000) is None
    assert settling.next(90, 150, 3_000) is None
    assert settling.next(90, 200, 5_999) is None
    assert settling.next(90, 200, 6_000) == 150, "what was there all the time"
    assert settling.next(90, 200, 7_000) is None
    assert settling.next(90, 95, 8_000) is None
    assert settling.next(90, 200, 20_000) is None, "it starts anew"
