"""What the daemon costs where everything fits: a job of three stages against the bare engines.

The demonstration's models on this processor. Both ways hold all three engines in memory and do the
same stages of the same recording, in turns; the bare way is one process with the engines' own
methods. The ratio is of wall time, with the 95 % interval of a seeded bootstrap.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from coscheduler.core.model import ENGINE_OF, StageKind
from coscheduler.engines.host import make_engine
from coscheduler.runtime.children import environment
from coscheduler.runtime.daemon import Daemon
from coscheduler.runtime.opening import open_daemon
from measures._pipeline_demo import request, run, settings_in, succeeded, upload
from measures._ratios import ratio
from measures._workers import Worker, ask, worker
from measures.preemption import recording


def main(arguments: list[str]) -> int:
    """Return the exit status."""
    chosen = parse(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        if chosen.worker:
            work(Path(scratch), chosen.seconds)
            return 0
        os.environ |= environment(settings_in(Path(scratch)))
        bare_arguments = ["--worker", "bare", "--seconds", chosen.seconds]
        with worker("overhead", bare_arguments) as bare:
            found = asyncio.run(measured(chosen, Path(scratch), bare))
    print(f"daemon / bare: {ratio(found['daemon_s'], found['bare_s'])}")
    if chosen.out:
        chosen.out.write_text(json.dumps(found, indent=1) + "\n", encoding="ascii")
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/measure overhead",
        description=__doc__.split("\n")[0],
        epilog="example: scripts/measure overhead --seconds 30 --rounds 7",
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=30, help="of the recording")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="a JSON file")
    return parser.parse_args(arguments)


async def measured(chosen: argparse.Namespace, scratch: Path, bare: Worker) -> dict[str, Any]:
    """Both ways in turns, the first of each round drawn; the first round does not count."""
    daemon = await open_daemon(settings_in(scratch))
    ways: dict[str, list[float]] = {"daemon_s": [], "bare_s": []}
    rng = random.Random(0)  # noqa: S311 an order, not a secret
    try:
        source = await upload(daemon, recording(scratch, chosen.seconds))
        for number in range(chosen.rounds + 1):
            for way in rng.sample(sorted(ways), 2):
                seconds = (
                    await job(daemon, source, number) if way == "daemon_s"
                    else (await asyncio.to_thread(ask, bare))["seconds"]
                )  # fmt: skip
                ways[way].append(seconds)
    finally:
        await daemon.close()
    counted = {name: [round(each, 4) for each in times[1:]] for name, times in ways.items()}
    found = ratio(counted["daemon_s"], counted["bare_s"])
    spread = {"ratio": round(found.median, 4), "low": round(found.low, 4)}
    return {"seconds": chosen.seconds, **spread, "high": round(found.high, 4), **counted}


async def job(daemon: Daemon, source: str, number: int) -> float:
    """All three stages of a job."""
    begun = time.perf_counter()
    await succeeded(daemon, (await daemon.create_job(request(number, source))).job.name)
    return time.perf_counter() - begun


def work(scratch: Path, seconds: int) -> None:
    """The bare engines, all loaded: a round for every line that comes in."""
    settings = settings_in(scratch)
    recording(scratch, seconds)
    source = scratch / "recording.wav"
    engines = {kind: make_engine(ENGINE_OF[kind], settings) for kind in StageKind}
    for engine in engines.values():
        engine.start()
        engine.load(engine.describe().options[0], lambda done, total: None)
    for number, _ in enumerate(sys.stdin):
        begun = time.perf_counter()
        text = scratch / f"transcribe{number}" / "transcript.json"
        for kind, engine in engines.items():
            one = text if kind is StageKind.ANALYZE else source
            run(engine, kind, one, scratch / f"{kind}{number}")
        print(json.dumps({"seconds": time.perf_counter() - begun}), flush=True)
