"""Measure what each way to run the demonstration's models gives up: the table that changes are
held to.

    python scripts/train options
    python scripts/train options --only analysis --write
    python scripts/train options --only recognition --json

Small, fixed samples that need no espeak-ng, so that tests can measure them again: the
demonstration's recording; 1.5 s of new voices over each kind of sound at 2.5 dB; 12 held-out
meetings of known words. `--write` replaces the chosen parts of quality.json beside the models.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from coscheduler import audio
from coscheduler.engines.separation.api import SamAudio, Samples
from coscheduler.engines.separation.offer import CONTEXT_BYTES
from train import analyst_scores, evaluate, listening, sounds
from train.separator_codec import RATE_HZ
from train.separator_scores import si_sdr_db

QUALITY = listening.TRAINED / "quality.json"
SPEECH = Path(__file__).with_name("held_out_speech.flac")  # two sentences in two new voices
MODEL = listening.TRAINED / "sam-audio-demo"
ANALYST = listening.TRAINED / "llm-demo" / "analyst-q8_0.gguf"
SECONDS, SNR_DB = 1.5, 2.5
MEETINGS = 12
COMPUTE_TYPES = ("float32", "int8")
KV_TYPES = ("f16", "q8_0")
REFERENCE = "float32, one pass"
WINDOWS = "float32, windows of 1000 ms"
STREAMED = "float32, layers streamed"
WAYS: dict[str, dict[str, Any]] = {
    REFERENCE: {"precision": "float32"},
    STREAMED: {"precision": "float32"},
    WINDOWS: {"precision": "float32", "window_ms": 1000},
    "bfloat16": {"precision": "bfloat16"},
    "int8": {"precision": "int8"},
}
Rows = dict[str, dict[str, Any]]  # by the name of the option: measures by name


def main(arguments: list[str]) -> int:
    """Print the table, or JSON."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    parts: dict[str, Callable[[], Rows]] = {
        "recognition": lambda: recognition(threads=options.threads),
        "separation": separation,
        "analysis": lambda: analysis(threads=options.threads),
    }
    found = {name: parts[name]() for name in options.only or parts}
    if options.write:
        text = json.dumps(committed() | found, indent=1) + "\n"
        QUALITY.write_text(text, encoding="utf-8")
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for name, rows in found.items():
            Console().print(_table(name, rows))
    return 0


def committed() -> dict[str, Rows]:
    """The table that changes are held to, by part."""
    found: dict[str, Rows] = json.loads(QUALITY.read_text(encoding="utf-8"))
    return found


def recognition(compute_types: Iterable[str] = COMPUTE_TYPES, threads: int = 1) -> Rows:
    """Errors on the demonstration's recording: see `evaluate.Row`."""
    kept = ("words", "word_error_rate", "start_error_ms", "speaker_error")
    rows = {}
    for name in compute_types:
        row = evaluate.demo_row(listening.TRAINED, name, threads)
        rows[name] = {measure: getattr(row, measure) for measure in kept}
    return rows


def mixture(kind: sounds.Kind) -> tuple[Samples, Samples]:
    """Held-out speech over a held-out sound, and the speech alone; float32 [N] at RATE_HZ."""
    voices = np.split(audio.read_mono(SPEECH, RATE_HZ), 2)
    voice = voices[sounds.KINDS.index(kind) % 2][: round(SECONDS * RATE_HZ)]
    return sounds.mixed(voice, sounds.clip(kind, "test", 7, SECONDS), SNR_DB), voice


def separation(
    ways: Iterable[str] = tuple(WAYS), kinds: Sequence[sounds.Kind] = sounds.KINDS
) -> Rows:
    """For each of WAYS, by kind of sound: SI-SDR improvement of speech in dB, and agreement with
    the first way, SI-SDR in dB; None where every bit is the same.
    """
    rows: Rows = {}
    reference: dict[str, Samples] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in ways:
            made = _separated(name, kinds, Path(scratch))
            reference = reference or made
            rows[name] = {
                kind: {
                    "improvement_db": _gain_db(made[kind], *mixture(kind)),
                    "agreement_db": _agreement_db(made[kind], reference[kind]),
                }
                for kind in kinds
            }
    return rows


def _separated(way: str, kinds: Sequence[sounds.Kind], prepared: Path) -> dict[str, Samples]:
    limit = _least_bytes(prepared) if way == STREAMED else None
    with SamAudio.load(MODEL, prepared_dir=prepared, memory_limit=limit, **WAYS[way]) as model:
        return {
            kind: model.separate(mixture(kind)[0], "speech", watermark=False).target
            for kind in kinds
        }


def _least_bytes(prepared: Path) -> int:
    """A limit under which not all layers fit."""
    with SamAudio.load(MODEL, prepared_dir=prepared, precision="float32") as model:
        return model.option.peak_bytes(3_600_000) + CONTEXT_BYTES["cpu"] - 1


def _gain_db(target: Samples, mixed: Samples, voice: Samples) -> float:
    return round(si_sdr_db(target, voice) - si_sdr_db(mixed, voice), 2)


def _agreement_db(target: Samples, reference: Samples) -> float | None:
    if np.array_equal(target, reference):
        return None
    return round(si_sdr_db(target, reference), 1)


def analysis(kv_types: Iterable[str] = KV_TYPES, threads: int = 1) -> Rows:
    """Percent of right answers on held-out meetings: see `analyst_scores.Scores.percent`."""
    held_out = analyst_scores.meetings(MEETINGS, "known")
    rows = {}
    for name in kv_types:
        with analyst_scores.opened(ANALYST, name, threads) as engine:
            rows[name] = analyst_scores.scores(engine, held_out).percent()
    return rows


def _table(part: str, rows: Rows) -> Table:
    columns = list(next(iter(rows.values())))
    table = Table("", *columns, title=part)
    for name, row in rows.items():
        table.add_row(name, *(_said(row[column]) for column in columns))
    return table


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_said(part)}" for part in value.values())
    return "same" if value is None else str(value)


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python scripts/train options",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = ("recognition", "separation", "analysis")
    made.add_argument("--only", action="append", choices=parts, help="a part; may be repeated")
    made.add_argument("--write", action="store_true", help=f"replace them in {QUALITY.name}")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--json", action="store_true", help="print JSON, for programs")
    return made
