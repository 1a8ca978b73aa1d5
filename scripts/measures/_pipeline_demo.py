"""The pipeline with the demonstration's tiny models on the processor: ours is a daemon, the others
are scripts in one process that use the same engines, loaded and unloaded as they go.

Starting processes and importing libraries is not counted on either side.
"""

import asyncio
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coscheduler import audio, config
from coscheduler.config import Settings
from coscheduler.core.model import ENGINE_OF, InputRef, JobState, StageKind
from coscheduler.demo import models
from coscheduler.engines.base import Engine, Task
from coscheduler.engines.host import make_engine
from coscheduler.runtime.api import JobRequest, StageRequest
from coscheduler.runtime.daemon import Daemon
from coscheduler.runtime.opening import open_daemon

ROOT = Path(__file__).resolve().parents[2]
RECORDING = ROOT / "coscheduler" / "demo" / "meeting.flac"
RATE_HZ = 48_000
PARAMETERS: dict[StageKind, dict[str, Any]] = {
    StageKind.SEPARATE: {"prompt": "speech", "redraws_max": 0},
    StageKind.TRANSCRIBE: {"language": "en"},
    StageKind.ANALYZE: {"template": "summary"},
}
WAYS = ("ours", "one by one", "stage by stage")


def measure(count: int, seconds: int) -> dict[str, Any]:
    """Seconds of each way, one after the other, each in a process of its own."""
    folder = ROOT / ".demo" / "models"
    if not models.is_current(folder):
        subprocess.run([sys.executable, "-m", "coscheduler.demo.models", str(folder)], check=True)
    found: dict[str, Any] = {"recordings": count, "seconds": seconds}
    for way in WAYS:
        command = [
            sys.executable, str(ROOT / "scripts" / "measure"), "pipeline", "--worker", way,
            "--recordings", str(count), "--seconds", str(seconds),
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
        print(f"  {way:15} {found[way]:7.1f} s", flush=True)
    return found


def work(way: str, count: int, seconds: int) -> float:
    """One way, seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        recording = Path(scratch) / "recording.wav"
        samples = audio.read_mono(RECORDING, RATE_HZ)[: seconds * RATE_HZ]
        audio.write_wav(recording, samples, RATE_HZ)
        settings = settings_in(Path(scratch))
        if way == "ours":
            return asyncio.run(ours(settings, recording.read_bytes(), count))
        return scripted(settings, recording, Path(scratch), count, way == "one by one")


def settings_in(scratch: Path) -> Settings:
    """Those of the tiny models, with a store of its own."""
    settings = config.load(ROOT / "configs" / "tiny.toml")
    store = settings.store.model_copy(update={"data_dir": scratch / "store"})
    return settings.model_copy(update={"store": store})


# -- ours ----------------------------------------------------------------------------------------


async def ours(settings: Settings, recording: bytes, count: int) -> float:
    """All jobs at once to a daemon, until the last one has ended."""
    daemon = await open_daemon(settings)
    try:
        source = await upload(daemon, recording)
        begun = time.perf_counter()
        names = [(await daemon.create_job(request(n, source))).job.name for n in range(count)]
        for name in names:
            await succeeded(daemon, name)
        return time.perf_counter() - begun
    finally:
        await daemon.close()


async def upload(daemon: Daemon, data: bytes) -> str:
    """The recording as an artifact."""
    writer = await daemon.begin_artifact("audio", "audio/wav", "recording.wav")
    await writer.write(data)
    return (await writer.finish(len(data), hashlib.sha256(data).hexdigest())).name


def request(number: int, source: str) -> JobRequest:
    """All three stages; the recording itself is transcribed, as random weights pull out noise."""
    ref = InputRef(artifact=source)
    stages = (
        StageRequest(StageKind.SEPARATE, PARAMETERS[StageKind.SEPARATE], ref),
        StageRequest(StageKind.TRANSCRIBE, PARAMETERS[StageKind.TRANSCRIBE], ref),
        StageRequest(StageKind.ANALYZE, PARAMETERS[StageKind.ANALYZE]),
    )
    return JobRequest(f"measure-{number}", stages)


async def succeeded(daemon: Daemon, name: str) -> None:
    """Wait for its end."""
    last = [snapshot async for snapshot in daemon.watch_job(name)][-1]
    if last.job.state is not JobState.SUCCEEDED:
        raise SystemExit(f"{name} is {last.job.state}: {last.job.failure}")


# -- the scripts ---------------------------------------------------------------------------------


def scripted(
    settings: Settings, recording: Path, scratch: Path, count: int, one_by_one: bool
) -> float:
    """Every recording through all models, or every model over all recordings."""
    engines = {kind: make_engine(ENGINE_OF[kind], settings) for kind in StageKind}
    for engine in engines.values():
        engine.start()
    inputs = {
        StageKind.SEPARATE: lambda number: recording,
        StageKind.TRANSCRIBE: lambda number: recording,
        StageKind.ANALYZE: lambda number: scratch / f"transcribe{number}" / "transcript.json",
    }
    begun = time.perf_counter()
    groups = [[n] for n in range(count)] if one_by_one else [list(range(count))]
    for group in groups:
        for kind, engine in engines.items():
            with loaded(engine):
                for number in group:
                    run(engine, kind, inputs[kind](number), scratch / f"{kind}{number}")
    return time.perf_counter() - begun


@contextmanager
def loaded(engine: Engine) -> Iterator[None]:
    """In memory as its first option."""
    engine.load(engine.describe().options[0], lambda done, total: None)
    try:
        yield
    finally:
        engine.unload()


def run(engine: Engine, kind: StageKind, source: Path, folder: Path) -> None:
    """One stage to its end."""
    folder.mkdir()
    duration_ms = 0 if kind is StageKind.ANALYZE else len(audio.read_mono(source, 1000))
    task = Task("jobs/m", kind, PARAMETERS[kind], source, folder, duration_ms)
    for _ in engine.slices(task):
        pass
