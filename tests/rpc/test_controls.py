"""The calls that change the device, and the dry run, from both clients through a real server."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from coscheduler.client import AsyncClient, Client, EngineName, JobPlan, JobRequest
from coscheduler.core.model import Failure, InputRef, Job, Priority, Stage, StageKind
from coscheduler.errors import Exhausted, InvalidInput, Refused, Unavailable
from coscheduler.rpc import convert
from coscheduler.runtime.api import JobSnapshot, StageRequest
from coscheduler.v1 import gpu_pb2
from tests.rpc.fake_daemon import FakeDaemon, busy_gpu
from tests.rpc.support import QUICK, asynchronous, eventually, serving

S, A = EngineName.SEPARATION, EngineName.ANALYSIS
ASKED = JobRequest(
    "r", (StageRequest(StageKind.SEPARATE, {"prompt": "speech"}),), InputRef(artifact="artifacts/0")
)


def busy() -> FakeDaemon:
    daemon = FakeDaemon()
    daemon.snapshot = busy_gpu()
    return daemon


@asynchronous
async def test_every_control_reaches_the_daemon_and_returns_the_device(tmp_path: Path) -> None:
    async with serving(tmp_path, busy()) as (daemon, front), AsyncClient(front.address) as client:
        assert (await client.set_budget(7_000)).budget_bytes == 7_000
        assert (await client.load_engine(S, "k=24")).engines[0].option == "k=24"
        assert (await client.pin_engine(S)).engines[0].is_pinned
        assert not (await client.pin_engine(S, False)).engines[0].is_pinned
        assert (await client.unload_engine(S)).engines[0].state == "stopped"
        assert (await client.drain()).is_draining
        assert await client.end_drain() == daemon.snapshot
        assert not daemon.snapshot.is_draining


@asynchronous
async def test_the_blocking_client_has_the_same_controls(tmp_path: Path) -> None:
    def ask(address: str) -> None:
        with Client(address) as client:
            assert client.set_budget(7_000).budget_bytes == 7_000
            assert client.load_engine(S).engines[0].option == "best"
            assert client.pin_engine(S).engines[0].is_pinned
            assert client.unload_engine(S).engines[0].state == "stopped"
            assert client.drain().is_draining and not client.end_drain().is_draining
            assert client.plan_job(ASKED).job.stages[0].option == "whole"
            assert next(client.watch_gpu()).budget_bytes == 7_000

    async with serving(tmp_path, busy()) as (_, front):
        await asyncio.to_thread(ask, front.address)


@asynchronous
async def test_refusals_arrive_as_what_they_are(tmp_path: Path) -> None:
    async with serving(tmp_path, busy()) as (daemon, front), AsyncClient(front.address) as client:
        daemon.faults["load_engine"] = Refused("NEVER_FITS", "no", required_bytes=9)
        with pytest.raises(Refused) as refusal:
            await client.load_engine(S)
        assert refusal.value.numbers == {"required_bytes": "9"}
        daemon.faults["set_budget"] = InvalidInput("BUDGET_NEGATIVE", "no")
        with pytest.raises(InvalidInput, match="no"):
            await client.set_budget(-1)
        daemon.faults["watch_gpu"] = Exhausted("TOO_MANY_WATCHERS", "no")
        with pytest.raises(Exhausted):
            await anext(client.watch_gpu())


def test_an_engine_of_no_known_number_is_refused() -> None:
    with pytest.raises(InvalidInput) as refusal:
        convert.engine_from_wire(99)
    assert refusal.value.reason == "ENGINE_UNKNOWN"
    assert convert.engine_from_wire(gpu_pb2.ENGINE_ANALYSIS) is A


@asynchronous
async def test_a_watch_of_the_device_gives_changes_and_outlives_a_restart(tmp_path: Path) -> None:
    async with AsyncClient(f"unix:{tmp_path / 'd.sock'}", backoff=QUICK) as client:
        watch = client.watch_gpu()
        async with serving(tmp_path, busy()) as (daemon, _):
            assert await anext(watch) == daemon.snapshot
            await daemon.drain(True)
            assert (await anext(watch)).is_draining
            following = asyncio.ensure_future(anext(watch))
        async with serving(tmp_path, busy()):
            assert await following == busy_gpu()
            await watch.aclose()


@asynchronous
async def test_a_watch_of_the_device_does_not_hold_up_the_shutdown(tmp_path: Path) -> None:
    async with serving(tmp_path, busy(), drain_ms_max=20_000) as (daemon, front):
        client = AsyncClient(front.address, backoff=replace(QUICK, patience_ms=0))
        watch = client.watch_gpu()
        await anext(watch)
        await asyncio.wait_for(front.close(), 10)
        with pytest.raises(Unavailable):
            await anext(watch)
        await client.close()
        await eventually(lambda: daemon.drained_ms is not None)


@asynchronous
async def test_a_plan_carries_quality_and_deadline_there_and_the_refusal_back(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as (daemon, front), AsyncClient(front.address) as client:
        plan = await client.plan_job(replace(ASKED, quality_min=0, deadline_ms=5_000))
        assert (daemon.requests[-1].quality_min, daemon.requests[-1].deadline_ms) == (0, 5_000)
        assert plan.refusal is not None and plan.end_ms is None
        assert dict(plan.refusal.numbers) == {"required_bytes": "7"}
        plan = await client.plan_job(ASKED)
        assert daemon.requests[-1].quality_min is None and daemon.requests[-1].deadline_ms is None
        assert plan.refusal is None and plan.end_ms == 9_000_000_000_000
        assert plan.job.stages[0].evicted == ("analysis: f16",)
        assert not daemon.jobs


@pytest.mark.parametrize("quality_min", [None, 0, 2])
def test_jobs_and_plans_survive_the_wire(quality_min: int | None) -> None:
    stage = Stage(
        StageKind.SEPARATE, '{"prompt": "x", "seed": 0}', InputRef(artifact="artifacts/0"),
        preempt_count=2, oom_count=1,
    )  # fmt: skip
    job = Job("jobs/1", "r", Priority.BATCH, 5, (stage,), quality_min=quality_min, deadline_ms=9)
    snapshot = JobSnapshot(job, None, "memory", 77, ("jobs/1 will probably miss it",))
    back = convert.job_from_wire(convert.job_to_wire(snapshot))
    assert (back.expected_end_ms, back.notes) == (77, snapshot.notes)
    assert (back.job.quality_min, back.job.deadline_ms) == (quality_min, 9)
    assert (back.job.stages[0].preempt_count, back.job.stages[0].oom_count) == (2, 1)
    plan = JobPlan(job, 12, ("a", "b"), Failure("R", "m", (("x", "1"),)))
    again = convert.plan_from_wire(convert.plan_to_wire(plan))
    assert (again.end_ms, again.decisions, again.refusal) == (12, ("a", "b"), plan.refusal)
