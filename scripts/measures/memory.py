"""SAM-Audio under one cap after the other, from all layers resident down to the floor.

For each cap a fresh process starts the engine, the planner takes the best option that fits the cap
less a headroom, and a short recording is separated. The process' private memory (RssAnon + VmSwap
beyond what it had after its imports) is read from outside all the time. Every result must be the
same file, no reading may be above the cap, and the peak must be the predicted one within 5 % (of a
tiny model 16 MiB). A thread within the process looks too: what lives for milliseconds is missed
from outside.
"""

import argparse
import gc
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from coscheduler import config
from coscheduler.core import planner
from coscheduler.core.model import Line, Option, StageKind, total_bytes
from coscheduler.demo import tiny_sam_audio
from coscheduler.engines.base import Task
from coscheduler.engines.peak import PeakSampler
from coscheduler.engines.separation import model
from coscheduler.engines.separation.engine import SeparationEngine
from coscheduler.engines.streaming import heap
from coscheduler.procfs import anonymous_bytes
from measures.separation_memory import ignore, last_line, write_noise

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024
PERIOD_SECONDS = 0.005
TOLERANCE, TOLERANCE_BYTES_MIN = 0.05, 16 * MIB
CURVE_POINTS = 240
Reading = tuple[float, int]  # seconds since the start, bytes


