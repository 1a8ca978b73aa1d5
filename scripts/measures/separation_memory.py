"""SAM-Audio: memory of whole separations by the length of the recording, predicted and measured.

Each row is a fresh process that loads a model and separates noise of that length. Its anonymous
memory (RssAnon + VmSwap) is read from outside, as the daemon's meter reads it, and by a thread of
its own, because a tensor that lives for milliseconds is missed from outside. The context, what the
process has after its warm-up, counts on neither side.

Rows are printed and written as they come: a run that is cut short leaves what it has measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from coscheduler import config
from coscheduler.core.model import Option, StageKind
from coscheduler.demo import tiny_sam_audio
from coscheduler.engines.base import Task
from coscheduler.engines.peak import PeakSampler
from coscheduler.engines.separation import model
from coscheduler.engines.separation.engine import SeparationEngine
from coscheduler.procfs import anonymous_bytes

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024
RATE_HZ = 48_000
PERIOD_SECONDS = 0.01
REPORT_SECONDS = 10.0
PREPARING = "preparing"  # in place of a length


def main(arguments: list[str]) -> int:
    """Return the exit status: 1 where a row is off by more than it may be."""
    chosen = parse(arguments)
    if chosen.worker:
        work(chosen)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.folder or Path(scratch) / "model"
        if not (folder / "sam" / "config.json").exists():
            sizes = tiny_sam_audio.SIZES[chosen.size]
            tiny_sam_audio.write(folder / "sam", folder / "t5", sizes=sizes)
        rows = [measured(chosen, folder, length) for length in lengths(chosen)]
    return 0 if all(row["is_within"] for row in rows) else 1


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/measure separation_memory",
        description=__doc__.split("\n")[0],
        epilog="example: scripts/measure separation_memory --size small --seconds 10 30 60 "
        "--precision bfloat16 --prepare --out docs/measurements/separation-memory.json",
    )
    parser.add_argument(
        "--size", choices=tiny_sam_audio.SIZES, default="tiny", help="of a model of random weights"
    )
    parser.add_argument("--folder", type=Path, help="its sam/ and t5/, made where missing, kept")
    parser.add_argument("--seconds", type=int, nargs="*", default=[10, 60], help="of recordings")
    parser.add_argument("--prepare", action="store_true", help="measure preparing the weights too")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--option", help="how to be in memory, by name (default: the first)")
    parser.add_argument("--out", type=Path, help="a JSON file; its rows of other settings stay")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def lengths(chosen: argparse.Namespace) -> list[int | str]:
    """What is measured, in order."""
    return [*([PREPARING] if chosen.prepare else []), *chosen.seconds]


# -- the parent: starts, watches from outside, writes down ---------------------------------------


def measured(chosen: argparse.Namespace, folder: Path, length: int | str) -> dict[str, Any]:
    """One row, printed and written."""
    with tempfile.TemporaryDirectory() as scratch:
        if length != PREPARING:
            write_noise(Path(scratch) / "recording.wav", int(length))
        found = watched(command(chosen, folder, scratch, length))
    row = {
        "size": chosen.size, "precision": chosen.precision, "length": length,
        **judged(found),
    }  # fmt: skip
    print(line(row), flush=True)
    if chosen.out:
        keep(chosen.out, row)
    return row


def command(chosen: argparse.Namespace, folder: Path, scratch: str, length: int | str) -> list[str]:
    """A fresh process that measures one length."""
    option = ["--option", chosen.option] if chosen.option else []
    return [
        sys.executable, str(ROOT / "scripts" / "measure"), "separation_memory", "--worker", scratch,
        "--folder", str(folder), "--precision", chosen.precision, "--threads", str(chosen.threads),
        "--seconds", *([] if length == PREPARING else [str(length)]), *option,
    ]  # fmt: skip


def watched(command: list[str]) -> dict[str, Any]:
    """What the process says, with the highest reading from outside; its errors are passed on."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        child.stdout.readline()  # it has warmed up
        with Outside(child.pid) as outside:
            found = last_line(child.stdout)
    if child.returncode != 0:
        raise SystemExit(f"the measuring process ended with {child.returncode}: see above")
    peak = max(outside.highest_bytes - found["context_bytes"], found["inside_peak_bytes"])
    return {**found, "outside_peak_bytes": outside.highest_bytes - found["context_bytes"],
            "measured_peak_bytes": peak}  # fmt: skip


def last_line(stream: IO[str]) -> dict[str, Any]:
    """The JSON object that a worker ends with; {} where it ended without."""
    lines = stream.read().splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return found


class Outside:
    """Reads another process' anonymous memory until the block ends."""

    def __init__(self, pid: int) -> None:
        self._pid, self._ended = pid, threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self.highest_bytes = 0

    def __enter__(self) -> "Outside":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(PERIOD_SECONDS):
            try:
                self.highest_bytes = max(self.highest_bytes, anonymous_bytes(self._pid))
            except (ProcessLookupError, ValueError):
                return


