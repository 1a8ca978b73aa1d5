"""A daemon with fake engines in a temporary folder, and short ways to use it."""

import asyncio
import hashlib
import math
import struct
import wave
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from coscheduler import config
from coscheduler.config import Settings
from coscheduler.core.model import InputRef, StageKind
from coscheduler.runtime.api import Artifact, JobRequest, JobSnapshot, StageRequest
from coscheduler.runtime.daemon import Daemon
from coscheduler.runtime.opening import open_daemon

SEPARATE = StageRequest(StageKind.SEPARATE, {"prompt": "speech"})
TRANSCRIBE = StageRequest(StageKind.TRANSCRIBE, {})
ANALYZE = StageRequest(StageKind.ANALYZE, {"template": "summary"})


def settings(folder: Path, **sections: dict[str, Any]) -> Settings:
    """Three fake engines, 512 MiB, no headroom; `sections` are laid over that."""
    raw: dict[str, Any] = {
        "engines": "fake",
        "store": {"data_dir": str(folder / "store"), "disk_free_bytes_min": 0},
        "device": {"memory_cap": "512 MiB", "headroom": 0},
        "separation": {"model": "x", "text_encoder": "x"},
        "transcription": {"model": "x"},
        "analysis": {"model": "x"},
    }
    for name, values in sections.items():
        raw[name] = raw.get(name, {}) | values
    return config.parse(raw, folder)


def recording(seconds: float = 1.0, rate: int = 16_000) -> bytes:
    """A WAV file with a tone."""
    samples = (int(8000 * math.sin(index * 0.1)) for index in range(int(seconds * rate)))
    data = BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return data.getvalue()


@asynccontextmanager
async def running(chosen: Settings) -> AsyncIterator[Daemon]:
    daemon = await open_daemon(chosen)
    try:
        yield daemon
    finally:
        await daemon.close()


async def upload(daemon: Daemon, data: bytes, kind: str = "audio") -> Artifact:
    writer = await daemon.begin_artifact(kind, "audio/wav", "talk.wav")
    try:
        await writer.write(data)
        return await writer.finish(len(data), hashlib.sha256(data).hexdigest())
    finally:
        await writer.abort()


def request(
    request_id: str, source: Artifact, *stages: StageRequest, priority: int = 1
) -> JobRequest:
    chosen = stages or (SEPARATE, TRANSCRIBE, ANALYZE)
    return JobRequest(request_id, chosen, InputRef(artifact=source.name), priority)


def scripted(prompt: str) -> StageRequest:
    """A separate stage whose prompt the fake engine obeys."""
    return StageRequest(StageKind.SEPARATE, {"prompt": prompt})


async def final(daemon: Daemon, name: str) -> JobSnapshot:
    snapshots = [snapshot async for snapshot in daemon.watch_job(name)]
    return snapshots[-1]


async def until(daemon: Daemon, name: str, seen: Callable[[JobSnapshot], bool]) -> JobSnapshot:
    """The first snapshot of the job for which `seen` holds."""
    async for snapshot in daemon.watch_job(name):
        if seen(snapshot):
            return snapshot
    raise AssertionError(f"{name} ended before it was seen: {snapshot}")


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine, with a bound of its own; past it, say where every task stands."""

    async def bounded() -> Any:
        task = asyncio.create_task(work)
        await asyncio.wait({task}, timeout=60)
        if not task.done():
            for each in asyncio.all_tasks():
                each.print_stack()
            task.cancel()
        return await task

    return asyncio.run(bounded())
