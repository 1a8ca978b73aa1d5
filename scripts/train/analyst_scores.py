"""How often the language model is right, run by the engine with its templates and its grammar.

Example: python scripts/train analyst_scores --model coscheduler/demo/models/analyst.gguf
         python scripts/train analyst_scores --model .train/analyst.gguf --kv-type q8_0 --json
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from coscheduler.config import AnalysisSettings, DeviceSettings, Settings, StoreSettings
from coscheduler.core.model import StageKind
from coscheduler.engines.analysis.engine import AnalysisEngine
from coscheduler.engines.base import Task
from train import analyst_data
from train.analyst_data import Action, Line

SEED = 90_001  # of held-out meetings; training draws from small seeds
LINES_MIN, LINES_MAX = 4, 24
KINDS = ("known", "invented", "misheard")


@dataclass
class Scores:
    """Counts over some meetings. An item is right when owner, task and due are; a document when
    all its items are and no other is there.
    """

    documents: int = 0
    valid: int = 0
    exact: int = 0
    expected: int = 0
    found: int = 0
    owner: int = 0
    task: int = 0
    due: int = 0
    items: int = 0
    cites: int = 0

    def percent(self) -> dict[str, float]:
        """Of documents: valid, exact. Of the tasks given: the other parts. `precision` is the
        share of what was written that is right.
        """
        expected, found, documents = max(1, self.expected), max(1, self.found), self.documents
        return {
            "valid": round(100 * self.valid / documents, 1),
            "exact": round(100 * self.exact / documents, 1),
            **{
                name: round(100 * getattr(self, name) / expected, 1)
                for name in ("owner", "task", "due", "items", "cites")
            },
            "precision": round(100 * self.items / found, 1),
        }


def main(arguments: list[str]) -> int:
    """Print the scores for known words, for words never seen, and for misheard ones."""
    parser = argparse.ArgumentParser(
        prog="python scripts/train analyst_scores",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=60, help="of each kind (%(default)s)")
    parser.add_argument("--kv-type", choices=("f16", "q8_0", "q4_0"), default="f16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with opened(options.model, options.kv_type, options.threads) as engine:
        found = {kind: _measured(engine, meetings(options.documents, kind)) for kind in KINDS}
    print(json.dumps(found, indent=2) if options.json else _table(found))
    return 0


def _measured(engine: AnalysisEngine, held_out: Sequence[Sequence[Line]]) -> dict[str, float]:
    summary = statements(engine, held_out)
    return {**scores(engine, held_out).percent(), "summary": summary}


def _table(found: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(found.values())))
    head = "".join(f"{column:>11}" for column in ("", *columns))
    rows = (
        f"{kind:>11}" + "".join(f"{row[c]:>11}" for c in columns) for kind, row in found.items()
    )
    return "\n".join((head, *rows))


@contextmanager
def opened(model: Path, kv_type: str = "f16", threads: int = 2) -> Iterator[AnalysisEngine]:
    """The engine with the model loaded, on the processor."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            store=StoreSettings(data_dir=Path(folder)),
            device=DeviceSettings(threads=threads),
            analysis=AnalysisSettings.model_validate(
                {"model": model, "n_ctx_max": 2048, "n_ctx_min": 2048, "kv_types": [kv_type]}
            ),
        )
        engine = AnalysisEngine(settings)
        option = engine.describe().options[0]
        engine.start()
        engine.load(option, lambda done, total: None)
        yield engine
        engine.unload()


def meetings(count: int, kind: str) -> list[list[Line]]:
    """Held-out meetings; "invented" ones have words in them that no text has, in "misheard" ones
    some words have been taken for others.
    """
    rng = np.random.default_rng([SEED, KINDS.index(kind)])
    noise = float(kind == "misheard")
    found: list[list[Line]] = []
    while len(found) < count:
        length = int(rng.integers(LINES_MIN, LINES_MAX + 1))
        found.append(analyst_data.meeting(rng, "test", length, kind == "invented", noise))
    return found


def scores(engine: AnalysisEngine, held_out: Sequence[Sequence[Line]]) -> Scores:
    """The engine's answers to the `actions` template against what was said."""
    total = Scores()
    for lines in track(held_out, "meetings", transient=True, console=None):
        answer = ask(engine, "actions", _transcript(lines))
        wanted = analyst_data.actions_of(lines, {line.number: 0 for line in lines})
        _count(total, answer, [_by_place(action, lines) for action in wanted])
    return total


def statements(engine: AnalysisEngine, held_out: Sequence[Sequence[Line]]) -> float:
    """Percent of the right summaries' statements that the answers to `summary` have."""
    right = expected = 0
    for lines in track(held_out, "summaries", transient=True, console=None):
        answer = ask(engine, "summary", _transcript(lines)) or {"summary": []}
        found = [statement["text"] for statement in answer["summary"]]
        wanted = analyst_data.summary_of(lines)
        right += sum(text in found for text in wanted)
        expected += len(wanted)
    return round(100 * right / expected, 1)


def _transcript(lines: Sequence[Line]) -> dict[str, Any]:
    segments = [
        {"text": line.text, "speaker": line.speaker, "start": index, "end": index + 1}
        for index, line in enumerate(lines)
    ]
    return {"segments": segments, "language": "en"}


def _by_place(action: Action, lines: Sequence[Line]) -> tuple[str, str, str, int]:
    place = next(index for index, line in enumerate(lines) if line.number == action.number)
    return action.owner, action.task, action.due, place


def ask(engine: AnalysisEngine, template: str, transcript: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a template; None when the answer was cut or is no JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in.json").write_text(json.dumps(transcript), encoding="utf-8")
        (folder / "out").mkdir()
        parameters = {"template": template, "seed": 1}
        task = Task(
            "jobs/x", StageKind.ANALYZE, parameters, folder / "in.json", folder / "out", 60_000
        )
        for _ in engine.slices(task):
            pass
        found = json.loads((folder / "out" / "analysis.json").read_text("utf-8"))
    return found["result"] if isinstance(found.get("result"), dict) else None


def _count(
    total: Scores, answer: dict[str, Any] | None, wanted: list[tuple[str, str, str, int]]
) -> None:
    total.documents += 1
    total.expected += len(wanted)
    if answer is None:
        return
    total.valid += 1
    found = [_item(item) for item in answer["actions"]]
    total.found += len(found)
    total.exact += found == wanted
    for owner, task, due, place in wanted:
        near = [item for item in found if item[3] == place]
        total.cites += bool(near)
        total.owner += any(item[0] == owner for item in near)
        total.task += any(item[1] == task for item in near)
        total.due += any(item[1] == task and item[2] == due for item in near)
        total.items += (owner, task, due, place) in found


def _item(item: dict[str, Any]) -> tuple[str, str, str, int]:
    place = item["cites"][0]["segment"] if item["cites"] else -1
    return item["owner"], item["task"], item["due"], place
