"""Short ways to make the core's nouns in tests."""

from dataclasses import replace

from coscheduler.core.engine_state import Limits
from coscheduler.core.model import (
    EngineDescription,
    EngineName,
    InputRef,
    Job,
    Line,
    LineBytes,
    Option,
    Priority,
    RunLine,
    Stage,
    StageKind,
)

LIMITS = Limits(
    queue_max=64,
    attempts_max=3,
    preempts_max=8,
    ageing_ms=60_000,
    keep_alive_ms=300_000,
    compute_slots=3,
    processes_max=3,
    serial_loads=False,
    group_ms_max=0,
    resident_ms_min=0,
    oom_steps_max=4,
    oom_memory_ms=600_000,
    peak_tolerance_bytes=0,
)

S, T, A = EngineName.SEPARATION, EngineName.TRANSCRIPTION, EngineName.ANALYSIS


def limits(**changes: int) -> Limits:
    return replace(LIMITS, **changes)  # type: ignore[arg-type]


def option(
    name: str = "full", weights: int = 100, run: int = 20, tier: int = 0, speed: int = 10
) -> Option:
    return Option(
        name=name,
        resident=(LineBytes(Line.WEIGHTS, weights),),
        run=(RunLine(Line.WORKSPACE, run),),
        quality_tier=tier,
        load_ms=weights,
        run_ms_per_second=speed,
        slice_ms_max=250,
    )


def description(engine: EngineName, *options: Option, context: int = 10) -> EngineDescription:
    return EngineDescription(engine, "model", options or (option(),), context)


def stage(kind: StageKind = StageKind.SEPARATE, artifact: str = "artifacts/in") -> Stage:
    return Stage(kind, "{}", InputRef(artifact=artifact), duration_ms=10_000)


def job(
    name: str = "jobs/1",
    *kinds: StageKind,
    priority: Priority = Priority.NORMAL,
    arrival_ms: int = 1,
) -> Job:
    """A job whose first stage reads an artifact and whose later ones read the stage before."""
    role = {StageKind.SEPARATE: "target", StageKind.TRANSCRIBE: "transcript"}
    stages: list[Stage] = []
    for kind in kinds or (StageKind.SEPARATE,):
        made = stage(kind)
        if stages:
            made = replace(made, input=InputRef(job=name, role=role[stages[-1].kind]))
        stages.append(made)
    return Job(name, name, priority, arrival_ms, tuple(stages))
