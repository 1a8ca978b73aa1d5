"""The asyncio client."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from coscheduler.chat import ChatEvent, ChatParameters
from coscheduler.client import chat, results
from coscheduler.client.channel import (
    CALL_SECONDS_MAX,
    CHANNEL_OPTIONS,
    Backoff,
    Patience,
    resolve_address,
)
from coscheduler.client.requests import Plan, Transcribed
from coscheduler.client.results import RunResult, ignore_update
from coscheduler.client.transfer import (
    Landing,
    OnBytes,
    Stoppable,
    clean_name,
    ignore_bytes,
    kind_of,
    label_of,
    open_source,
    upload_messages,
)
from coscheduler.core.model import EngineName, JobPlan, Priority
from coscheduler.errors import CoschedulerError, Unavailable
from coscheduler.rpc import convert, status
from coscheduler.runtime.api import Artifact, GpuSnapshot, JobRequest, JobSnapshot, TranscriptPart
from coscheduler.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    gpu_pb2,
    gpu_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
)

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class AsyncClient:
    """Calls of the daemon at `address` (else COSCHEDULER_SERVER, else this user's socket).

    Every method raises the class of `coscheduler.errors` that the daemon raised, or Unavailable
    SERVER_UNREACHABLE. Ending a call, or the client, never ends a job. Use it from one event loop,
    best as `async with AsyncClient() as client`.
    """

    def __init__(self, address: str | None = None, *, backoff: Backoff | None = None) -> None:
        self.address = resolve_address(address)
        self._backoff = backoff or Backoff()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in flight end with Unavailable."""
        await self._channel.close()
        self._upload_channel.close()

    async def create_job(self, request: JobRequest) -> JobSnapshot:
        """Ask for a job; repeating the same request returns the same job."""
        message = convert.job_request_to_wire(request)
        return convert.job_from_wire(await self._ask(self._jobs.CreateJob, message))

    async def get_job(self, name: str) -> JobSnapshot:
        """How a job stands. Raises NotFound."""
        message = job_pb2.GetJobRequest(name=name)
        return convert.job_from_wire(await self._ask(self._jobs.GetJob, message))

    async def list_jobs(
        self, page_size: int = 0, page_token: str = ""
    ) -> tuple[list[JobSnapshot], str]:
        """A page of jobs, newest first, and the token of the next page ("" on the last)."""
        message = job_pb2.ListJobsRequest(page_size=page_size, page_token=page_token)
        page = await self._ask(self._jobs.ListJobs, message)
        return [convert.job_from_wire(job) for job in page.jobs], page.next_page_token

    async def watch_job(self, name: str) -> AsyncGenerator[JobSnapshot, None]:
        """The job at once, then as it changes, last in its final state.

        A connection that is lost after the first answer is taken up again for as long as the
        backoff's patience lasts; a snapshot may then come twice.
        """
        patience: Patience | None = None
        while True:
            call = self._jobs.WatchJob(job_pb2.WatchJobRequest(name=name))
            final = False
            try:
                async for message in call:
                    snapshot = convert.job_from_wire(message)
                    final = snapshot.job.state.is_final
                    patience = Patience(self._backoff)
                    yield snapshot
                lost: CoschedulerError = Unavailable("WATCH_BROKEN", f"the watch of {name} ended")
            except grpc.aio.AioRpcError as error:
                lost = status.from_rpc_error(error, self.address)
            finally:
                call.cancel()
            if final:
                return
            if patience is None:
                raise lost
            await asyncio.sleep(patience.pause_ms(lost) / 1000)

    async def cancel_job(self, name: str) -> JobSnapshot:
        """Ask a job to end early. Raises NotFound."""
        message = job_pb2.CancelJobRequest(name=name)
        return convert.job_from_wire(await self._ask(self._jobs.CancelJob, message))

    async def delete_job(self, name: str) -> None:
        """Delete a job that has ended, with its outputs. Raises NotFound, Refused JOB_NOT_FINAL."""
        message = job_pb2.DeleteJobRequest(name=name)
        await self._ask(self._jobs.DeleteJob, message)

    async def upload(
        self,
        path: Path | str,
        on_progress: OnBytes = ignore_bytes,
        *,
        kind: str | None = None,
        media_type: str | None = None,
    ) -> Artifact:
        """Send a file. `kind` and `media_type` are told from its name unless given.

        `on_progress(done_bytes, total_bytes)` is called in the event loop, after each chunk.
        """
        label = label_of(Path(path), kind, media_type)
        with open_source(Path(path)) as file:
            report = _in_this_loop(on_progress)
            messages = Stoppable(upload_messages(file, label, report))
            return convert.artifact_from_wire(await self._send(messages))

    async def _send(self, messages: Stoppable) -> artifact_pb2.Artifact:
        """Upload through the blocking stub, whose future needs no thread of ours.

        grpc.aio itself would not do: when the daemon refuses a file half way, it may report its own
        failed write instead of the daemon's status.
        """
        stub = artifact_pb2_grpc.ArtifactServiceStub(self._upload_channel)
        call = stub.WriteArtifact.future(iter(messages))
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def wake(_: object) -> None:
            loop.call_soon_threadsafe(done.set)

        call.add_done_callback(wake)
        try:
            await done.wait()
            return call.result()
        except grpc.RpcError as error:
            raise messages.fault or status.from_rpc_error(error, self.address) from None
        finally:
            call.cancel()

    async def download(
        self, artifact: Artifact | str, path: Path | str, on_progress: OnBytes = ignore_bytes
    ) -> Path:
        """Fetch a file; it is at `path` only when whole and its checksum right.

        A broken connection is taken up where it broke, also one of an earlier call. Raises
        NotFound or StoreFault DOWNLOAD_CORRUPT.
        """
        known = artifact if isinstance(artifact, Artifact) else await self.get_artifact(artifact)
        landing = Landing(known, Path(path), on_progress)
        patience = Patience(self._backoff)
        while (before_bytes := landing.offset_bytes) < known.size_bytes:
            try:
                await self._answer(self._receive(known, landing))
            except Unavailable as lost:
                if landing.offset_bytes > before_bytes:
                    patience.renew()
                await asyncio.sleep(patience.pause_ms(lost) / 1000)
        return landing.finish()

    async def _receive(self, artifact: Artifact, landing: Landing) -> None:
        request = artifact_pb2.ReadArtifactRequest(
            name=artifact.name, offset_bytes=landing.offset_bytes
        )
        with landing.open() as file:
            async for message in self._artifacts.ReadArtifact(request):
                landing.write(file, message.data)
        landing.require_whole()

    async def get_artifact(self, name: str) -> Artifact:
        """What is known of a file. Raises NotFound."""
        message = artifact_pb2.GetArtifactRequest(name=name)
        return convert.artifact_from_wire(await self._ask(self._artifacts.GetArtifact, message))

    async def list_artifacts(
        self, page_size: int = 0, page_token: str = "", job: str = ""
    ) -> tuple[list[Artifact], str]:
        """A page of files, newest first, and the next token; `job` keeps those it made."""
        message = artifact_pb2.ListArtifactsRequest(
            page_size=page_size, page_token=page_token, job=job
        )
        page = await self._ask(self._artifacts.ListArtifacts, message)
        return [convert.artifact_from_wire(one) for one in page.artifacts], page.next_page_token

    async def delete_artifact(self, name: str) -> None:
        """Delete a file. Raises NotFound, Refused ARTIFACT_IN_USE."""
        message = artifact_pb2.DeleteArtifactRequest(name=name)
        await self._ask(self._artifacts.DeleteArtifact, message)

    async def join_transcripts(self, parts: Sequence[TranscriptPart]) -> Artifact:
        """Make one transcript of several of the same recording, each of one voice. Raises NotFound,
        InvalidInput PARTS_INVALID, INPUT_KIND_MISMATCH, TRANSCRIPT_INVALID or TRANSCRIPT_TOO_LARGE.
        """
        message = artifact_pb2.JoinTranscriptsRequest()
        for part in parts:
            message.parts.add(artifact=part.artifact, speaker=part.speaker)
        return convert.artifact_from_wire(await self._ask(self._artifacts.JoinTranscripts, message))

    async def gpu(self) -> GpuSnapshot:
        """The ledger and the engines at this moment."""
        message = gpu_pb2.GetGpuRequest()
        return convert.gpu_from_wire(await self._ask(self._gpu.GetGpu, message))

    async def watch_gpu(self) -> AsyncGenerator[GpuSnapshot, None]:
        """The device at once, then after changes and every second, until the daemon ends. A lost
        connection is taken up again as in `watch_job`.
        """
        patience: Patience | None = None
        while True:
            call = self._gpu.WatchGpu(gpu_pb2.WatchGpuRequest())
            try:
                async for message in call:
                    patience = Patience(self._backoff)
                    yield convert.gpu_from_wire(message)
                lost: CoschedulerError = Unavailable("WATCH_BROKEN", "the watch of the gpu ended")
            except grpc.aio.AioRpcError as error:
                lost = status.from_rpc_error(error, self.address)
            finally:
                call.cancel()
            if patience is None:
                raise lost
            await asyncio.sleep(patience.pause_ms(lost) / 1000)

    async def set_budget(self, budget_bytes: int) -> GpuSnapshot:
        """What the engines may hold together from now on; 0: as the daemon's config says."""
        message = gpu_pb2.SetBudgetRequest(budget_bytes=budget_bytes)
        return convert.gpu_from_wire(await self._ask(self._gpu.SetBudget, message))

    async def load_engine(self, engine: EngineName, option: str = "") -> GpuSnapshot:
        """Ask for an engine in memory before any job. Raises Refused, InvalidInput."""
        message = gpu_pb2.LoadEngineRequest(engine=convert.engine_to_wire(engine), option=option)
        return convert.gpu_from_wire(await self._ask(self._gpu.LoadEngine, message))

    async def unload_engine(self, engine: EngineName) -> GpuSnapshot:
        """Ask for an engine's memory back, once it is idle. Raises Refused ENGINE_PINNED."""
        message = gpu_pb2.UnloadEngineRequest(engine=convert.engine_to_wire(engine))
        return convert.gpu_from_wire(await self._ask(self._gpu.UnloadEngine, message))

    async def pin_engine(self, engine: EngineName, is_pinned: bool = True) -> GpuSnapshot:
        """Keep an engine in memory once it is there, or no longer."""
        number = convert.engine_to_wire(engine)
        message = gpu_pb2.PinEngineRequest(engine=number, pinned=is_pinned)
        return convert.gpu_from_wire(await self._ask(self._gpu.PinEngine, message))

    async def drain(self) -> GpuSnapshot:
        """Start nothing any more; what runs may end."""
        return convert.gpu_from_wire(await self._ask(self._gpu.Drain, gpu_pb2.DrainRequest()))

    async def end_drain(self) -> GpuSnapshot:
        """Start things again."""
        message = gpu_pb2.EndDrainRequest()
        return convert.gpu_from_wire(await self._ask(self._gpu.EndDrain, message))

    async def plan_job(self, request: JobRequest) -> JobPlan:
        """What would become of a job; nothing is created. A refusal is part of the plan."""
        message = job_pb2.PlanJobRequest(job=convert.job_request_to_wire(request).job)
        return convert.plan_from_wire(await self._ask(self._jobs.PlanJob, message))

    def chat(
        self, parameters: ChatParameters, priority: Priority = Priority.INTERACTIVE
    ) -> AsyncGenerator[ChatEvent, None]:
        """Go on with a conversation: why it waits, its text in pieces, `ChatDone` last. Closing the
        generator ends the answer. Raises Refused CHAT_TOO_LONG or NEVER_FITS, Exhausted.
        """
        return chat.stream_async(self._channel, self.address, parameters, priority)

    async def submit(
        self, audio: Path | str, plan: Plan, on_upload: OnBytes = ignore_bytes
    ) -> JobSnapshot:
        """Check the plan, upload the file and ask for the job."""
        plan.check(kind_of(Path(audio)))
        plan = await self.send_clips(plan)
        artifact = await self.upload(audio, on_upload)
        return await self.create_job(plan.request(artifact.name, clean_name(Path(audio))))

    async def send_clips(self, plan: Plan) -> Plan:
        """Upload the clips of a plan; the plan that names what was uploaded."""
        sent = [(await self.upload(path, kind="audio")).name for _, path in plan.clips]
        return plan.with_clips(sent)

    async def fetch(self, snapshot: JobSnapshot, folder: Path | str) -> dict[str, Path]:
        """Download every output of a job and write `metrics.json`; returns the files by role."""
        files: dict[str, Path] = {}
        for role, output in results.outputs(snapshot).items():
            files[role] = await self.download(output.artifact, Path(folder) / output.filename)
        return results.write_metrics(snapshot, files, Path(folder))

    async def run(
        self,
        audio: Path | str,
        *,
        separate: str | None = None,
        transcribe: bool = True,
        analyze: str | None = None,
        prompt: str | None = None,
        language: str = "",
        priority: Priority = Priority.NORMAL,
        analysis: Mapping[str, Any] | None = None,
        separation: Mapping[str, Any] | None = None,
        transcription: Mapping[str, Any] | None = None,
        transcribe_from: Transcribed = "target",
        clips: Sequence[tuple[str, Path | str]] = (),
        out: Path | str | None = None,
        on_update: Callable[[JobSnapshot], None] = ignore_update,
    ) -> RunResult:
        """A recording in, its results out: upload, job, watch, and with `out` the files.

        `separate` is the sound to pull out, `analyze` a template ("summary", "actions"), `prompt` a
        question of one's own; `separation`, `transcription` and `analysis` have further parameters,
        `clips` names and files of voices to look for: see `Plan`.
        A job that fails is returned, not raised: see `RunResult.succeeded`.
        """
        plan = Plan(
            separate, transcribe, analyze, prompt, language, priority,
            analysis or {}, separation or {}, transcription or {}, transcribe_from=transcribe_from,
            clips=tuple((name, Path(path)) for name, path in clips),
        )  # fmt: skip
        snapshot = await self.submit(audio, plan)
        async for update in self.watch_job(snapshot.job.name):
            snapshot = update
            on_update(update)
        return RunResult(snapshot, await self.fetch(snapshot, out) if out is not None else {})

    async def _ask(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[Question, Answer]", message: Question
    ) -> Answer:
        return await self._answer(method(message, timeout=CALL_SECONDS_MAX))

    async def _answer(self, call: Awaitable[Answer]) -> Answer:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error, self.address) from None

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)

    @cached_property
    def _upload_channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.address, options=CHANNEL_OPTIONS)

    @cached_property
    def _jobs(self) -> "job_pb2_grpc.JobServiceAsyncStub":
        return job_pb2_grpc.JobServiceStub(self._channel)

    @cached_property
    def _artifacts(self) -> "artifact_pb2_grpc.ArtifactServiceAsyncStub":
        return artifact_pb2_grpc.ArtifactServiceStub(self._channel)

    @cached_property
    def _gpu(self) -> "gpu_pb2_grpc.GpuServiceAsyncStub":
        return gpu_pb2_grpc.GpuServiceStub(self._channel)


def _in_this_loop(on_bytes: OnBytes) -> OnBytes:
    """The callback for another thread to call: it runs in this loop, and its errors come back."""
    loop = asyncio.get_running_loop()

    async def run(done_bytes: int, total_bytes: int) -> None:
        on_bytes(done_bytes, total_bytes)

    def report(done_bytes: int, total_bytes: int) -> None:
        asyncio.run_coroutine_threadsafe(run(done_bytes, total_bytes), loop).result()

    return report if on_bytes is not ignore_bytes else ignore_bytes
