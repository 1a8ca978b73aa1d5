"""What will probably be loaded next: the next stage of what runs now. A guess that costs nothing
when it is wrong; no decision depends on it.
"""

from collections.abc import Iterable, Mapping

from coscheduler.core import planner
from coscheduler.core.engine_state import EngineState, Phase
from coscheduler.core.model import ENGINE_OF, EngineName, Job, Option, Stage, StageState

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
        state = engines.get(ENGINE_OF[stage.kind])
        if state is None or state.description is None or state.phase in IN_MEMORY:
            continue
        return _preferred(state, stage, capacity_bytes)
    return None


def _after_the_running(job: Job) -> Stage | None:
    states = [stage.state for stage in job.stages]
    if StageState.RUNNING not in states:
        return None
    following = job.stages[states.index(StageState.RUNNING) + 1 :]
    return next(iter(following), None)


def _preferred(state: EngineState, stage: Stage, capacity_bytes: int) -> Option | None:
    """The first of its best tier that fits an empty device."""
    context, duration_ms = state.context_bytes, stage.duration_ms
    options = state.options()
    tier = planner.best_tier(options, duration_ms, context, capacity_bytes)
    fitting = (
        option
        for option in options
        if option.quality_tier == tier
        and planner.fits_alone(option, duration_ms, context, capacity_bytes)
    )
    return next(fitting, None)
