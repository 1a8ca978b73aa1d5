"""The whole daemon with fake engines: real processes, real files, real database."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from coscheduler.config import MIB
from coscheduler.core.model import EngineName, InputRef, JobState, StageKind, StageState
from coscheduler.errors import CoschedulerError, Exhausted, InvalidInput, NotFound, Refused
from coscheduler.runtime import intake
from coscheduler.runtime.api import JobRequest, JobSnapshot, StageRequest
from coscheduler.runtime.opening import open_daemon
from tests.runtime.support import (
    ANALYZE,
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

SLOW = scripted("slow")
NOWHERE, NOT_FOUND = f"artifacts/{32 * '0'}", "ARTIFACT_NOT_FOUND"


def at_work(snapshot: JobSnapshot) -> bool:
    return snapshot.progress is not None


def test_three_stages_end_with_their_results(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            job = (
                await final(daemon, (await daemon.create_job(request("a", source))).job.name)
            ).job
            assert job.state is JobState.SUCCEEDED
            assert [stage.state for stage in job.stages] == [StageState.SUCCEEDED] * 3
            roles = [[output.role for output in stage.outputs] for stage in job.stages]
            assert roles == [["target", "residual"], ["transcript"], ["analysis"]]
            target = job.stages[0].outputs[0].artifact
            data = b"".join([chunk async for chunk in daemon.read_artifact(target, 0)])
            assert data == recording()
            rest = b"".join([chunk async for chunk in daemon.read_artifact(target, 1000)])
            assert rest == data[1000:]
            for stage in job.stages:
                difference = abs(stage.predicted_peak_bytes - stage.measured_peak_bytes)
                assert difference <= max(16 * MIB, stage.predicted_peak_bytes // 20), stage

    run(story())


def test_the_ledger_agrees_with_the_meter(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            await final(daemon, (await daemon.create_job(request("a", source))).job.name)
            gpu = await daemon.gpu()
            assert gpu.warnings == ()
            assert abs(gpu.reserved_bytes - gpu.measured_bytes) <= 16 * MIB
            assert sum(line.bytes for line in gpu.lines) == gpu.reserved_bytes
            assert {view.state for view in gpu.engines} == {"loaded"}
            assert gpu.measured_bytes > 3 * 30 * MIB

    run(story())


def test_what_a_run_took_above_its_prediction_is_known_to_the_next_daemon(tmp_path: Path) -> None:
    async def peaks(prompt: str) -> tuple[int, int]:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            job = (await daemon.create_job(request(prompt, source, scripted(prompt)))).job
            (stage,) = (await final(daemon, job.name)).job.stages
            return stage.predicted_peak_bytes, stage.measured_peak_bytes

    async def story() -> None:
        predicted, measured = await peaks("large")
        assert measured > predicted + 16 * MIB
        charged, taken = await peaks("speech")
        assert charged == pytest.approx(measured, abs=MIB)
        assert taken == pytest.approx(predicted, abs=8 * MIB)

    run(story())


def test_stages_of_three_jobs_overlap(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            names = [(await daemon.create_job(request(f"{i}", source))).job.name for i in range(3)]
            seen: set[int] = set()
            async for _ in daemon.watch_job(names[2]):
                gpu = await daemon.gpu()
                seen.add(sum(view.state in ("running", "loading") for view in gpu.engines))
            assert max(seen) >= 2

    run(story())


def test_a_small_budget_makes_engines_take_turns(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path, device={"memory_cap": "72 MiB"})) as daemon:
            source = await upload(daemon, recording())
            job = (
                await final(daemon, (await daemon.create_job(request("a", source))).job.name)
            ).job
            assert job.state is JobState.SUCCEEDED, job
            assert job.stages[1].evicted and job.stages[2].evicted
            gpu = await daemon.gpu()
            assert gpu.measured_bytes <= 72 * MIB

    run(story())


def test_a_killed_engine_costs_its_stage_one_attempt_and_nothing_else(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            await final(daemon, (await daemon.create_job(request("warm", source))).job.name)
            slow = (await daemon.create_job(request("slow", source, SLOW))).job.name
            await until(daemon, slow, at_work)
            before = await daemon.gpu()
            victim = next(v for v in before.engines if v.engine is EngineName.SEPARATION)
            others = {v.pid for v in before.engines} - {victim.pid}
            os.kill(victim.pid, signal.SIGKILL)
            again = await until(
                daemon, slow, lambda s: s.job.stages[0].attempt_count == 2 and at_work(s)
            )
            assert "ENGINE_CRASHED" in " ".join(again.job.stages[0].waited_for)
            after = await daemon.gpu()
            assert others < {v.pid for v in after.engines}
            assert after.reserved_bytes <= before.reserved_bytes + 16 * MIB
            await daemon.cancel_job(slow)
            assert (await final(daemon, slow)).job.state is JobState.CANCELLED

    run(story())


def test_an_engine_that_always_crashes_fails_its_job_after_the_bound(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            job = await daemon.create_job(request("c", source, scripted("crash")))
            ended = (await final(daemon, job.job.name)).job
            assert ended.state is JobState.FAILED and ended.failure is not None
            assert ended.failure.reason == "ENGINE_CRASHED"
            assert ended.stages[0].attempt_count == 3
            well = await daemon.create_job(request("d", source))
            assert (await final(daemon, well.job.name)).job.state is JobState.SUCCEEDED

    run(story())


def test_a_failure_of_the_engine_is_the_jobs_failure(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            job = await daemon.create_job(request("f", source, scripted("fail")))
            ended = (await final(daemon, job.job.name)).job
            assert ended.failure is not None and ended.failure.reason == "SCRIPTED_FAILURE"
            assert ended.stages[0].attempt_count == 1

    run(story())


def test_cancel_stops_a_running_stage_and_the_engine_stays_usable(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            slow = (await daemon.create_job(request("slow", source, SLOW))).job.name
            await until(daemon, slow, at_work)
            pid = next(v.pid for v in (await daemon.gpu()).engines if v.job == slow)
            await daemon.cancel_job(slow)
            assert (await final(daemon, slow)).job.state is JobState.CANCELLED
            job = await daemon.create_job(request("next", source, SEPARATE))
            assert (await final(daemon, job.job.name)).job.state is JobState.SUCCEEDED
            assert pid in {view.pid for view in (await daemon.gpu()).engines}
            assert list((tmp_path / "store" / "work").iterdir()) == []

    run(story())


def test_unfinished_jobs_go_on_after_a_restart_and_results_stay(tmp_path: Path) -> None:
    async def story() -> None:
        chosen = settings(tmp_path)
        async with running(chosen) as daemon:
            source = await upload(daemon, recording())
            done = (await daemon.create_job(request("done", source))).job.name
            before = (await final(daemon, done)).job
            slow = (await daemon.create_job(request("slow", source, SLOW))).job.name
            waiting = (await daemon.create_job(request("waiting", source))).job.name
            follower = StageRequest(
                StageKind.TRANSCRIBE, {}, InputRef(job=waiting, role="residual")
            )
            follows = await daemon.create_job(JobRequest("follows", (follower,)))
            await until(daemon, slow, at_work)
        (tmp_path / "store" / "artifacts" / "half.part").write_bytes(b"x")
        async with running(chosen) as daemon:
            assert (await daemon.get_job(done)).job == before
            assert not (tmp_path / "store" / "artifacts" / "half.part").exists()
            again = await until(daemon, slow, at_work)
            assert again.job.stages[0].attempt_count == 2
            kept = tmp_path / "store" / "resume"
            assert {folder.name[5:17] for folder in kept.iterdir()} >= {slow[5:]}
            await daemon.cancel_job(slow)
            assert (await final(daemon, waiting)).job.state is JobState.SUCCEEDED
            assert (await final(daemon, follows.job.name)).job.state is JobState.SUCCEEDED

    run(story())


def test_the_same_request_id_is_the_same_job(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            first, second = await asyncio.gather(
                daemon.create_job(request("same", source)),
                daemon.create_job(request("same", source)),
            )
            assert first.job.name == second.job.name
            jobs, token = await daemon.list_jobs(10, "")
            assert len(jobs) == 1 and token == ""

    run(story())


def test_lists_come_in_pages_newest_first(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            names = [
                (await daemon.create_job(request(f"{i}", source, SEPARATE))).job.name
                for i in range(5)
            ]
            seen, token = [], ""
            while True:
                page, token = await daemon.list_jobs(2, token)
                seen += [snapshot.job.name for snapshot in page]
                if not token:
                    break
            assert sorted(seen) == sorted(names) and len(seen) == 5
            artifacts, _ = await daemon.list_artifacts(10, "", "")
            assert source in artifacts
            for bad in ("!", "bm9uc2Vuc2U="):
                with pytest.raises(InvalidInput, match="page_token"):
                    await daemon.list_jobs(2, bad)

    run(story())


def test_deleting(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            slow = (await daemon.create_job(request("slow", source, SLOW))).job.name
            with pytest.raises(Refused) as refusal:
                await daemon.delete_job(slow)
            assert refusal.value.reason == "JOB_NOT_FINAL"
            with pytest.raises(Refused) as refusal:
                await daemon.delete_artifact(source.name)
            assert refusal.value.reason == "ARTIFACT_IN_USE"
            await daemon.cancel_job(slow)
            await final(daemon, slow)
            job = (await daemon.create_job(request("a", source))).job.name
            ended = (await final(daemon, job)).job
            await daemon.delete_job(job)
            await daemon.delete_artifact(source.name)
            for name in (source.name, ended.stages[0].outputs[0].artifact):
                with pytest.raises(NotFound):
                    await daemon.get_artifact(name)
            with pytest.raises(NotFound):
                await daemon.get_job(job)
            assert list((tmp_path / "store" / "artifacts").iterdir()) == []

    run(story())


def knows(*artifacts: str) -> StageRequest:
    """A transcription that is to find these voices."""
    known = [{"name": "Anna", "artifact": name} for name in artifacts]
    return StageRequest(StageKind.TRANSCRIBE, {"known_speakers": known})


def test_a_speakers_clip_stays_while_a_job_needs_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source, clip = await upload(daemon, recording()), await upload(daemon, recording())
            job = await daemon.create_job(request("a", source, SLOW, knows(clip.name)))
            with pytest.raises(Refused) as refusal:
                await daemon.delete_artifact(clip.name)
            assert refusal.value.numbers["job"] == job.job.name
            await daemon.cancel_job(job.job.name)
            await final(daemon, job.job.name)
            await daemon.delete_artifact(clip.name)

    run(story())


def test_a_transcription_is_begun_beside_the_one_before_it(tmp_path: Path) -> None:
    async def story() -> None:
        section = {"model": "x", "detect_ahead": True}
        async with running(settings(tmp_path, transcription=section)) as daemon:
            source = await upload(daemon, recording())
            await daemon.drain(True)  # both wait before the first runs
            made = [await daemon.create_job(request(f"{i}", source, TRANSCRIBE)) for i in range(2)]
            await daemon.drain(False)
            ended = [(await final(daemon, entry.job.name)).job for entry in made]
            assert [job.stages[0].numbers for job in ended] == [(), (("ahead_count", 1),)]

    run(story())


def test_bad_requests_are_refused_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "CLIP_MS_MAX", 999)

    async def refused(daemon: object, made: JobRequest) -> str:
        with pytest.raises(CoschedulerError) as error:
            await daemon.create_job(made)  # type: ignore[attr-defined]
        return error.value.reason

    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            good = request("x", source)
            text = await upload(daemon, b"hello", kind="transcript")
            unknown = StageRequest(StageKind.ANALYZE, {"template": "haiku"})
            cases = {
                "REQUEST_ID_INVALID": replace(good, request_id=""),
                "PRIORITY_OUT_OF_RANGE": replace(good, priority=7),
                "STAGES_INVALID": replace(good, stages=(TRANSCRIBE, SEPARATE)),
                "TEMPLATE_UNKNOWN": replace(good, stages=(TRANSCRIBE, unknown)),
                "PARAMETER_INVALID": replace(good, stages=(scripted(""),)),
                "SOURCE_MISSING": replace(good, source=None),
                "ARTIFACT_NOT_FOUND": replace(good, source=InputRef(artifact="artifacts/../x")),
                "JOB_NOT_FOUND": replace(good, source=InputRef(job="jobs/none", role="target")),
                "INPUT_INVALID": replace(good, source=InputRef()),
                "INPUT_KIND_MISMATCH": replace(good, source=InputRef(artifact=text.name)),
                "SPEAKER_CLIP_TOO_LONG": replace(good, stages=(knows(source.name),)),
            }
            for reason, made in cases.items():
                assert await refused(daemon, made) == reason
            for artifact, reason in {text.name: "INPUT_KIND_MISMATCH", NOWHERE: NOT_FOUND}.items():
                assert await refused(daemon, replace(good, stages=(knows(artifact),))) == reason
            mixed = replace(good, stages=(SEPARATE, ANALYZE))
            assert await refused(daemon, mixed) == "INPUT_KIND_MISMATCH"
            assert (await daemon.list_jobs(10, ""))[0] == []
            alone = await daemon.create_job(request("t", text, ANALYZE))
            assert (await final(daemon, alone.job.name)).job.state is JobState.SUCCEEDED

    run(story())


def test_a_job_over_the_budget_is_refused_with_the_numbers(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path, device={"memory_cap": "32 MiB"})) as daemon:
            source = await upload(daemon, recording())
            with pytest.raises(Refused) as refusal:
                await daemon.create_job(request("a", source))
            assert refusal.value.reason == "NEVER_FITS"
            numbers = refusal.value.numbers
            assert int(numbers["required_bytes"]) > int(numbers["available_bytes"]) == 32 * MIB

    run(story())


def test_a_full_queue_is_refused_with_a_time_to_come_back(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path, scheduling={"queue_max": 1})) as daemon:
            source = await upload(daemon, recording())
            slow = (await daemon.create_job(request("slow", source, SLOW))).job.name
            with pytest.raises(Exhausted) as refusal:
                await daemon.create_job(request("more", source))
            assert refusal.value.reason == "QUEUE_FULL"
            assert int(refusal.value.numbers["retry_ms"]) > 0
            await daemon.cancel_job(slow)

    run(story())


def test_two_daemons_cannot_use_one_store(tmp_path: Path) -> None:
    async def story() -> None:
        chosen = settings(tmp_path)
        async with running(chosen) as daemon:
            with pytest.raises(Refused) as refusal:
                await open_daemon(chosen)
            assert refusal.value.reason == "STORE_IN_USE"
            assert refusal.value.numbers["pid"] == str(os.getpid())
            await upload(daemon, recording())
        async with running(chosen):
            pass

    run(story())


def test_a_stopping_daemon_lets_the_stage_end_and_takes_nothing_new(tmp_path: Path) -> None:
    async def story() -> None:
        chosen = settings(tmp_path)
        daemon = await open_daemon(chosen)
        source = await upload(daemon, recording())
        job = (await daemon.create_job(request("a", source))).job.name
        await until(daemon, job, at_work)
        closing = asyncio.create_task(daemon.close(drain_ms=20_000))
        await asyncio.sleep(0)
        with pytest.raises(CoschedulerError) as error:
            await daemon.create_job(request("b", source))
        assert error.value.reason == "DRAINING"
        await closing
        async with running(chosen) as again:
            stage = (await again.get_job(job)).job.stages[0]
            assert stage.state is StageState.SUCCEEDED and stage.attempt_count == 1
            assert (await final(again, job)).job.state is JobState.SUCCEEDED

    run(story())


def test_a_running_batch_stage_is_paused_for_an_interactive_job_and_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path, device={"compute_slots": 1})) as daemon:
            source = await upload(daemon, recording())
            batch = (await daemon.create_job(request("b", source, SLOW, priority=0))).job.name
            await until(daemon, batch, at_work)
            urgent = request("u", source, TRANSCRIBE, priority=2)
            name = (await daemon.create_job(urgent)).job.name
            assert (await final(daemon, name)).job.state is JobState.SUCCEEDED
            back = await until(daemon, batch, lambda s: s.job.stages[0].state is StageState.RUNNING)
            assert back.job.stages[0].attempt_count == 1
            assert back.job.stages[0].preempt_count == 0
            await daemon.cancel_job(batch)
            assert (await final(daemon, batch)).job.state is JobState.CANCELLED

    run(story())


def test_an_interactive_job_takes_the_engine_from_a_batch_stage(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(settings(tmp_path)) as daemon:
            source = await upload(daemon, recording())
            batch = (await daemon.create_job(request("b", source, SLOW, priority=0))).job.name
            await until(daemon, batch, at_work)
            urgent = (await daemon.create_job(request("u", source, SEPARATE, priority=2))).job.name
            assert (await final(daemon, urgent)).job.state is JobState.SUCCEEDED
            again = await until(
                daemon, batch, lambda s: s.job.stages[0].attempt_count == 2 and at_work(s)
            )
            assert again.job.stages[0].preempt_count == 1
            await daemon.cancel_job(batch)

    run(story())
