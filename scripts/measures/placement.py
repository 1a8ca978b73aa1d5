"""What it takes for transcription's models to leave the device and to come back.

In a fresh process: from nothing to the first text; then, in turns, the first text of an engine that
holds its models, of one whose models come while they are in use, and of one that was unloaded.
Between them the time and the bytes of every change. On a card also of Whisper parked in RAM.
Random weights in the shapes of Whisper and of wav2vec2-base; the diarizer is the small one.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coscheduler import audio, config, demo
from coscheduler.core.model import Option, StageKind, total_bytes
from coscheduler.demo import tiny_aligner, tiny_whisper
from coscheduler.engines.base import Task
from coscheduler.engines.streaming import heap
from coscheduler.engines.transcription.engine import TranscriptionEngine
from coscheduler.procfs import anonymous_bytes
from measures import _workers
from measures._workers import worker
from measures.transcription import MEETING, SHAPES

MIB = 2**20
DIARIZER = Path(demo.__file__).parent / "trained" / "diarizer-demo"
Rows = dict[str, dict[str, list[int]]]


def main(arguments: list[str]) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/measure placement", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", type=Path, help="a CTranslate2 Whisper (default: random)")
    parser.add_argument("--shape", choices=SHAPES, default="base", help="of random weights")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.worker:
        print(json.dumps(_measured(chosen)), flush=True)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        found = _asked(chosen, Path(folder))
    print(json.dumps(found) if chosen.json else "\n".join(_lines(found)))
    return 0


def _asked(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write the models, and let a fresh process measure."""
    if chosen.model is None:
        chosen.model = folder / "model"
        tiny_whisper.write(chosen.model, shape=SHAPES[chosen.shape])
    _write_aligner(folder / "aligner")
    options = ["--model", chosen.model, "--device", chosen.device, "--threads", chosen.threads]
    with worker("placement", [*options, "--rounds", chosen.rounds, "--worker", folder]) as process:
        found: dict[str, Any] = _workers.answer(process)
    return found


def _write_aligner(folder: Path) -> None:
    """Random weights in the shape of wav2vec2-base."""
    import transformers

    hf: Any = transformers
    tiny_aligner.write(folder)
    wide = hf.Wav2Vec2Config(vocab_size=len(tiny_aligner.VOCABULARY))
    hf.Wav2Vec2ForCTC(wide).save_pretrained(folder)


# -- in the fresh process


def _measured(chosen: argparse.Namespace) -> dict[str, Any]:
    heap.share_one_arena()
    engine = _engine(chosen)
    held, *_, least = engine.describe().options
    rows: Rows = defaultdict(lambda: defaultdict(list))
    cold_ms = _noted(rows, "start the libraries", engine.start)
    cold_ms += _noted(rows, "load all", lambda: engine.load(held, _unheard))
    rows["first text, cold"]["ms"].append(cold_ms + _first_text_ms(engine))
    for _ in range(chosen.rounds):
        _round(engine, rows, held, least)
    medians = {
        what: {unit: round(statistics.median(values)) for unit, values in units.items()}
        for what, units in rows.items()
    }
    resident = {option.name: total_bytes(option.resident) for option in (held, least)}
    return {"device": chosen.device, "rounds": chosen.rounds, "resident": resident, **medians}


def _round(engine: TranscriptionEngine, rows: Rows, held: Option, least: Option) -> None:
    rows["first text, held"]["ms"].append(_first_text_ms(engine))
    _noted(rows, f"held -> {least.name}", lambda: engine.resize(least))
    rows[f"first text, {least.name}"]["ms"].append(_first_text_ms(engine))
    _noted(rows, f"{least.name} -> held", lambda: engine.resize(held))
    _noted(rows, "unload", engine.unload)
    load_ms = _noted(rows, "load all, libraries there", lambda: engine.load(held, _unheard))
    rows["first text, unloaded"]["ms"].append(load_ms + _first_text_ms(engine))


def _engine(chosen: argparse.Namespace) -> TranscriptionEngine:
    settings = config.parse(
        {
            "device": {"device": chosen.device, "threads": chosen.threads},
            "store": {"data_dir": str(chosen.worker / "data")},
            "transcription": {
                "model": str(chosen.model),
                "aligners": {"en": str(chosen.worker / "aligner")},
                "diarizer": str(DIARIZER),
                "batch_sizes": [1],
            },
        },
        base_dir=Path.cwd(),
    )
    return TranscriptionEngine(settings)


def _noted(rows: Rows, what: str, do: Callable[[], None]) -> int:
    """Milliseconds of a change, noted with the bytes that the device's memory grew by."""
    before, begun = _device_bytes(), time.perf_counter()
    do()
    taken_ms = round(1000 * (time.perf_counter() - begun))
    rows[what]["ms"].append(taken_ms)
    rows[what]["bytes"].append(_device_bytes() - before)
    return taken_ms


def _device_bytes() -> int:
    import torch

    cuda: Any = torch.cuda
    if cuda.is_initialized():
        cuda.synchronize()
        free, total = map(int, cuda.mem_get_info())
        return total - free
    return anonymous_bytes(os.getpid())


def _first_text_ms(engine: TranscriptionEngine) -> int:
    """From the task to its first text; reading and speech detection are part of it."""
    duration_ms = audio.probe(MEETING, 0, 12 * 3_600_000).duration_ms
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        parameters = {"language": "en", "vad_method": "silero"}
        task = Task("jobs/m", StageKind.TRANSCRIBE, parameters, MEETING, Path(folder), duration_ms)
        slices = engine.slices(task)
        while next(slices).note != "transcribing":
            pass
        taken_ms = round(1000 * (time.perf_counter() - begun))
        slices.close()
    return taken_ms


def _unheard(done: int, total: int) -> None:
    """Where nobody asks for progress."""


# -- for people


def _lines(found: dict[str, Any]) -> list[str]:
    """A line for each change."""
    lines = []
    for what, numbers in found.items():
        if isinstance(numbers, dict) and "ms" in numbers:
            grown = f", {numbers['bytes'] / MIB:+.1f} MiB" if "bytes" in numbers else ""
            lines.append(f"{what}: {numbers['ms']} ms{grown}")
    return lines
