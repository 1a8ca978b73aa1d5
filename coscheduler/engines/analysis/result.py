"""From an outcome to `analysis.json`: the result with its citations, and how it came about."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from coscheduler.engines.analysis import citing
from coscheduler.engines.analysis.reading import Outcome
from coscheduler.engines.analysis.request import Request
from coscheduler.engines.base import OutputFile, StageResult, Task

OUTPUT_NAME = "analysis.json"


def save(task: Task, asked: Request, outcome: Outcome) -> StageResult:
    """Write the document below the task's `output_dir`."""
    document = _document(asked, outcome)
    text = json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    (task.output_dir / OUTPUT_NAME).write_text(text, encoding="utf-8")
    tokens = document["tokens"]
    return StageResult(
        files=(OutputFile("analysis", OUTPUT_NAME, "application/json"),),
        notes=tuple(_notes(asked, outcome)),
        numbers={
            "prompt_tokens": tokens["prompt"],
            "completion_tokens": tokens["completion"],
            "n_ctx": asked.n_ctx,
            "calls": len(outcome.records),
            "resumed_calls": sum(record.resumed for record in outcome.records),
        },
    )


def _document(asked: Request, outcome: Outcome) -> dict[str, Any]:
    records = outcome.records
    return {
        "template": asked.template.name,
        "template_version": asked.template.version,
        "language": asked.transcript.language,
        "result": _result(asked, outcome),
        "tokens": {
            "prompt": sum(record.prompt_tokens for record in records),
            "completion": sum(record.completion_tokens for record in records),
        },
        "finish": "length" if any(record.finish == "length" for record in records) else "stop",
        "reading": {
            "how": outcome.how,
            "mode": asked.parameters.mode if outcome.how == "split" else None,
            "n_ctx": asked.n_ctx,
            "calls": [asdict(record) for record in records],
        },
    }


def _result(asked: Request, outcome: Outcome) -> Any:
    turns = {turn.number: turn for turn in asked.transcript.turns}
    if asked.template.schema is None:
        return citing.resolved_text(outcome.value["text"], turns)
    return citing.resolved(outcome.value, turns, asked.template.quotes)


def _notes(asked: Request, outcome: Outcome) -> Iterator[str]:
    records = outcome.records
    if not asked.transcript.turns:
        yield "The transcript holds no speech."
    pieces = sum(record.what in ("piece", "notes") for record in records)
    if outcome.how == "split":
        yield f"The transcript did not fit {asked.n_ctx} tokens and was read in {pieces} pieces."
    if outcome.how == "folded":
        yield (
            f"The transcript did not fit {asked.n_ctx} tokens; its oldest turns were folded into "
            f"notes, in {pieces} pieces."
        )
    cut = sum(record.finish == "length" for record in records)
    if cut:
        yield (
            f"{cut} of {len(records)} answers reached the limit of their tokens and were closed "
            "there; what was not whole is left out."
        )
    yield from outcome.notes
