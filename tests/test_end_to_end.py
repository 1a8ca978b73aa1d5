"""The whole product on real engines and tiny models: one recording in, answers out."""

import asyncio
import hashlib
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coscheduler.config import MIB, Settings
from coscheduler.core.model import EngineName, InputRef, JobState, Stage, StageKind, StageState
from coscheduler.errors import CoschedulerError
from coscheduler.runtime.api import JobRequest, JobSnapshot, StageRequest
from coscheduler.runtime.daemon import Daemon
from coscheduler.runtime.opening import open_daemon

RECORDING = Path(__file__).resolve().parent.parent / "coscheduler" / "demo" / "meeting.flac"
pytestmark = pytest.mark.timeout(300)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Daemon]:
    daemon = await open_daemon(settings)
    try:
        yield daemon
    finally:
        await daemon.close()


async def upload(daemon: Daemon) -> str:
    data = RECORDING.read_bytes()
    writer = await daemon.begin_artifact("audio", "audio/flac", RECORDING.name)
    await writer.write(data)
    return (await writer.finish(len(data), hashlib.sha256(data).hexdigest())).name


def request(request_id: str, source: str, priority: int = 1) -> JobRequest:
    """Separate; transcribe the recording itself (random weights pull out noise); analyze."""
    ref = InputRef(artifact=source)
    return JobRequest(
        request_id,
        (
            StageRequest(StageKind.SEPARATE, {"prompt": "speech"}, ref),
            StageRequest(StageKind.TRANSCRIBE, {"language": "en"}, ref),
            StageRequest(StageKind.ANALYZE, {"template": "summary"}),
        ),
        priority=priority,
    )


async def final(daemon: Daemon, name: str) -> JobSnapshot:
    return [snapshot async for snapshot in daemon.watch_job(name)][-1]


async def outputs(daemon: Daemon, stages: tuple[Stage, ...]) -> dict[str, bytes]:
    found = {}
    for stage in stages:
        for output in stage.outputs:
            chunks = [chunk async for chunk in daemon.read_artifact(output.artifact, 0)]
            found[output.filename] = b"".join(chunks)
    return found


