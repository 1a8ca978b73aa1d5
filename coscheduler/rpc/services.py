"""The services. A method turns its message into a call of the daemon and the answer back."""
# ruff: noqa: N802 (the generated base classes name methods as the protos do)

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf.empty_pb2 import Empty

from coscheduler.errors import InvalidInput
from coscheduler.rpc import convert
from coscheduler.runtime.api import ArtifactWriter, DaemonApi, TranscriptPart
from coscheduler.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    chat_pb2,
    chat_pb2_grpc,
    gpu_pb2,
    gpu_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
)

PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 200
PLANNED = "planned"  # the request_id of a job that is only planned


def page_size(asked: int) -> int:
    """The size to use. Raises InvalidInput PAGE_SIZE_NEGATIVE."""
    if asked < 0:
        raise InvalidInput(
            "PAGE_SIZE_NEGATIVE", f"page_size is {asked}; it cannot be negative", page_size=asked
        )
    return min(asked or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


class JobService(job_pb2_grpc.JobServiceServicer):
    """Jobs, as job.proto promises."""

    def __init__(self, daemon: DaemonApi, message_bytes_max: int) -> None:
        self._daemon = daemon
        self._message_bytes_max = message_bytes_max

    async def CreateJob(self, request: job_pb2.CreateJobRequest, context: Any) -> job_pb2.Job:
        """Accept a job."""
        asked = convert.job_request_from_wire(request)
        return convert.job_to_wire(await self._daemon.create_job(asked))

    async def GetJob(self, request: job_pb2.GetJobRequest, context: Any) -> job_pb2.Job:
        """How a job stands."""
        return convert.job_to_wire(await self._daemon.get_job(request.name))

    async def ListJobs(
        self, request: job_pb2.ListJobsRequest, context: Any
    ) -> job_pb2.ListJobsResponse:
        """A page of jobs, shorter than asked where long prompts would not fit into a message."""
        size = page_size(request.page_size)
        page = await self._page(size, request.page_token)
        while page.ByteSize() > self._message_bytes_max and size > 1:
            size = max(1, size // 2)
            page = await self._page(size, request.page_token)
        return page

    async def _page(self, size: int, token: str) -> job_pb2.ListJobsResponse:
        jobs, next_token = await self._daemon.list_jobs(size, token)
        messages = [convert.job_to_wire(job) for job in jobs]
        return job_pb2.ListJobsResponse(jobs=messages, next_page_token=next_token)

    async def WatchJob(
        self, request: job_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[job_pb2.Job]:
        """A job as it changes."""
        async for snapshot in self._daemon.watch_job(request.name):
            yield convert.job_to_wire(snapshot)

    async def CancelJob(self, request: job_pb2.CancelJobRequest, context: Any) -> job_pb2.Job:
        """Ask a job to end early."""
        return convert.job_to_wire(await self._daemon.cancel_job(request.name))

    async def DeleteJob(self, request: job_pb2.DeleteJobRequest, context: Any) -> Empty:
        """Delete a job that has ended."""
        await self._daemon.delete_job(request.name)
        return Empty()

    async def PlanJob(self, request: job_pb2.PlanJobRequest, context: Any) -> job_pb2.JobPlan:
        """What would become of a job."""
        asked = convert.asked_job_from_wire(request.job, PLANNED)
        return convert.plan_to_wire(await self._daemon.plan_job(asked))


class ArtifactService(artifact_pb2_grpc.ArtifactServiceServicer):
    """Artifacts, as artifact.proto promises."""

    def __init__(self, daemon: DaemonApi) -> None:
        self._daemon = daemon

    async def WriteArtifact(
        self, request_iterator: AsyncIterator[artifact_pb2.WriteArtifactRequest], context: Any
    ) -> artifact_pb2.Artifact:
        """Store a file, or nothing at all."""
        messages = aiter(request_iterator)
        label = convert.label_from_wire(await _metadata(messages))
        writer = await self._daemon.begin_artifact(label.kind, label.media_type, label.filename)
        try:
            last = await _copy(messages, writer)
            return convert.artifact_to_wire(await writer.finish(last.size_bytes, last.sha256))
        finally:
            await writer.abort()

    async def ReadArtifact(
        self, request: artifact_pb2.ReadArtifactRequest, context: Any
    ) -> AsyncIterator[artifact_pb2.ReadArtifactResponse]:
        """The bytes of an artifact."""
        async for chunk in self._daemon.read_artifact(request.name, request.offset_bytes):
            yield artifact_pb2.ReadArtifactResponse(data=chunk)

    async def GetArtifact(
        self, request: artifact_pb2.GetArtifactRequest, context: Any
    ) -> artifact_pb2.Artifact:
        """What is known of an artifact."""
        return convert.artifact_to_wire(await self._daemon.get_artifact(request.name))

    async def ListArtifacts(
        self, request: artifact_pb2.ListArtifactsRequest, context: Any
    ) -> artifact_pb2.ListArtifactsResponse:
        """A page of artifacts."""
        size = page_size(request.page_size)
        found, token = await self._daemon.list_artifacts(size, request.page_token, request.job)
        return artifact_pb2.ListArtifactsResponse(
            artifacts=[convert.artifact_to_wire(artifact) for artifact in found],
            next_page_token=token,
        )

    async def DeleteArtifact(
        self, request: artifact_pb2.DeleteArtifactRequest, context: Any
    ) -> Empty:
        """Delete an artifact."""
        await self._daemon.delete_artifact(request.name)
        return Empty()

    async def JoinTranscripts(
        self, request: artifact_pb2.JoinTranscriptsRequest, context: Any
    ) -> artifact_pb2.Artifact:
        """One transcript of several."""
        parts = [TranscriptPart(part.artifact, part.speaker) for part in request.parts]
        return convert.artifact_to_wire(await self._daemon.join_transcripts(parts))


async def _metadata(
    messages: AsyncIterator[artifact_pb2.WriteArtifactRequest],
) -> artifact_pb2.ArtifactMetadata:
    first = await anext(messages, artifact_pb2.WriteArtifactRequest())
    if not first.HasField("metadata"):
        raise InvalidInput("UPLOAD_MALFORMED", "the first message of an upload must be metadata")
    return first.metadata


async def _copy(
    messages: AsyncIterator[artifact_pb2.WriteArtifactRequest], writer: ArtifactWriter
) -> artifact_pb2.FinishWrite:
    """Write every data message and return the promise at the end.

    A client that dies half way ends the iteration just as one that is done does, so the promise is
    the only sign of a whole file. Raises InvalidInput UPLOAD_INCOMPLETE or UPLOAD_MALFORMED.
    """
    received_bytes = 0
    async for message in messages:
        if message.HasField("finish_write"):
            return message.finish_write
        if not message.HasField("data"):
            raise InvalidInput("UPLOAD_MALFORMED", "after metadata come data and finish_write")
        await writer.write(message.data)
        received_bytes += len(message.data)
    raise InvalidInput(
        "UPLOAD_INCOMPLETE",
        f"the upload ended after {received_bytes} bytes without finish_write; nothing was kept",
        received_bytes=received_bytes,
    )


class GpuService(gpu_pb2_grpc.GpuServiceServicer):
    """The device, as gpu.proto promises."""

    def __init__(self, daemon: DaemonApi) -> None:
        self._daemon = daemon

    async def GetGpu(self, request: gpu_pb2.GetGpuRequest, context: Any) -> gpu_pb2.Gpu:
        """The ledger and the engines."""
        return convert.gpu_to_wire(await self._daemon.gpu())

    async def WatchGpu(
        self, request: gpu_pb2.WatchGpuRequest, context: Any
    ) -> AsyncIterator[gpu_pb2.Gpu]:
        """The ledger and the engines as they change."""
        async for snapshot in self._daemon.watch_gpu():
            yield convert.gpu_to_wire(snapshot)

    async def SetBudget(self, request: gpu_pb2.SetBudgetRequest, context: Any) -> gpu_pb2.Gpu:
        """Another budget."""
        return convert.gpu_to_wire(await self._daemon.set_budget(request.budget_bytes))

    async def LoadEngine(self, request: gpu_pb2.LoadEngineRequest, context: Any) -> gpu_pb2.Gpu:
        """An engine in memory before any job."""
        engine = convert.engine_from_wire(request.engine)
        return convert.gpu_to_wire(await self._daemon.load_engine(engine, request.option))

    async def UnloadEngine(self, request: gpu_pb2.UnloadEngineRequest, context: Any) -> gpu_pb2.Gpu:
        """An engine's memory back."""
        engine = convert.engine_from_wire(request.engine)
        return convert.gpu_to_wire(await self._daemon.unload_engine(engine))

    async def PinEngine(self, request: gpu_pb2.PinEngineRequest, context: Any) -> gpu_pb2.Gpu:
        """An engine to stay in memory, or no longer."""
        engine = convert.engine_from_wire(request.engine)
        return convert.gpu_to_wire(await self._daemon.pin_engine(engine, request.pinned))

    async def Drain(self, request: gpu_pb2.DrainRequest, context: Any) -> gpu_pb2.Gpu:
        """Start nothing any more."""
        return convert.gpu_to_wire(await self._daemon.drain(True))

    async def EndDrain(self, request: gpu_pb2.EndDrainRequest, context: Any) -> gpu_pb2.Gpu:
        """Start things again."""
        return convert.gpu_to_wire(await self._daemon.drain(False))


class ChatService(chat_pb2_grpc.ChatServiceServicer):
    """Conversations, as chat.proto promises."""

    def __init__(self, daemon: DaemonApi) -> None:
        self._daemon = daemon

    async def Generate(
        self, request: chat_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[chat_pb2.GenerateResponse]:
        """The answer as it comes; it ends with the call."""
        parameters, priority = convert.chat_request_from_wire(request)
        async with aclosing(self._daemon.chat(parameters, priority)) as events:
            async for event in events:
                yield convert.chat_event_to_wire(event)
