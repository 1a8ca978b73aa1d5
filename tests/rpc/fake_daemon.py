"""A complete daemon in memory: every method of `DaemonApi`, no engines, no disk.

With `auto` it carries jobs out by itself: a separation prompt "fail" fails the job, "hang" runs
until it is cancelled. As a program (`python -m tests.rpc.fake_daemon --listen ADDRESS`) it is a
daemon for tests of the command line.
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from coscheduler import stages
from coscheduler.chat import ChatDone, ChatEvent, ChatParameters, ChatText, ChatWaiting
from coscheduler.config import Settings
from coscheduler.core.model import (
    EngineName,
    Failure,
    InputRef,
    Job,
    JobPlan,
    JobState,
    Output,
    Priority,
    Stage,
    StageKind,
    StageState,
)
from coscheduler.errors import InvalidInput, NotFound, Refused
from coscheduler.rpc.server import serve_daemon
from coscheduler.runtime.api import (
    Artifact,
    AudioFacts,
    EngineView,
    GpuSnapshot,
    JobRequest,
    JobSnapshot,
    LedgerLine,
    Progress,
    TranscriptPart,
)

OUTPUTS: dict[StageKind, tuple[tuple[str, str], ...]] = {
    StageKind.SEPARATE: (("target", "target.wav"), ("residual", "residual.wav")),
    StageKind.TRANSCRIBE: (
        ("transcript", "transcript.json"), ("srt", "transcript.srt"), ("vtt", "transcript.vtt"),
        ("txt", "transcript.txt"), ("tsv", "transcript.tsv"),
    ),
    StageKind.ANALYZE: (("analysis", "analysis.json"),),
}  # fmt: skip
MIB = 1024 * 1024


class FakeWriter:
    """An upload in memory; the daemon counts those that were neither finished nor aborted."""

    def __init__(self, daemon: "FakeDaemon", kind: str, media_type: str, filename: str) -> None:
        self._daemon = daemon
        self._label = (kind, media_type, filename)
        self._data = bytearray()
        daemon.open_writers.add(self)

    async def write(self, chunk: bytes) -> None:
        self._daemon.check("write")
        self._data += chunk

    async def finish(self, size_bytes: int, sha256: str) -> Artifact:
        self._daemon.check("finish")
        if size_bytes != len(self._data):
            raise InvalidInput(
                "UPLOAD_INCOMPLETE", "the length differs", size_bytes=size_bytes,
                received_bytes=len(self._data),
            )  # fmt: skip
        if sha256 != hashlib.sha256(self._data).hexdigest():
            raise InvalidInput("CHECKSUM_MISMATCH", "the checksum differs")
        kind, media_type, filename = self._label
        return self._daemon.store(bytes(self._data), kind, media_type, filename)

    async def abort(self) -> None:
        self._daemon.open_writers.discard(self)


class FakeDaemon:
    """See the module. `faults[method]` is raised by that method's next call."""

    def __init__(self, *, auto: bool = False) -> None:
        self.auto = auto
        self.is_closed = False
        self.jobs: dict[str, JobSnapshot] = {}
        self.artifacts: dict[str, tuple[Artifact, bytes]] = {}
        self.open_writers: set[FakeWriter] = set()
        self.faults: dict[str, Exception] = {}
        self.requests: list[JobRequest] = []
        self.chats: list[tuple[ChatParameters, int]] = []
        self.chats_ended = 0
        self.watch_count = 0
        self.offsets: list[int] = []
        self.break_read_after: int | None = None
        self.chunk_bytes = 64 * 1024
        self.drained_ms: int | None = None
        self.snapshot = GpuSnapshot("cpu", "fake", 4096 * MIB, 256 * MIB, 0, 0, 0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()

    def check(self, method: str) -> None:
        if fault := self.faults.pop(method, None):
            raise fault

    async def put(self, snapshot: JobSnapshot) -> None:
        """Make this the job's state and tell the watchers."""
        async with self._changed:
            self.jobs[snapshot.job.name] = snapshot
            self._changed.notify_all()

    def store(
        self, data: bytes, kind: str, media_type: str, filename: str, job: str = ""
    ) -> Artifact:
        audio = AudioFacts(2000, 16_000, 1, "pcm") if kind == "audio" else None
        artifact = Artifact(
            f"artifacts/{len(self.artifacts):032x}", kind, media_type, filename, len(data),
            hashlib.sha256(data).hexdigest(), 1000 + len(self.artifacts), job, audio,
        )  # fmt: skip
        self.artifacts[artifact.name] = (artifact, data)
        return artifact

    async def create_job(self, request: JobRequest) -> JobSnapshot:
        self.check("create_job")
        self.requests.append(request)
        for snapshot in self.jobs.values():
            if snapshot.job.request_id == request.request_id:
                return snapshot
        snapshot = JobSnapshot(self._accept(request))
        await self.put(snapshot)
        if self.auto:
            task = asyncio.create_task(self._carry_out(snapshot.job.name))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return snapshot

    def _accept(self, request: JobRequest) -> Job:
        name = f"jobs/{len(self.jobs):04x}"
        accepted: list[Stage] = []
        source = request.source or InputRef()
        for asked in request.stages:
            parsed = stages.parse(asked.kind, asked.parameters)
            accepted.append(Stage(asked.kind, parsed.model_dump_json(), asked.input or source))
            role = "target" if asked.kind is StageKind.SEPARATE else "transcript"
            source = InputRef(job=name, role=role)
        return Job(
            name, request.request_id, Priority(request.priority), 1000 + len(self.jobs),
            tuple(accepted), request.title,
        )  # fmt: skip

    async def _carry_out(self, name: str) -> None:
        for index in range(len(self.jobs[name].job.stages)):
            await self._stage(name, index, state=StageState.LOADING)
            await self._stage(name, index, state=StageState.RUNNING)
            prompt = json.loads(self.jobs[name].job.stages[index].parameters_json).get("prompt")
            if prompt == "fail":
                await self._fail(name, index)
                return
            while prompt == "hang" and self.jobs[name].job.state is not JobState.CANCELLING:
                async with self._changed:
                    await self._changed.wait()
            if self.jobs[name].job.state is JobState.CANCELLING:
                await self._end(name, JobState.CANCELLED)
                return
            await self._succeed(name, index)
        await self._end(name, JobState.SUCCEEDED)

    async def _stage(self, name: str, index: int, **changes: object) -> None:
        snapshot = self.jobs[name]
        changed = list(snapshot.job.stages)
        changed[index] = replace(changed[index], **changes)  # type: ignore[arg-type]
        state = snapshot.job.state
        job = replace(
            snapshot.job, stages=tuple(changed),
            state=state if state is JobState.CANCELLING else JobState.RUNNING,
        )  # fmt: skip
        await self.put(JobSnapshot(job, Progress(index, 1, 2, "half way")))

    async def _succeed(self, name: str, index: int) -> None:
        kind = self.jobs[name].job.stages[index].kind
        made = []
        for role, filename in OUTPUTS[kind]:
            artifact = self.store(f"{role} of {name}".encode(), "file", "x/y", filename, name)
            made.append(Output(role, artifact.name, filename))
        await self._stage(
            name, index, state=StageState.SUCCEEDED, wait_ms=1, load_ms=2, run_ms=500,
            duration_ms=2000, predicted_peak_bytes=100 * MIB, measured_peak_bytes=99 * MIB,
            option="whole", outputs=tuple(made), attempt_count=1,
        )  # fmt: skip

    async def _fail(self, name: str, index: int) -> None:
        failure = Failure("MODEL_CORRUPT", "the model is damaged", (("offset_bytes", "7"),))
        await self._stage(name, index, state=StageState.FAILED, failure=failure)
        await self._end(name, JobState.FAILED, failure)

    async def _end(self, name: str, state: JobState, failure: Failure | None = None) -> None:
        job = replace(self.jobs[name].job, state=state, failure=failure, finished_ms=9000)
        await self.put(JobSnapshot(job))

    async def get_job(self, name: str) -> JobSnapshot:
        self.check("get_job")
        if name not in self.jobs:
            raise NotFound("JOB_NOT_FOUND", f"there is no {name}", job=name)
        return self.jobs[name]

    async def list_jobs(self, page_size: int, page_token: str) -> tuple[list[JobSnapshot], str]:
        self.check("list_jobs")
        newest = list(reversed(self.jobs.values()))
        start = int(page_token or 0)
        more = str(start + page_size) if start + page_size < len(newest) else ""
        return newest[start : start + page_size], more

    async def watch_job(self, name: str) -> AsyncIterator[JobSnapshot]:
        snapshot = await self.get_job(name)
        self.watch_count += 1
        try:
            yield snapshot
            while not snapshot.job.state.is_final:
                async with self._changed:
                    while self.jobs[name] is snapshot:
                        await self._changed.wait()
                    snapshot = self.jobs[name]
                yield snapshot
        finally:
            self.watch_count -= 1

    async def cancel_job(self, name: str) -> JobSnapshot:
        snapshot = await self.get_job(name)
        if not snapshot.job.state.is_final:
            state = JobState.CANCELLING if self.auto else JobState.CANCELLED
            await self.put(JobSnapshot(replace(snapshot.job, state=state)))
        return self.jobs[name]

    async def delete_job(self, name: str) -> None:
        snapshot = await self.get_job(name)
        if not snapshot.job.state.is_final:
            raise Refused("JOB_NOT_FINAL", f"{name} has not ended", job=name)
        del self.jobs[name]

    async def begin_artifact(self, kind: str, media_type: str, filename: str) -> FakeWriter:
        self.check("begin_artifact")
        return FakeWriter(self, kind, media_type, filename)

    def _artifact(self, name: str) -> tuple[Artifact, bytes]:
        if name not in self.artifacts:
            raise NotFound("ARTIFACT_NOT_FOUND", f"there is no {name}", artifact=name)
        return self.artifacts[name]

    async def get_artifact(self, name: str) -> Artifact:
        return self._artifact(name)[0]

    async def list_artifacts(
        self, page_size: int, page_token: str, job: str
    ) -> tuple[list[Artifact], str]:
        found = [one for one, _ in reversed(self.artifacts.values()) if job in ("", one.job)]
        start = int(page_token or 0)
        more = str(start + page_size) if start + page_size < len(found) else ""
        return found[start : start + page_size], more

    async def delete_artifact(self, name: str) -> None:
        self._artifact(name)
        del self.artifacts[name]

    async def join_transcripts(self, parts: Sequence[TranscriptPart]) -> Artifact:
        self.check("join_transcripts")
        lines = [f"{part.speaker}: {self._artifact(part.artifact)[1].decode()}" for part in parts]
        text = "\n".join(lines).encode()
        return self.store(text, "transcript", "application/json", "transcript.json")

    async def read_artifact(self, name: str, offset: int) -> AsyncIterator[bytes]:
        artifact, data = self._artifact(name)
        self.offsets.append(offset)
        if not 0 <= offset <= artifact.size_bytes:
            raise InvalidInput(
                "OFFSET_OUT_OF_RANGE", "no such byte", offset=offset, size_bytes=len(data)
            )
        stop, self.break_read_after = self.break_read_after, None
        for start in range(offset, len(data), self.chunk_bytes):
            if stop is not None and start >= stop:
                return
            yield data[start : start + self.chunk_bytes]

    async def gpu(self) -> GpuSnapshot:
        self.check("gpu")
        return self.snapshot

    async def watch_gpu(self) -> AsyncIterator[GpuSnapshot]:
        self.check("watch_gpu")
        seen = None
        while not self.is_closed:
            if seen != self.snapshot:
                seen = self.snapshot
                yield seen
            async with self._changed:
                await self._changed.wait()

    async def _put_gpu(self, **changes: object) -> GpuSnapshot:
        async with self._changed:
            self.snapshot = replace(self.snapshot, **changes)  # type: ignore[arg-type]
            self._changed.notify_all()
        return self.snapshot

    async def _put_engine(self, engine: EngineName, **changes: object) -> GpuSnapshot:
        views = tuple(
            replace(view, **changes) if view.engine is engine else view  # type: ignore[arg-type]
            for view in self.snapshot.engines
        )
        return await self._put_gpu(engines=views)

    async def set_budget(self, budget_bytes: int) -> GpuSnapshot:
        self.check("set_budget")
        return await self._put_gpu(capacity_bytes=budget_bytes, budget_bytes=budget_bytes)

    async def load_engine(self, engine: EngineName, option: str) -> GpuSnapshot:
        self.check("load_engine")
        return await self._put_engine(engine, state="loaded", option=option or "best")

    async def unload_engine(self, engine: EngineName) -> GpuSnapshot:
        self.check("unload_engine")
        return await self._put_engine(engine, state="stopped", option="")

    async def pin_engine(self, engine: EngineName, is_pinned: bool) -> GpuSnapshot:
        self.check("pin_engine")
        return await self._put_engine(engine, is_pinned=is_pinned)

    async def drain(self, is_draining: bool) -> GpuSnapshot:
        self.check("drain")
        return await self._put_gpu(is_draining=is_draining)

    async def plan_job(self, request: JobRequest) -> JobPlan:
        self.check("plan_job")
        self.requests.append(request)
        if request.quality_min == 0:
            failure = Failure("QUALITY_TOO_LOW", "too little memory", (("required_bytes", "7"),))
            return JobPlan(self._accept(request), None, (), failure)
        stages_ = tuple(
            replace(
                stage, option="whole", predicted_peak_bytes=100 * MIB, load_ms=2000, run_ms=500,
                evicted=("analysis: f16",), waited_for=("memory: 1 bytes needed, 0 free",),
            )
            for stage in self._accept(request).stages
        )  # fmt: skip
        job = replace(self._accept(request), stages=stages_)
        return JobPlan(job, 9_000_000_000_000, (f"load separation for {job.name}",))

    async def chat(
        self, parameters: ChatParameters, priority: int = int(Priority.INTERACTIVE)
    ) -> AsyncGenerator[ChatEvent, None]:
        """Says the last message again; "refuse" is refused, "endless" never ends."""
        self.chats.append((parameters, priority))
        words = parameters.messages[-1].content
        if words == "refuse":
            raise Refused("CHAT_TOO_LONG", "the conversation has 9 tokens", n_ctx=8)
        yield ChatWaiting("analysis is running jobs/0001")
        try:
            for word in words.split() if words != "endless" else itertools.repeat(words):
                await asyncio.sleep(0)
                yield ChatText(f"{word} ")
        finally:
            self.chats_ended += 1
        count = len(words.split())
        yield ChatDone("length", 7 * len(parameters.messages), count, 3, 1, 2, 3, 4, 10, "f16", 0,
                       ("2 of the oldest messages were left out: they did not fit.",))  # fmt: skip

    async def close(self, drain_ms: int) -> None:
        self.is_closed = True
        async with self._changed:
            self._changed.notify_all()
        self.drained_ms = drain_ms
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def busy_gpu() -> GpuSnapshot:
    """A device with one engine at work, one idle and one not configured."""
    return GpuSnapshot(
        "cuda", "Fake 24", 20_000 * MIB, 600 * MIB, 9_000 * MIB, 8_900 * MIB, 1_000 * MIB,
        lines=(
            LedgerLine(EngineName.SEPARATION, "context", 500 * MIB, "committed"),
            LedgerLine(EngineName.SEPARATION, "weights", 6_000 * MIB, "committed"),
            LedgerLine(EngineName.TRANSCRIPTION, "weights", 2_500 * MIB, "releasing"),
        ),
        engines=(
            EngineView(
                EngineName.SEPARATION, "running", "sam-audio-small", "k=12", 0, 4711, "jobs/0001",
                6_500 * MIB, 6_400 * MIB, ("k=24", "k=12"),
            ),
            EngineView(EngineName.TRANSCRIPTION, "unloading", "large-v3"),
            EngineView(EngineName.ANALYSIS, "not_configured"),
        ),
        queued_count=3, running_count=1, warnings=("another program holds 1000 MiB",),
    )  # fmt: skip


async def _open(settings: Settings) -> FakeDaemon:
    daemon = FakeDaemon(auto=True)
    daemon.snapshot = busy_gpu()
    return daemon


def main(arguments: list[str]) -> None:
    """Serve until told to stop, as `coscheduler serve` does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--until-stdin-closes", action="store_true")
    parser.add_argument("--pid-file", type=Path)
    options = parser.parse_args(arguments)
    settings = Settings.model_validate({"server": {"listen": options.listen}})

    def ready(address: str) -> None:
        if options.pid_file:
            options.pid_file.write_text(str(os.getpid()))
        print(f"listening on {address}", flush=True)

    asyncio.run(serve_daemon(_open, settings, ready, until_stdin_closes=options.until_stdin_closes))


if __name__ == "__main__":
    main(sys.argv[1:])
