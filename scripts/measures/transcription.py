"""The transcription engine against bare whisperx and bare faster-whisper, in turns.

The same model, threads, batch size and recording in a process each. Word times are left out: bare
faster-whisper has no aligner. Speech is found by pyannote beside whisperx, and by Silero beside
faster-whisper, as each of them does by itself. Whisper has random weights unless --model names a
folder: times depend on its shape and on the length of its text alone. Also: the memory that is
predicted for the shapes of tiny, base and small beside the peak of a run.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from coscheduler import audio, config
from coscheduler.core.model import StageKind, total_bytes
from coscheduler.demo import tiny_whisper
from coscheduler.engines.base import Task
from coscheduler.engines.peak import PeakSampler
from coscheduler.engines.transcription.engine import TranscriptionEngine
from coscheduler.procfs import anonymous_bytes
from measures import _workers
from measures._ratios import Ratio, ratio
from measures._workers import Worker, ask

MIB = 2**20
MEETING = Path(audio.__file__).parent / "demo" / "meeting.flac"
SHAPES = {
    "tiny": tiny_whisper.Shape(384, 1536, 6, 4, 4),
    "base": tiny_whisper.Shape(512, 2048, 8, 6, 6),
    "small": tiny_whisper.Shape(768, 3072, 12, 12, 12),
}
OURS, OURS_BY_SILERO = "ours", "ours by Silero"
BESIDE = {"whisperx": OURS, "faster-whisper": OURS_BY_SILERO}
WAYS = (OURS, OURS_BY_SILERO, *BESIDE)


def main(arguments: list[str]) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/measure transcription", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--model", type=Path, help="a CTranslate2 Whisper (default: random)")
    parser.add_argument("--shape", choices=SHAPES, default="tiny", help="of random weights")
    parser.add_argument("--audio", type=Path, default=MEETING)
    parser.add_argument("--rounds", type=int, default=7, help="at least 7")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--memory", nargs="*", choices=SHAPES, metavar="SHAPE",
                        help="only memory, of these shapes")  # fmt: skip
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=[*WAYS, "memory"], help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.worker:
        serve(chosen)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if chosen.memory is not None:
            found = {name: memory(chosen, Path(folder), name) for name in chosen.memory or SHAPES}
        else:
            found = speed(chosen, Path(folder))
    if chosen.json:
        print(json.dumps(found))
    elif chosen.memory is not None:
        show_memory(found)
    else:
        show_speed(found)
    return 0


# -- the ways, in turns


def speed(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rounds of the workers, beginning with another one each time."""
    if chosen.model is None:
        chosen.model = folder / "model"
        tiny_whisper.write(chosen.model, shape=SHAPES[chosen.shape])
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        workers = {way: stack.enter_context(worker(way, chosen)) for way in WAYS}
        for way in WAYS:
            ask(workers[way])  # warm
        for number in range(chosen.rounds):
            for index in range(len(WAYS)):
                way = WAYS[(number + index) % len(WAYS)]
                rows[way].append(ask(workers[way]))
    fields = ("wall_s", "cpu_s")
    taken = {way: {name: [row[name] for row in rows[way]] for name in fields} for way in WAYS}
    seconds = audio.probe(chosen.audio, 0, 12 * 3_600_000).duration_ms / 1000
    return {
        "audio_s": seconds,
        "medians": {
            way: {name: statistics.median(values) for name, values in taken[way].items()}
            for way in WAYS
        },
        "ratios": {
            way: {name: vars(ratio(taken[own][name], taken[way][name])) for name in fields}
            for way, own in BESIDE.items()
        },
    }


def worker(way: str, chosen: argparse.Namespace) -> AbstractContextManager[Worker]:
    """A process that has loaded the model in one of the ways."""
    options = ["--threads", chosen.threads, "--batch-size", chosen.batch_size]
    files = ["--model", chosen.model, "--audio", chosen.audio, "--worker", way]
    return _workers.worker("transcription", options + files)