def within_tolerance(stage: Stage) -> bool:
    difference = abs(stage.predicted_peak_bytes - stage.measured_peak_bytes)
    return difference <= max(16 * MIB, stage.predicted_peak_bytes * 5 // 100)


def with_device(settings: Settings, **changes: Any) -> Settings:
    device = settings.device.model_copy(update=changes)
    return settings.model_copy(update={"device": device})


async def run_jobs(settings: Settings, count: int) -> tuple[list[JobSnapshot], dict[str, bytes]]:
    """Jobs of different classes at once; also the outputs of the first."""
    async with running(settings) as daemon:
        source = await upload(daemon)
        names = [
            (await daemon.create_job(request(f"r{index}", source, index))).job.name
            for index in range(count)
        ]
        ended = [await final(daemon, name) for name in names]
        return ended, await outputs(daemon, ended[0].job.stages)


def test_results_memory_and_the_same_under_a_small_budget(demo_settings: Settings) -> None:
    ended, files = asyncio.run(run_jobs(demo_settings, 3))
    for snapshot in ended:
        job = snapshot.job
        assert job.state is JobState.SUCCEEDED, job.failure
        for stage in job.stages:
            assert within_tolerance(stage), (stage.kind, stage)
            assert stage.run_ms > 0 and stage.attempt_count - stage.preempt_count == 1
    assert set(files) == {
        "target.wav", "residual.wav", "transcript.json", "transcript.srt", "transcript.vtt",
        "transcript.txt", "transcript.tsv", "analysis.json",
    }  # fmt: skip
    transcript = json.loads(files["transcript.json"])
    assert transcript["language"] == "en" and transcript["segments"]
    assert all(segment["start"] <= segment["end"] for segment in transcript["segments"])
    assert json.loads(files["analysis.json"])["template"] == "summary"

    tightest = max(stage.predicted_peak_bytes for stage in ended[0].job.stages)
    small = with_device(
        demo_settings, memory_cap=tightest + 200 * MIB, headroom=0, gpu_processes_max=1
    )
    store = small.store.model_copy(update={"data_dir": small.data_dir.parent / "small"})
    again, same = asyncio.run(run_jobs(small.model_copy(update={"store": store}), 1))
    assert again[0].job.state is JobState.SUCCEEDED
    assert any(stage.evicted for snapshot in again for stage in snapshot.job.stages)
    assert same == files, "less memory must not change a result within a quality tier"


async def all_stopped(daemon: Daemon) -> bool:
    return all(view.state == "stopped" for view in (await daemon.gpu()).engines)


def test_a_killed_engine_is_replaced_the_result_comes_and_idle_engines_leave(
    demo_settings: Settings,
) -> None:
    scheduling = demo_settings.scheduling.model_copy(update={"keep_alive_ms": 1000})
    settings = demo_settings.model_copy(update={"scheduling": scheduling})

    async def story() -> None:
        async with running(settings) as daemon:
            source = await upload(daemon)
            name = (await daemon.create_job(request("k", source))).job.name
            async for snapshot in daemon.watch_job(name):
                if snapshot.progress and snapshot.progress.stage_index == 0:
                    break
            views = {view.engine: view for view in (await daemon.gpu()).engines}
            os.kill(views[EngineName.SEPARATION].pid, signal.SIGKILL)
            job = (await final(daemon, name)).job
            assert job.state is JobState.SUCCEEDED
            assert job.stages[0].attempt_count == 2
            assert [stage.attempt_count for stage in job.stages[1:]] == [1, 1]
            for _ in range(300):
                if await all_stopped(daemon):
                    break
                await asyncio.sleep(0.1)
            gpu = await daemon.gpu()
            assert gpu.reserved_bytes == 0 and gpu.measured_bytes == 0

    asyncio.run(story())


def test_cancel_in_the_middle_of_each_stage(demo_settings: Settings) -> None:
    async def story() -> None:
        async with running(demo_settings) as daemon:
            source = await upload(daemon)
            for index in range(3):
                name = (await daemon.create_job(request(f"c{index}", source))).job.name
                async for snapshot in daemon.watch_job(name):
                    if snapshot.progress and snapshot.progress.stage_index == index:
                        await daemon.cancel_job(name)
                        break
                job = (await final(daemon, name)).job
                done = [stage.state is StageState.SUCCEEDED for stage in job.stages]
                assert done[:index] == [True] * index
                assert job.state in (JobState.CANCELLED, JobState.SUCCEEDED)
            after = (await daemon.create_job(request("after", source))).job.name
            assert (await final(daemon, after)).job.state is JobState.SUCCEEDED

    asyncio.run(story())


def damaged(settings: Settings, folder: Path, damage: str) -> Settings:
    """The demo's settings with every engine's main file missing, or cut in half."""

    def spoil(path: Path) -> None:
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def copied(section: Any, filename: str) -> Any:
        copy = folder / section.model.name
        if section.model.is_dir():
            shutil.copytree(section.model, copy)
        else:
            shutil.copy(section.model, copy)
        spoil(copy / filename if filename else copy)
        return section.model_copy(update={"model": copy})

    assert settings.separation and settings.transcription and settings.analysis
    return settings.model_copy(
        update={
            "separation": copied(settings.separation, "checkpoint.pt"),
            "transcription": copied(settings.transcription, "model.bin"),
            "analysis": copied(settings.analysis, ""),
        }
    )


@pytest.mark.parametrize("damage", ["missing", "corrupt"])
def test_a_bad_model_file_is_named_before_a_job_is_taken(
    demo_settings: Settings, tmp_path: Path, damage: str
) -> None:
    settings = damaged(demo_settings, tmp_path, damage)
    files = {
        StageKind.SEPARATE: "checkpoint.pt",
        StageKind.TRANSCRIBE: "model.bin",
        StageKind.ANALYZE: "llm-tiny.gguf",
    }

    async def story() -> None:
        async with running(settings) as daemon:
            whole = request("bad", await upload(daemon))
            words = await daemon.begin_artifact("transcript", "text/plain", "talk.txt")
            await words.write(b"hello")
            text = await words.finish(5, hashlib.sha256(b"hello").hexdigest())
            for stage in whole.stages:
                alone = replace(stage, input=stage.input or InputRef(artifact=text.name))
                with pytest.raises(CoschedulerError) as error:
                    await daemon.create_job(replace(whole, stages=(alone,)))
                assert error.value.reason == f"MODEL_{damage.upper()}"
                assert files[stage.kind] in error.value.message
            views = [view.state for view in (await daemon.gpu()).engines]
            assert views == ["unavailable"] * 3

    asyncio.run(story())


def test_the_other_engines_work_beside_a_broken_one(
    demo_settings: Settings, tmp_path: Path
) -> None:
    broken = damaged(demo_settings, tmp_path, "missing")
    settings = demo_settings.model_copy(update={"separation": broken.separation})

    async def story() -> None:
        async with running(settings) as daemon:
            whole = request("t", await upload(daemon))
            job = await daemon.create_job(replace(whole, stages=whole.stages[1:]))
            assert (await final(daemon, job.job.name)).job.state is JobState.SUCCEEDED

    asyncio.run(story())
