"""What will be loaded next: the stage after the one that runs, as far as it can be told."""

from dataclasses import replace
from typing import Any

import pytest

from coscheduler.core.engine_state import EngineState, Phase
from coscheduler.core.foresight import next_option, waiting_stage
from coscheduler.core.model import InputRef, Job, JobState, StageKind, StageState
from tests.core.build import S, T, description, job, option

BOTH = (StageKind.SEPARATE, StageKind.TRANSCRIBE)


def running(made: Job) -> Job:
    first = replace(made.stages[0], state=StageState.RUNNING)
    return replace(made, stages=(first, *made.stages[1:]))


def engines(phase: Phase = Phase.STARTED) -> dict[object, EngineState]:
    options = (option("full", weights=500), option("less", weights=300), option("worse", tier=1))
    return {
        S: EngineState(S, Phase.RUNNING, description(S)),
        T: EngineState(T, phase, description(T, *options), context_bytes=10),
    }


def found(jobs: list[Job], capacity: int = 1000, phase: Phase = Phase.STARTED) -> str | None:
    chosen = next_option(jobs, engines(phase), capacity)  # type: ignore[arg-type]
    return None if chosen is None else chosen.name


def test_it_is_the_stage_after_the_one_that_runs() -> None:
    assert found([job("jobs/1", *BOTH), running(job("jobs/2", *BOTH))]) == "full"


def test_it_is_the_first_of_the_best_quality_that_fits() -> None:
    jobs = [running(job("jobs/1", *BOTH))]
    assert found(jobs, capacity=400) == "less"
    assert found(jobs, capacity=200) == "worse"
    assert found(jobs, capacity=20) is None


def waits(name: str, kind: StageKind = StageKind.TRANSCRIBE, **changes: Any) -> Job:
    made = job(name, kind)
    stage = replace(made.stages[0], input=InputRef(artifact="artifacts/1"))
    return replace(made, stages=(replace(stage, **changes),))


def test_of_those_that_wait_the_first_with_its_input_is_next() -> None:
    jobs = [
        waits("jobs/1", state=StageState.RUNNING),
        waits("jobs/2", StageKind.SEPARATE),
        waits("jobs/3", input=InputRef(job="jobs/2", role="target")),
        replace(waits("jobs/4"), state=JobState.CANCELLING),
        waits("jobs/5"),
        waits("jobs/6"),
    ]
    found = waiting_stage(jobs, StageKind.TRANSCRIBE)
    assert found is not None and (found[0].name, found[1]) == ("jobs/5", 0)
    assert waiting_stage(jobs[:4], StageKind.TRANSCRIBE) is None


def test_a_stage_within_a_job_waits_too() -> None:
    made = job("jobs/1", *BOTH)
    first = replace(made.stages[0], state=StageState.SUCCEEDED)
    second = replace(made.stages[1], input=InputRef(artifact="artifacts/1"))
    made = replace(made, stages=(first, second), state=JobState.RUNNING)
    assert waiting_stage([made], StageKind.TRANSCRIBE) == (made, 1)


@pytest.mark.parametrize("phase", [Phase.LOADING, Phase.LOADED, Phase.RUNNING, Phase.PAUSED])
def test_what_is_in_memory_needs_nothing(phase: Phase) -> None:
    assert found([running(job("jobs/1", *BOTH))], phase=phase) is None


def test_nothing_follows_a_last_stage_or_one_that_waits() -> None:
    assert found([running(job("jobs/1", StageKind.SEPARATE)), job("jobs/2", *BOTH)]) is None


def test_an_engine_that_is_not_described_is_not_guessed_at() -> None:
    known = engines()
    known[T].description = None
    assert next_option([running(job("jobs/1", *BOTH))], known, 1000) is None  # type: ignore[arg-type]
