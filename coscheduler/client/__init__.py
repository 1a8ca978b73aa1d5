"""The Python client: `Client` blocks, `AsyncClient` is for asyncio. No torch, no numpy.

    from coscheduler.client import Client

    with Client() as client:
        result = client.run("meeting.flac", separate="speech", analyze="summary", out="out")
        print(result.snapshot.job.state, result.files["txt"].read_text())

What goes in and comes out are the plain dataclasses named here; errors are those of
`coscheduler.errors`.
"""

from coscheduler.chat import ChatDone, ChatEvent, ChatParameters, ChatText, ChatWaiting
from coscheduler.client.aio import AsyncClient
from coscheduler.client.blocking import Client
from coscheduler.client.channel import Backoff
from coscheduler.client.chat import Conversation
from coscheduler.client.requests import Plan
from coscheduler.client.results import RunResult
from coscheduler.core.model import (
    EngineName,
    InputRef,
    JobPlan,
    JobState,
    Priority,
    StageKind,
    StageState,
)
from coscheduler.runtime.api import (
    Artifact,
    GpuSnapshot,
    JobRequest,
    JobSnapshot,
    StageRequest,
    TranscriptPart,
)

__all__ = [
    "Artifact",
    "AsyncClient",
    "Backoff",
    "ChatDone",
    "ChatEvent",
    "ChatParameters",
    "ChatText",
    "ChatWaiting",
    "Client",
    "Conversation",
    "EngineName",
    "GpuSnapshot",
    "InputRef",
    "JobPlan",
    "JobRequest",
    "JobSnapshot",
    "JobState",
    "Plan",
    "Priority",
    "RunResult",
    "StageKind",
    "StageRequest",
    "StageState",
    "TranscriptPart",
]
