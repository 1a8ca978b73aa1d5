"""What a finished job leaves with the caller: its files, and its metrics as plain JSON types."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coscheduler.core.model import Failure, JobState, Output, Stage
from coscheduler.rpc.convert import real_time_factor
from coscheduler.runtime.api import JobSnapshot

METRICS_FILENAME = "metrics.json"


@dataclass(frozen=True)
class RunResult:
    """A job in its final state, and the files that were fetched of it (by role; empty if none)."""

    snapshot: JobSnapshot
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def succeeded(self) -> bool:
        """Whether every stage succeeded."""
        return self.snapshot.job.state is JobState.SUCCEEDED

    @property
    def metrics(self) -> dict[str, Any]:
        """What `metrics.json` holds."""
        return metrics(self.snapshot, self.files.values())


def ignore_update(snapshot: JobSnapshot) -> None:
    """The callback of those who only want the end."""


def outputs(snapshot: JobSnapshot) -> dict[str, Output]:
    """Every output of the job by its role; each has a file name of its own, without folders."""
    found: dict[str, Output] = {}
    filenames: set[str] = set()
    for stage in snapshot.job.stages:
        for output in stage.outputs:
            name = Path(output.filename).name or output.role
            name = f"{stage.kind}-{name}" if name in filenames else name
            role = f"{stage.kind}-{output.role}" if output.role in found else output.role
            filenames.add(name)
            found[role] = Output(output.role, output.artifact, name)
    return found


def metrics(snapshot: JobSnapshot, files: Iterable[Path] = ()) -> dict[str, Any]:
    """How the job went: state, each stage's times and bytes, and the files; JSON types only.

    States are upper-case, as on the wire. `real_time_factor` is null where it means nothing.
    """
    job = snapshot.job
    return {
        "job": job.name,
        "title": job.title,
        "state": job.state.name,
        "stages": [_stage_metrics(stage) for stage in job.stages],
        "failure": failure_fields(job.failure),
        "deadline_ms": job.deadline_ms,
        "expected_end_ms": snapshot.expected_end_ms,
        "notes": list(snapshot.notes),
        "files": [str(path) for path in files],
    }


def _stage_metrics(stage: Stage) -> dict[str, Any]:
    factor = real_time_factor(stage)
    return {
        "stage": str(stage.kind),
        "state": stage.state.name,
        "wait_ms": stage.wait_ms,
        "load_ms": stage.load_ms,
        "run_ms": stage.run_ms,
        "predicted_peak_bytes": stage.predicted_peak_bytes,
        "measured_peak_bytes": stage.measured_peak_bytes,
        "real_time_factor": None if factor is None else round(factor, 4),
        "option": stage.option,
        "quality_tier": stage.quality_tier,
        "attempt_count": stage.attempt_count,
        "preempt_count": stage.preempt_count,
        "oom_count": stage.oom_count,
        "evicted": list(stage.evicted),
        "waited_for": list(stage.waited_for),
        "notes": list(stage.notes),
        "numbers": dict(stage.numbers),
        "outputs": [vars(output) for output in stage.outputs],
        "failure": failure_fields(stage.failure),
    }


def failure_fields(failure: Failure | None) -> dict[str, Any] | None:
    """A failure as JSON types; None where there is none."""
    if failure is None:
        return None
    return {
        "reason": failure.reason,
        "message": failure.message,
        "numbers": dict(failure.numbers),
    }


def write_metrics(snapshot: JobSnapshot, files: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Write `metrics.json` beside the files and return them with it under "metrics"."""
    path = folder / METRICS_FILENAME
    whole = {**files, "metrics": path}
    text = json.dumps(metrics(snapshot, whole.values()), indent=2)  # ASCII: names hold any bytes
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="ascii")
    return whole
