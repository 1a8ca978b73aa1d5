"""What will probably be loaded next: the next stage of what runs now. A guess that costs nothing
when it is wrong; no decision depends on it.
"""

from collections.abc import Iterable, Mapping

from coscheduler.core.engine_state import EngineState, Phase
from coscheduler.core.model import (
    EngineName,
    Job,
    JobState,
    Option,
    Stage,
    StageKind,
    StageState,
)

WAITING = (JobState.QUEUED, JobState.RUNNING)
IN_MEMORY = (Phase.LOADING, Phase.LOADED, Phase.RUNNING, Phase.PAUSED)


def next_option(
    jobs: Iterable[Job], engines: Mapping[EngineName, EngineState], capacity_bytes: int
) -> Option | None:
    """The option that the first of `jobs` with a running stage will want after it, if its engine is
    not in memory.
    """
    for job in jobs:
        if (stage := _after_the_running(job)) is None:
            continue
        state = engines.get(stage.engine)
        if state is None or state.description is None or state.phase in IN_MEMORY:
            continue
        return next(iter(state.best_fitting(stage.duration_ms, capacity_bytes)), None)
    return None


def waiting_stage(jobs: Iterable[Job], kind: StageKind) -> tuple[Job, int] | None:
    """The first of `jobs` whose current stage is of that kind, has its input and has not begun."""
    for job in jobs:
        stage = job.stages[job.current_index]
        is_waiting = job.state in WAITING and stage.state is StageState.PENDING
        if stage.kind is kind and is_waiting and stage.input.artifact:
            return job, job.current_index
    return None


def _after_the_running(job: Job) -> Stage | None:
    states = [stage.state for stage in job.stages]
    if StageState.RUNNING not in states:
        return None
    following = job.stages[states.index(StageState.RUNNING) + 1 :]
    return next(iter(following), None)