def main(arguments: list[str]) -> int:
    """Return the exit status: 1 where a promise was broken."""
    chosen = parse(arguments)
    if chosen.worker:
        work(chosen)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        make_model(chosen, Path(scratch))
        rows = [measured(chosen, cap, Path(scratch)) for cap in caps(chosen)]
    broken = [text for row in rows for text in row["broken"]]
    if len({row["sha256"] for row in rows}) != 1:
        broken.append("the results differ")
    keep(chosen, rows, broken)
    print("\n".join(broken) or "no cap was exceeded, every result is the same")
    return 1 if broken else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/measure memory",
        description=__doc__.split("\n")[0],
        epilog="example: scripts/measure memory --size base --precision bfloat16 --folder "
        "/tmp/base --out docs/measurements/memory-base.json --plot docs/memory-base.svg",
    )
    parser.add_argument("--size", choices=tiny_sam_audio.SIZES, default="tiny")
    parser.add_argument("--folder", type=Path, help="its sam/ and t5/, made where missing, kept")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--seconds", type=int, default=2, help="of the recording")
    parser.add_argument("--caps", type=int, default=6, help="how many, evenly spaced")
    parser.add_argument("--headroom-mib", type=int, default=128, help="kept free below the cap")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--plot", type=Path, help="a picture, .svg or .png")
    parser.add_argument("--cap", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def make_model(chosen: argparse.Namespace, scratch: Path) -> None:
    """Random weights in the official format, and their prepared file."""
    chosen.folder = chosen.folder or scratch / "model"
    sam = chosen.folder / "sam"
    if not (sam / "config.json").exists():
        sizes = tiny_sam_audio.SIZES[chosen.size]
        tiny_sam_audio.write(sam, chosen.folder / "t5", sizes=sizes)
    model.open_folder(sam).prepare(chosen.precision, chosen.folder / "prepared", ignore)


def engine_of(chosen: argparse.Namespace) -> SeparationEngine:
    """The engine as a config would make it."""
    section = {
        "model": str(chosen.folder / "sam"), "text_encoder": str(chosen.folder / "t5"),
        "prepared_dir": str(chosen.folder / "prepared"), "precisions": [chosen.precision],
    }  # fmt: skip
    raw = {"separation": section, "device": {"threads": chosen.threads}}
    return SeparationEngine(config.parse(raw, Path.cwd()))


def caps(chosen: argparse.Namespace) -> list[int]:
    """From what all layers need down to what the floor needs, bytes."""
    described = engine_of(chosen).describe()
    context = described.context_bytes + chosen.headroom_mib * MIB
    needs = [option.peak_bytes(1000 * chosen.seconds) for option in described.options]
    steps = max(1, chosen.caps - 1)
    span = max(needs) - min(needs)
    return [max(needs) + context - span * step // steps for step in range(steps + 1)]


# -- the parent: watches from outside ------------------------------------------------------------


def measured(chosen: argparse.Namespace, cap: int, scratch: Path) -> dict[str, Any]:
    """One row, printed."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        write_noise(Path(folder) / "recording.wav", chosen.seconds)
        row = watched(chosen, cap, folder)
    row["broken"] = broken_promises(row)
    print(line(row), flush=True)
    return row


def watched(chosen: argparse.Namespace, cap: int, folder: str) -> dict[str, Any]:
    """A process under a cap, and every change of its memory that was seen."""
    command = [
        sys.executable, str(ROOT / "scripts" / "measure"), "memory", "--worker", folder,
        "--cap", str(cap), "--folder", str(chosen.folder), "--precision", chosen.precision,
        "--threads", str(chosen.threads), "--seconds", str(chosen.seconds),
        "--headroom-mib", str(chosen.headroom_mib),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        child.stdout.readline()  # its imports are done
        readings: list[Reading] = []
        watcher = threading.Thread(target=watch, args=(child.pid, readings))
        watcher.start()
        found = last_line(child.stdout)
        watcher.join()
    if child.returncode != 0:
        raise SystemExit(f"the process under a cap of {cap} bytes ended with {child.returncode}")
    baseline = found["baseline_bytes"]
    highest = max(found["inside_bytes"], *(size for _, size in readings)) - baseline
    return {
        "cap_bytes": cap, **found, "highest_bytes": highest,
        "measured_peak_bytes": highest - found["context_bytes"],
        "curve": thinned([(seconds, size - baseline) for seconds, size in readings]),
    }  # fmt: skip


def watch(pid: int, readings: list[Reading]) -> None:
    """Read until the process is gone."""
    begun = time.monotonic()
    while True:
        try:
            readings.append((time.monotonic() - begun, anonymous_bytes(pid)))
        except (ProcessLookupError, ValueError):
            return
        if readings[-1][1] == 0:  # a process that has ended and was not waited for
            return
        time.sleep(PERIOD_SECONDS)


def thinned(readings: Sequence[Reading]) -> list[tuple[float, int]]:
    """The highest reading of each of so many parts of the time, for the picture."""
    part = readings[-1][0] / CURVE_POINTS
    highest: dict[int, Reading] = {}
    for seconds, size in readings:
        number = int(seconds / part)
        if size >= highest.get(number, (0.0, 0))[1]:
            highest[number] = (round(seconds, 2), size)
    return [highest[number] for number in sorted(highest)]


def broken_promises(row: dict[str, Any]) -> list[str]:
    """In sentences."""
    cap, highest = row["cap_bytes"], row["highest_bytes"]
    predicted, found = row["predicted_peak_bytes"], row["measured_peak_bytes"]
    broken = []
    if highest > cap:
        broken.append(f"{highest} bytes were held under a cap of {cap}")
    if abs(predicted - found) > max(TOLERANCE * found, TOLERANCE_BYTES_MIN):
        broken.append(f"{row['option']}: {predicted} bytes predicted, {found} measured")
    return broken


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    off = row["predicted_peak_bytes"] / row["measured_peak_bytes"] - 1
    names = ("cap", "highest", "measured_peak", "predicted_peak")
    cap, highest, found, predicted = (row[f"{name}_bytes"] / MIB for name in names)
    return (
        f"cap {cap:7.0f} MiB  {row['option']:16} highest {highest:7.1f} MiB, "
        f"without the context {found:7.1f}, predicted {predicted:7.1f} "
        f"({off:+.1%}), {row['run_s']:6.1f} s, result {row['sha256'][:12]}"
    )


def keep(chosen: argparse.Namespace, rows: list[dict[str, Any]], broken: list[str]) -> None:
    """The table without the curves, and the picture of them."""
    if chosen.plot:
        from measures._memory_plot import draw

        draw(chosen.plot, rows)
    table = [{key: value for key, value in row.items() if key != "curve"} for row in rows]
    names = ("size", "precision", "seconds", "threads", "headroom_mib")
    settings = {name: getattr(chosen, name) for name in names}
    document = {**settings, "torch": torch.__version__, "broken": broken, "rows": table}
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(document, indent=1) + "\n", encoding="ascii")


# -- the worker: one engine under one cap --------------------------------------------------------


def work(chosen: argparse.Namespace) -> None:
    """Print a line when imports are done and the findings at the end."""
    import transformers.models.t5.modeling_t5  # noqa: F401 (as the fork server does)

    gc.collect()
    heap.trim()
    print("begins", flush=True)
    baseline = anonymous_bytes("self")
    engine = engine_of(chosen)
    engine.start()
    context = anonymous_bytes("self") - baseline
    duration_ms = 1000 * chosen.seconds
    room = chosen.cap - chosen.headroom_mib * MIB - context
    option = choose(engine.describe().options, duration_ms, room)
    scratch, begun = Path(chosen.worker), time.perf_counter()
    with PeakSampler() as sampler:
        engine.load(option, ignore)
        run(engine, scratch, duration_ms)
        inside = sampler.highest_bytes()
    print(
        json.dumps(
            {
                "option": option.name,
                "baseline_bytes": baseline,
                "context_bytes": context,
                "inside_bytes": inside,
                "slots_bytes": total_bytes(x for x in option.resident if x.line is Line.SLOTS),
                "resident_bytes": total_bytes(option.resident),
                "predicted_peak_bytes": option.peak_bytes(duration_ms),
                "run_s": round(time.perf_counter() - begun, 1),
                "sha256": digest(scratch / "out"),
            }
        )
    )


def choose(offered: Sequence[Option], duration_ms: int, room: int) -> Option:
    """The planner's choice within so many bytes."""
    tier = planner.best_tier(offered, duration_ms, 0, room)
    if tier is None:
        raise SystemExit(f"nothing fits {room} bytes")
    request = planner.Request(offered, duration_ms, 0, needs_process=False)
    found = planner.plan(request, tier, planner.Room(room, (), 1))
    assert found is not None
    return found.option


def run(engine: SeparationEngine, scratch: Path, duration_ms: int) -> None:
    """Separate the recording."""
    (scratch / "out").mkdir()
    parameters = {"prompt": "a man speaking", "redraws_max": 0}
    recording = scratch / "recording.wav"
    task = Task("jobs/m", StageKind.SEPARATE, parameters, recording, scratch / "out", duration_ms)
    for _ in engine.slices(task):
        pass


def digest(folder: Path) -> str:
    """Of both signals."""
    content = b"".join((folder / f"{name}.wav").read_bytes() for name in ("target", "residual"))
    return hashlib.sha256(content).hexdigest()
