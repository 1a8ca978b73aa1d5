"""How soon an interactive request is answered while a batch separation runs, try after try.

The demonstration's models on this processor, one compute slot. For every try the language model is
not in memory: the separation pauses at the end of its slice, the model is loaded, and the time to
its first token is taken. The promise: at most the slice that was stated, the load that was measured
and 50 ms. The separations' results must be the bytes of one that was left in peace.
"""

import argparse
import asyncio
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from coscheduler import audio, chat
from coscheduler.chat import ChatDone
from coscheduler.config import Settings
from coscheduler.core.model import EngineName, InputRef, Priority, StageKind
from coscheduler.engines.host import make_engine
from coscheduler.runtime.api import JobRequest, StageRequest
from coscheduler.runtime.daemon import Daemon
from coscheduler.runtime.opening import open_daemon
from measures._pipeline_demo import PARAMETERS, RATE_HZ, RECORDING, settings_in, upload

ALLOWANCE_MS = 50
S, A = EngineName.SEPARATION, EngineName.ANALYSIS


def main(arguments: list[str]) -> int:
    """Return the exit status: 1 where the promise or the result was broken."""
    chosen = parse(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        found = asyncio.run(measured(chosen, Path(scratch)))
    print(told(found))
    if chosen.out:
        chosen.out.write_text(json.dumps(found, indent=1) + "\n", encoding="ascii")
    return 0 if found["is_kept"] and found["results_differ_count"] == 0 else 1


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/measure preemption",
        description=__doc__.split("\n")[0],
        epilog="example: scripts/measure preemption --tries 100 --out preemption.json",
    )
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=30, help="of each recording")
    parser.add_argument("--out", type=Path, help="a JSON file")
    return parser.parse_args(arguments)


async def measured(chosen: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All tries against one daemon."""
    settings = one_slot(settings_in(scratch))
    daemon = await open_daemon(settings)
    try:
        source = await upload(daemon, recording(scratch, chosen.seconds))
        in_peace = await start(daemon, source, 0)
        alone = await digest(daemon, in_peace)
        tries, digests, option = await disturbed(daemon, source, chosen.tries)
    finally:
        await daemon.close()
    slice_ms = next(
        each.slice_ms_max
        for each in make_engine(S, settings).describe().options
        if each.name == option
    )
    return summary(tries, slice_ms, sum(other != alone for other in digests), len(digests))


def one_slot(settings: Settings) -> Settings:
    """The same, with engines that compute one at a time."""
    device = settings.device.model_copy(update={"compute_slots": 1})
    return settings.model_copy(update={"device": device})


def recording(scratch: Path, seconds: int) -> bytes:
    """So much of the demonstration's meeting."""
    path = scratch / "recording.wav"
    audio.write_wav(path, audio.read_mono(RECORDING, RATE_HZ)[: seconds * RATE_HZ], RATE_HZ)
    return path.read_bytes()


async def start(daemon: Daemon, source: str, number: int) -> str:
    """A batch separation; its name."""
    ref = InputRef(artifact=source)
    stage = StageRequest(StageKind.SEPARATE, PARAMETERS[StageKind.SEPARATE], ref)
    asked = JobRequest(f"preemption-{number}", (stage,), priority=int(Priority.BATCH))
    return (await daemon.create_job(asked)).job.name


async def digest(daemon: Daemon, name: str) -> str:
    """Of the results of a job, when it has ended well."""
    job = [snapshot async for snapshot in daemon.watch_job(name)][-1].job
    if job.failure is not None:
        raise SystemExit(f"{name}: {job.failure}")
    hashes = [(await daemon.get_artifact(o.artifact)).sha256 for o in job.stages[0].outputs]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


async def disturbed(
    daemon: Daemon, source: str, count: int
) -> tuple[list[ChatDone], list[str], str]:
    """Ask while separations run, until there are so many answers; what they were, what the
    separations gave, and the option they ran with.
    """
    tries: list[ChatDone] = []
    digests: list[str] = []
    while len(tries) < count:
        name = await start(daemon, source, len(digests) + 1)
        while len(tries) < count and await is_running(daemon, name):
            tries.append(await ask(daemon))
            await daemon.unload_engine(A)
            await until_stopped(daemon)
        digests.append(await digest(daemon, name))
    option = (await daemon.get_job(name)).job.stages[0].option
    return tries, digests, option


async def is_running(daemon: Daemon, name: str) -> bool:
    """Wait until the separation is at work; False when it has ended."""
    async for snapshot in daemon.watch_job(name):
        if snapshot.job.state.is_final:
            return False
        views = {view.engine: view for view in (await daemon.gpu()).engines}
        if views[S].state == "running" and views[S].job == name:
            return True
    return False


async def ask(daemon: Daemon) -> ChatDone:
    """A short question; the end of its answer, which says how it went."""
    message = {"role": "user", "content": "What was decided?"}
    asked = chat.parse({"messages": [message], "tokens_max": 4, "temperature": 0})
    done = [event async for event in daemon.chat(asked)][-1]
    if not isinstance(done, ChatDone):
        raise SystemExit(f"no answer: {done}")
    return done


async def until_stopped(daemon: Daemon) -> None:
    """The language model's process is gone."""
    async for gpu in daemon.watch_gpu():
        if next(view for view in gpu.engines if view.engine is A).state == "stopped":
            return


def summary(tries: list[ChatDone], slice_ms: int, differ: int, jobs: int) -> dict[str, Any]:
    """The raw numbers, and what they say."""
    rows = [
        {"first_token_ms": t.first_token_ms, "wait_ms": t.wait_ms, "load_ms": t.load_ms,
         "over_load_ms": t.first_token_ms - t.load_ms}
        for t in tries
    ]  # fmt: skip
    over = percentile([row["over_load_ms"] for row in rows])
    return {
        "slice_ms_max": slice_ms,
        "bound_over_load_ms": slice_ms + ALLOWANCE_MS,
        "over_load_ms": over,
        "first_token_ms": percentile([row["first_token_ms"] for row in rows]),
        "is_kept": over["p99"] <= slice_ms + ALLOWANCE_MS,
        "separations": jobs,
        "results_differ_count": differ,
        "tries": rows,
    }


def percentile(values: list[int]) -> dict[str, int]:
    """Of so many values: the middle one, the 99th of a hundred, the highest."""
    ordered = sorted(values)
    at = {"p50": 0.5, "p99": 0.99}
    found = {name: ordered[round(part * (len(ordered) - 1))] for name, part in at.items()}
    return {**found, "max": ordered[-1]}


def told(found: dict[str, Any]) -> str:
    """The summary for people."""
    over, first = found["over_load_ms"], found["first_token_ms"]
    return (
        f"{len(found['tries'])} tries: first token after {first['p50']} ms in the middle, p99 "
        f"{first['p99']}; without the load {over['p50']}, p99 {over['p99']}, highest "
        f"{over['max']}; promised {found['bound_over_load_ms']} "
        f"({found['slice_ms_max']} of them the slice)\n"
        f"{found['separations']} separations, {found['results_differ_count']} with another result"
    )