def serve(chosen: argparse.Namespace) -> None:
    """The worker's side: a round for each line of standard input. WhisperX logs to standard output,
    which is therefore kept for the answers alone.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if chosen.worker == "memory":
        print(json.dumps(peaks(chosen)), file=answers, flush=True)
        return
    makers = (ours, ours_by_silero, whisperx, faster_whisper)
    once = dict(zip(WAYS, makers, strict=True))[chosen.worker](chosen)
    for _ in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        once()
        row = {
            "wall_s": time.perf_counter() - start,
            "cpu_s": time.process_time() - cpu_start,
        }
        print(json.dumps(row), file=answers, flush=True)


def ours(chosen: argparse.Namespace, vad_method: str = "pyannote") -> Callable[[], None]:
    """The engine, from the file to the files."""
    engine = started(chosen, "float32")
    engine.load(engine.describe().options[0], lambda done, total: None)

    def once() -> None:
        transcribe(engine, chosen.audio, vad_method)

    return once


def ours_by_silero(chosen: argparse.Namespace) -> Callable[[], None]:
    """The engine with the other speech detection."""
    return ours(chosen, "silero")


def whisperx(chosen: argparse.Namespace) -> Callable[[], None]:
    """WhisperX as its users use it; the recording is read by the same decoder."""
    import whisperx as package

    pipeline = package.load_model(
        str(chosen.model), "cpu", compute_type="float32", threads=chosen.threads
    )

    def once() -> None:
        pipeline.transcribe(audio.read_mono(chosen.audio, 16_000), batch_size=chosen.batch_size)

    return once


def faster_whisper(chosen: argparse.Namespace) -> Callable[[], None]:
    """faster-whisper in batches, with its own speech detection."""
    import faster_whisper as package

    model = package.WhisperModel(
        str(chosen.model), device="cpu", compute_type="float32", cpu_threads=chosen.threads
    )
    pipeline = package.BatchedInferencePipeline(model)

    def once() -> None:
        samples = audio.read_mono(chosen.audio, 16_000)
        segments, _ = pipeline.transcribe(samples, batch_size=chosen.batch_size)
        for _ in segments:
            pass

    return once


# -- the engine


def started(chosen: argparse.Namespace, compute_type: str) -> TranscriptionEngine:
    """A started engine."""
    settings = config.parse(
        {
            "device": {"threads": chosen.threads},
            "store": {"data_dir": tempfile.gettempdir()},
            "transcription": {
                "model": str(chosen.model),
                "compute_types": [compute_type],
                "batch_sizes": [chosen.batch_size],
            },
        },
        base_dir=Path.cwd(),
    )
    engine = TranscriptionEngine(settings)
    engine.start()
    return engine


def transcribe(engine: TranscriptionEngine, recording: Path, vad_method: str = "pyannote") -> None:
    """One recording, without word times."""
    duration_ms = audio.probe(recording, 0, 12 * 3_600_000).duration_ms
    with tempfile.TemporaryDirectory() as folder:
        parameters = {"align": False, "diarize": False, "vad_method": vad_method}
        kind = StageKind.TRANSCRIBE
        task = Task("jobs/m", kind, parameters, recording, Path(folder), duration_ms)
        for _ in engine.slices(task):
            pass


# -- memory


def memory(chosen: argparse.Namespace, folder: Path, shape: str) -> dict[str, Any]:
    """Predicted and measured bytes of a random Whisper of this shape, in a process of its own."""
    chosen.model = folder / shape
    tiny_whisper.write(chosen.model, shape=SHAPES[shape])
    with worker("memory", chosen) as process:
        found: dict[str, Any] = _workers.answer(process)
    return found


def peaks(chosen: argparse.Namespace) -> dict[str, Any]:
    """Bytes of both compute types: resident, and at the peak of loading and running."""
    duration_ms = audio.probe(chosen.audio, 0, 12 * 3_600_000).duration_ms
    found = {}
    for compute_type in ("float32", "int8"):
        engine = started(chosen, compute_type)
        (option,) = engine.describe().options
        base = anonymous_bytes("self")
        with PeakSampler() as sampler:  # loading converts the weights, and is predicted too
            engine.load(option, lambda done, total: None)
            held = anonymous_bytes("self") - base
            transcribe(engine, chosen.audio)
        found[compute_type] = {
            "resident": [total_bytes(option.resident), held],
            "peak": [option.peak_bytes(duration_ms), sampler.highest_bytes() - base],
        }
        engine.unload()
    return found


# -- for people


def show_speed(found: dict[str, Any]) -> None:
    """A line for each way."""
    seconds = found["audio_s"]
    for way, medians in found["medians"].items():
        rate = seconds / medians["wall_s"]
        line = f"{way}: {medians['wall_s']:.2f} s ({rate:.1f} x real time), "
        line += f"{medians['cpu_s']:.2f} s of the processor"
        for name, value in found["ratios"].get(way, {}).items():
            line += f"; {BESIDE[way]} / {way}, {name}: {Ratio(**value)}"
        print(line)


def show_memory(found: dict[str, Any]) -> None:
    """A line for each number."""
    for shape, types in found.items():
        for compute_type, rows in types.items():
            for what, (predicted, measured) in rows.items():
                print(
                    f"{shape}, {compute_type}, {what}: predicted {predicted / MIB:.1f} MiB, "
                    f"measured {measured / MIB:.1f} MiB"
                )
