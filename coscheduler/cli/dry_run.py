"""`coscheduler run --dry-run`: what would become of each recording's job, and why."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from coscheduler.cli import EXIT_DONE, EXIT_FAILED, say
from coscheduler.cli.run import Recording
from coscheduler.client import Client, JobPlan, Plan
from coscheduler.client.results import failure_fields
from coscheduler.core.model import Stage


def plan_all(address: str, recordings: Sequence[Recording], plan: Plan, as_json: bool) -> int:
    """Print a plan for each recording, each for itself; the exit code, 1 when one is refused.

    A recording is uploaded, since the daemon must measure its length, and deleted again.
    """
    with Client(address) as client:
        found = [(one.title, _plan(client, one, plan)) for one in recordings]
    for title, planned in found:
        say.console(as_json=as_json).print(_view(title, planned))
    if as_json:
        say.print_json({"plans": [_fields(title, planned) for title, planned in found]})
    return EXIT_FAILED if any(planned.refusal for _, planned in found) else EXIT_DONE


def _plan(client: Client, recording: Recording, plan: Plan) -> JobPlan:
    artifact = client.upload(recording.path)
    try:
        return client.plan_job(plan.request(artifact.name, recording.title))
    finally:
        client.delete_artifact(artifact.name)


def _fields(title: str, plan: JobPlan) -> dict[str, Any]:
    return {
        "title": title,
        "refusal": failure_fields(plan.refusal),
        "expected_ms": _expected_ms(plan),
        "decisions": list(plan.decisions),
        "stages": [_stage_fields(stage) for stage in plan.job.stages],
    }


def _stage_fields(stage: Stage) -> dict[str, Any]:
    kept = (
        "option", "quality_tier", "predicted_peak_bytes", "wait_ms", "load_ms", "run_ms",
        "evicted", "waited_for",
    )  # fmt: skip
    return {"stage": str(stage.kind), **{key: asdict(stage)[key] for key in kept}}


def _expected_ms(plan: JobPlan) -> int | None:
    """From now to the expected end; None when there is none."""
    return None if plan.end_ms is None else max(0, plan.end_ms - time.time_ns() // 1_000_000)


def _view(title: str, plan: JobPlan) -> RenderableType:
    name = Text(say.printable(title), style="bold")
    if plan.refusal is not None:
        refusal = plan.refusal
        told = say.sentence(refusal.reason, refusal.message, dict(refusal.numbers))
        return Group(name, Text(f"would be refused: {told}", style="red"))
    table = Table("stage", "option", "tier", "bytes", "waits", "loads", "runs", "evicts")
    for stage in plan.job.stages:
        table.add_row(
            stage.kind, stage.option, str(stage.quality_tier),
            say.size(stage.predicted_peak_bytes), say.duration(stage.wait_ms),
            say.duration(stage.load_ms), say.duration(stage.run_ms), ", ".join(stage.evicted),
        )  # fmt: skip
    waits = [
        Text(f"{stage.kind} waits for {why}")
        for stage in plan.job.stages
        for why in stage.waited_for
    ]
    expected_ms = _expected_ms(plan)
    end = "never, as things are" if expected_ms is None else f"in {say.duration(expected_ms)}"
    decisions = [Text(f"  {sentence}", style="dim") for sentence in plan.decisions]
    return Group(name, table, *waits, Text(f"expected end: {end}"), *decisions)
