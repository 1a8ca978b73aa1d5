"""Measure the shipped separator through the product's own engine, on what no training had.

Examples:
    python scripts/train separator_evaluate
    python scripts/train separator_evaluate --per-case 2 --json > separator.json

Held-out sentences, half of them in new voices, over noise, music and beeps of pools of their own at
0, 2.5 and 5 dB. SI-SDR improvements are in dB over leaving the mixture as it is.

"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from coscheduler.engines.separation.api import SamAudio, Samples, Separation
from coscheduler.engines.separation.offer import CONTEXT_BYTES
from train import separator_data
from train.separator_codec import RATE_HZ
from train.separator_data import Example
from train.separator_scores import si_sdr_db

MODEL = Path(__file__).resolve().parents[2] / "coscheduler" / "demo" / "trained" / "sam-audio-demo"
ONE_PASS_MS, WINDOW_MS, HOUR_MS = 5_120, 2_560, 3_600_000
Row = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python scripts/train separator_evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="its folder (%(default)s)")
    parser.add_argument("--per-case", type=int, default=4, help="mixtures of each kind and level")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each mixture")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    held_out = separator_data.examples(options.seed, options.per_case, options.seconds)
    report = measure(options.model, held_out)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        show(Console(), report)
    return 0


def measure(folder: Path, held_out: list[Example]) -> dict[str, Any]:
    """Three tables: a row for each of `held_out`, one for each prompt and sound, and one for each
    way to run the model.
    """
    with tempfile.TemporaryDirectory() as scratch:
        load = partial(SamAudio.load, folder, prepared_dir=Path(scratch))
        with load(precision="float32", window_ms=ONE_PASS_MS) as model:
            started = time.process_time()
            results = _separated(model, held_out, "speech")
            cpu_s = time.process_time() - started
            few = _first_of_each_kind(held_out)
            prompts = list(_prompts(model, [held_out[index] for index in few]))
            limit = model.option.peak_bytes(HOUR_MS) + CONTEXT_BYTES["cpu"] - 1
        options = _options(load, limit, {index: results[index] for index in few}, held_out)
        return {
            "cpu_s_per_s": round(cpu_s / sum(map(_seconds, held_out)), 2),
            "mixtures": [_row(e, r) for e, r in zip(held_out, results, strict=True)],
            "prompts": prompts,
            "options": list(options),
        }


def _separated(model: SamAudio, examples: list[Example], prompt: str) -> list[Separation]:
    label = f"{prompt}, {model.option.name}"
    return [
        model.separate(example.mixture, prompt, watermark=False)
        for example in track(examples, label, console=Console(stderr=True))
    ]


def _row(example: Example, result: Separation) -> Row:
    return {
        "kind": example.kind,
        "snr_db": example.snr_db,
        "new_voice": example.new_voice,
        "improvement_db": _gain_db(result.target, example.target, example),
        "residual_improvement_db": _gain_db(result.residual, example.interference, example),
    }


def _gain_db(estimate: Samples, wanted: Samples, example: Example) -> float:
    return round(si_sdr_db(estimate, wanted) - si_sdr_db(example.mixture, wanted), 2)


def _prompts(model: SamAudio, examples: list[Example]) -> Iterator[Row]:
    """Speech in other words, then the other sound by its name."""
    for example in examples:
        for prompt in ("a person speaking", example.kind):
            wanted = example.interference if prompt == example.kind else example.target
            (result,) = _separated(model, [example], prompt)
            gain = _gain_db(result.target, wanted, example)
            yield {"prompt": prompt, "kind": example.kind, "improvement_db": gain}


def _options(
    load: Callable[..., SamAudio],
    limit_bytes: int,
    reference: dict[int, Separation],
    held_out: list[Example],
) -> Iterator[Row]:
    """What each way to run gives up against `reference`: float32, resident, in one pass."""
    examples = [held_out[index] for index in reference]
    choices: dict[str, dict[str, Any]] = {
        "bfloat16": {"precision": "bfloat16"},
        "int8": {"precision": "int8"},
        "float32, layers streamed": {"precision": "float32", "memory_limit": limit_bytes},
        f"float32, windows of {WINDOW_MS} ms": {"precision": "float32", "window_ms": WINDOW_MS},
    }
    yield _option("float32, one pass", list(reference.values()), reference, examples)
    for name, choice in choices.items():
        with load(**({"window_ms": ONE_PASS_MS} | choice)) as model:
            yield _option(name, _separated(model, examples, "speech"), reference, examples)


def _option(
    name: str, results: list[Separation], reference: dict[int, Separation], examples: list[Example]
) -> Row:
    pairs = list(zip(results, reference.values(), examples, strict=True))
    gains = [_gain_db(result.target, example.target, example) for result, _, example in pairs]
    row = {
        "option": name,
        "improvement_db": round(statistics.mean(gains), 2),
        "identical": all(np.array_equal(result.target, one.target) for result, one, _ in pairs),
        "agreement_db": "-",
    }
    if not row["identical"]:
        agreement = [si_sdr_db(result.target, one.target) for result, one, _ in pairs]
        row["agreement_db"] = round(statistics.mean(agreement), 1)
    return row


def _first_of_each_kind(held_out: list[Example]) -> list[int]:
    kinds = [example.kind for example in held_out]
    return [kinds.index(kind) for kind in dict.fromkeys(kinds)]


def _seconds(example: Example) -> float:
    return len(example.mixture) / RATE_HZ


def show(console: Console, report: dict[str, Any]) -> None:
    """The tables, with means over mixtures."""
    console.print(_summary("SI-SDR improvement in dB: speech", report, "improvement_db"))
    console.print(_summary("The rest", report, "residual_improvement_db"))
    for name in ("prompts", "options"):
        table = Table(*report[name][0], title=name)
        for row in report[name]:
            table.add_row(*map(str, row.values()))
        console.print(table)
    console.print(f"{report['cpu_s_per_s']} s of processor time per second of sound, float32")


def _summary(title: str, report: dict[str, Any], field: str) -> Table:
    """Means by kind and level; the last two columns are means by voice."""
    rows: list[Row] = report["mixtures"]
    levels = sorted({row["snr_db"] for row in rows})
    table = Table("", *(f"{level} dB" for level in levels), "seen", "new voices", title=title)
    for kind in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == kind]
        groups = [[row for row in mine if row["snr_db"] == level] for level in levels]
        groups += [[row for row in mine if row["new_voice"] is new] for new in (False, True)]
        table.add_row(kind, *(_mean(group, field) for group in groups))
    return table


def _mean(rows: list[Row], field: str) -> str:
    return f"{statistics.mean(row[field] for row in rows):.2f}" if rows else "-"
