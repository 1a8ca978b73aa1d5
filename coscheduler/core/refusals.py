"""Why a stage can never run, with the numbers: the one place where such a failure is worded."""

from coscheduler.core import planner
from coscheduler.core.engine_state import EngineState
from coscheduler.core.model import EngineName, Failure
from coscheduler.errors import CoschedulerError, Refused


def failure_of(error: CoschedulerError) -> Failure:
    """What was raised, as a record."""
    return Failure(error.reason, error.message, tuple(error.numbers.items()))


def refused(failure: Failure) -> Refused:
    """What a record says, to be raised."""
    return Refused(failure.reason, failure.message, **dict(failure.numbers))


def not_configured(engine: EngineName) -> Failure:
    """The config has no section for the engine."""
    return Failure(
        "ENGINE_NOT_CONFIGURED",
        f"the config does not have the {engine} engine; add an [{engine}] section",
        (("engine", str(engine)),),
    )


def misfit(
    state: EngineState, duration_ms: int, quality_min: int | None, capacity_bytes: int
) -> Failure | None:
    """Why `capacity_bytes` are not enough for a described engine, NEVER_FITS or QUALITY_TOO_LOW;
    None when they are.
    """
    tier = state.best_tier(duration_ms, capacity_bytes)
    if tier is None:
        return never_fits(state, duration_ms, capacity_bytes)
    if quality_min is not None and tier > quality_min:
        return _too_low(state, duration_ms, quality_min, tier, capacity_bytes)
    return None


def never_fits(state: EngineState, duration_ms: int, capacity_bytes: int) -> Failure:
    """No option fits into the whole budget."""
    required = planner.least_bytes(state.options(), duration_ms, state.context_bytes)
    return Failure(
        "NEVER_FITS",
        f"{state.name} needs at least {required} bytes for this recording and the whole budget is "
        f"{capacity_bytes}; raise memory_cap, or configure a smaller model",
        (("required_bytes", str(required)), ("available_bytes", str(capacity_bytes))),
    )


def survey_never_fits(engine: EngineName, survey_bytes: int, budget_bytes: int) -> Failure:
    """The whole budget is too little even to find out what the engine takes."""
    return Failure(
        "NEVER_FITS",
        f"finding out what {engine} takes may itself take {survey_bytes} bytes and the whole "
        f"budget is {budget_bytes}; raise memory_cap",
        (("required_bytes", str(survey_bytes)), ("available_bytes", str(budget_bytes))),
    )


def _too_low(
    state: EngineState, duration_ms: int, quality_min: int, tier: int, capacity_bytes: int
) -> Failure:
    """Something fits, but nothing that is good enough for the job."""
    good = [option for option in state.options() if option.quality_tier <= quality_min]
    numbers = [("quality_tier", str(tier)), ("quality_min", str(quality_min))]
    needs = "has no option as good as that"
    if good:
        required = planner.least_bytes(good, duration_ms, state.context_bytes)
        numbers.append(("required_bytes", str(required)))
        needs = f"needs {required} bytes for that"
    numbers.append(("available_bytes", str(capacity_bytes)))
    return Failure(
        "QUALITY_TOO_LOW",
        f"the job asks for quality tier {quality_min} or better; {state.name} {needs}, the budget "
        f"is {capacity_bytes} and allows tier {tier}",
        tuple(numbers),
    )