def judged(found: dict[str, Any]) -> dict[str, Any]:
    """With the difference, and whether it is within what is promised."""
    measured, predicted = found["measured_peak_bytes"], found["predicted_peak_bytes"]
    if found["is_limit"]:  # a most, not an expectation
        return {**found, "is_within": measured <= predicted}
    return {**found, "is_within": abs(predicted - measured) <= max(0.05 * measured, 16 * MIB)}


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    kind = "at most" if row["is_limit"] else "predicted"
    return (
        f"{row['size']:6} {row['precision']:9} {row['length']!s:>9} "
        f"{kind} {row['predicted_peak_bytes'] / MIB:8.1f} MiB, "
        f"measured {row['measured_peak_bytes'] / MIB:8.1f} MiB, {row['run_seconds']:7.1f} s"
        f"{'' if row['is_within'] else '  OFF'}"
    )


def keep(path: Path, row: dict[str, Any]) -> None:
    """Put a row into the file, in place of one of the same settings."""
    names = ("size", "precision", "length", "option")
    rows = json.loads(path.read_text(encoding="ascii"))["rows"] if path.exists() else []
    rows = [other for other in rows if any(other[name] != row[name] for name in names)]
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"torch": torch.__version__, "rows": [*rows, row]}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="ascii")


def write_noise(path: Path, seconds: int) -> None:
    """White noise, one second after the other the same."""
    samples = np.random.default_rng(0).standard_normal(RATE_HZ) * 3000
    second = samples.clip(-32_768, 32_767).astype("<i2").tobytes()
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        for _ in range(seconds):
            file.writeframesraw(second)


# -- the worker: one model, one recording --------------------------------------------------------


def work(chosen: argparse.Namespace) -> None:
    """Measure and print two lines: that it begins, and what it found."""
    scratch = Path(chosen.worker)
    if chosen.seconds:
        print(json.dumps(separating(chosen, scratch, chosen.seconds[0])))
    else:
        print(json.dumps(preparing(chosen, scratch)))


def separating(chosen: argparse.Namespace, scratch: Path, seconds: int) -> dict[str, Any]:
    """Load, then separate the recording."""
    section = {
        "model": str(chosen.folder / "sam"), "text_encoder": str(chosen.folder / "t5"),
        "prepared_dir": str(chosen.folder / "prepared"), "precisions": [chosen.precision],
    }  # fmt: skip
    model.open_folder(chosen.folder / "sam").prepare(
        chosen.precision, chosen.folder / "prepared", ignore
    )
    raw = {"separation": section, "device": {"threads": chosen.threads}}
    engine = SeparationEngine(config.parse(raw, Path.cwd()))
    engine.start()
    option = picked(engine.describe().options, chosen.option)
    (scratch / "out").mkdir()
    parameters = {"prompt": "a man speaking", "redraws_max": 0}
    recording = scratch / "recording.wav"
    task = Task(
        "jobs/m", StageKind.SEPARATE, parameters, recording, scratch / "out", 1000 * seconds
    )
    context, begun = began(), time.perf_counter()
    with PeakSampler() as sampler:
        engine.load(option, ignore)
        told = begun
        for piece in engine.slices(task):
            if time.perf_counter() - told > REPORT_SECONDS:
                told = time.perf_counter()
                print(f"  {piece.done} of {piece.total}, {piece.note}", file=sys.stderr)
        highest = sampler.highest_bytes()
    return {
        "option": option.name,
        "context_bytes": context,
        "predicted_peak_bytes": option.peak_bytes(1000 * seconds),
        "inside_peak_bytes": highest - context,
        "is_limit": False,
        "run_seconds": time.perf_counter() - begun,
    }


def picked(offered: Sequence[Option], name: str | None) -> Option:
    """The option of that name; the first without one."""
    if name is None:
        return offered[0]
    found = [option for option in offered if option.name == name]
    if not found:
        raise SystemExit(f"no option {name!r}; there are: {[option.name for option in offered]}")
    return found[0]


def preparing(chosen: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Make the prepared file anew. It may hold three times the largest tensor and 64 MiB."""
    source = model.open_folder(chosen.folder / "sam")
    checkpoint = torch.load(source.checkpoint_path, mmap=True, weights_only=True)
    largest = max(tensor.nbytes for tensor in checkpoint.values())
    del checkpoint
    context, begun = began(), time.perf_counter()
    with PeakSampler() as sampler:
        source.prepare(chosen.precision, scratch, ignore)
        highest = sampler.highest_bytes()
    return {
        "option": PREPARING,
        "context_bytes": context,
        "largest_tensor_bytes": largest,
        "predicted_peak_bytes": 3 * largest + 64 * MIB,
        "inside_peak_bytes": highest - context,
        "is_limit": True,
        "run_seconds": time.perf_counter() - begun,
    }


def began() -> int:
    """Tell the parent to watch from now on; the anonymous memory at this moment, bytes."""
    print("begins", flush=True)
    return anonymous_bytes("self")


def ignore(done: int, total: int) -> None:
    """No progress is shown."""
