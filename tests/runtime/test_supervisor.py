"""Engines that do not do what they should: each is ended, and its bytes are free again."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from coscheduler.core.model import EngineName, JobState, Output
from coscheduler.errors import Refused
from coscheduler.runtime.artifacts import Artifacts
from coscheduler.runtime.daemon import Daemon
from coscheduler.runtime.store import Store
from tests.runtime.support import (
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


def test_a_silent_engine_is_ended_and_its_job_fails_after_the_bound(tmp_path: Path) -> None:
    async def story() -> None:
        chosen = settings(tmp_path, scheduling={"slice_ms_max": 300, "attempts_max": 2})
        async with running(chosen) as daemon:
            source = await upload(daemon, recording())
            job = (await daemon.create_job(request("h", source, scripted("hang")))).job.name
            ended = (await final(daemon, job)).job
            assert ended.failure is not None and ended.failure.reason == "ENGINE_HUNG"
            assert ended.stages[0].attempt_count == 2
            assert (await daemon.gpu()).engines[0].measured_bytes == 0

    run(story())


def test_an_engine_that_ignores_a_cancel_is_ended(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path, scheduling={"cancel_ms_max": 200})) as daemon:
            source = await upload(daemon, recording())
            job = (await daemon.create_job(request("h", source, scripted("hang")))).job.name
            await until(daemon, job, lambda snapshot: snapshot.progress is not None)
            await daemon.cancel_job(job)
            assert (await final(daemon, job)).job.state is JobState.CANCELLED
            views = {view.engine: view for view in (await daemon.gpu()).engines}
            assert views[EngineName.SEPARATION].state == "stopped"
            assert views[EngineName.SEPARATION].measured_bytes == 0

    run(story())


@pytest.mark.parametrize(("cap_mib", "was"), [(60, "'4 of 4 layers' becomes '2 of 4"), (52, "")])
def test_memory_that_does_not_come_back_is_taken_by_ending_the_process(
    tmp_path: Path, cap_mib: int, was: str
) -> None:
    """Whether half of the layers were asked back or all of them."""

    async def story() -> None:
        chosen = settings(
            tmp_path, device={"memory_cap": f"{cap_mib} MiB"}, scheduling={"release_ms_max": 200}
        )
        async with running(chosen) as daemon:
            source = await upload(daemon, recording())
            leaky = (await daemon.create_job(request("l", source, scripted("leak")))).job.name
            await final(daemon, leaky)
            pid = (await daemon.gpu()).engines[0].pid
            other = (await daemon.create_job(request("t", source, TRANSCRIBE))).job.name
            job = (await final(daemon, other)).job
            assert job.state is JobState.SUCCEEDED
            (evicted,) = job.stages[0].evicted
            assert was in evicted and ("becomes" in evicted) == bool(was)
            gpu = await daemon.gpu()
            assert gpu.engines[0].pid != pid
            assert gpu.measured_bytes <= cap_mib * 2**20

    run(story())


def test_an_idle_engine_that_dies_is_noticed_and_comes_back_when_wanted(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            first = (await daemon.create_job(request("a", source, TRANSCRIBE))).job.name
            await final(daemon, first)
            victim = next(v for v in (await daemon.gpu()).engines if v.state == "loaded")
            os.kill(victim.pid, signal.SIGKILL)
            second = (await daemon.create_job(request("b", source, TRANSCRIBE))).job.name
            job = (await final(daemon, second)).job
            assert job.state is JobState.SUCCEEDED
            assert victim.pid not in {view.pid for view in (await daemon.gpu()).engines}

    run(story())


async def until_gone(daemon: Daemon, pid: int) -> None:
    for _ in range(10_000):
        if pid not in {view.pid for view in (await daemon.gpu()).engines}:
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"process {pid} is still there")


def test_an_engine_that_dies_while_its_results_are_kept_has_done_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer counts, its death is told after it, and the next job gets a new process."""
    adopt = Artifacts.adopt
    victims: list[int] = []

    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:

            async def adopt_from_the_dead(self: Artifacts, *given: Any) -> tuple[Output, ...]:
                view = next(v for v in (await daemon.gpu()).engines if v.state == "running")
                if not victims:
                    victims.append(view.pid)
                    os.kill(view.pid, signal.SIGKILL)
                    await until_gone(daemon, view.pid)
                return await adopt(self, *given)

            monkeypatch.setattr(Artifacts, "adopt", adopt_from_the_dead)
            source = await upload(daemon, recording())
            first = (await daemon.create_job(request("a", source, TRANSCRIBE))).job.name
            ended = (await final(daemon, first)).job
            assert ended.state is JobState.SUCCEEDED
            assert (ended.stages[0].attempt_count, ended.stages[0].waited_for) == (1, ())
            second = (await daemon.create_job(request("b", source, TRANSCRIBE))).job.name
            assert (await final(daemon, second)).job.state is JobState.SUCCEEDED
            assert victims[0] not in {view.pid for view in (await daemon.gpu()).engines}

    run(story())


def test_an_engine_that_dies_between_start_and_load_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Store.put_measurement
    victims: list[int] = []

    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:

            async def put_and_kill(self: Store, *given: Any) -> None:
                await put(self, *given)
                view = next(v for v in (await daemon.gpu()).engines if v.state == "loading")
                if not victims:
                    victims.append(view.pid)
                    os.kill(view.pid, signal.SIGKILL)
                    await until_gone(daemon, view.pid)

            monkeypatch.setattr(Store, "put_measurement", put_and_kill)
            source = await upload(daemon, recording())
            name = (await daemon.create_job(request("a", source, TRANSCRIBE))).job.name
            ended = (await final(daemon, name)).job
            assert ended.state is JobState.SUCCEEDED
            assert ended.stages[0].attempt_count == 2

    run(story())


def test_a_disk_that_has_no_room_for_results_costs_an_attempt_and_not_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Artifacts.make_work_dir
    refused: list[str] = []

    def refuse_once(self: Artifacts, job: str, stage_index: int) -> Path:
        if not refused:
            refused.append(job)
            raise OSError(28, "No space left on device")
        return make(self, job, stage_index)

    monkeypatch.setattr(Artifacts, "make_work_dir", refuse_once)

    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            await daemon.load_engine(EngineName.TRANSCRIPTION, "")
            job = (await daemon.create_job(request("a", source, TRANSCRIBE))).job.name
            ended = (await final(daemon, job)).job
            assert ended.state is JobState.SUCCEEDED, ended.failure
            assert ended.stages[0].attempt_count == 2
            assert not any("gone" in why or "ended" in why for why in ended.stages[0].waited_for)

    run(story())


def test_whatever_breaks_a_description_makes_its_jobs_fail_instead_of_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> int | None:
        raise RuntimeError("scripted")

    monkeypatch.setattr(Store, "get_measurement", broken)

    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            async for gpu in daemon.watch_gpu():
                if all(view.state == "unavailable" for view in gpu.engines):
                    break
            with pytest.raises(Refused) as refusal:
                await daemon.create_job(request("a", source, TRANSCRIBE))
            assert refusal.value.reason == "SUPERVISOR_ERROR"
            assert "scripted" in refusal.value.message

    run(story())
