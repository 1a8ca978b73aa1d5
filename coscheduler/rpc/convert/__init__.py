"""Plain data <-> messages, both ways, pure. `x_to_wire` and `x_from_wire` undo each other."""

from coscheduler.rpc.convert.artifact import (
    FileLabel,
    artifact_from_wire,
    artifact_to_wire,
    label_from_wire,
    label_to_wire,
)
from coscheduler.rpc.convert.chat import (
    chat_event_from_wire,
    chat_event_to_wire,
    chat_request_from_wire,
    chat_request_to_wire,
)
from coscheduler.rpc.convert.gpu import (
    engine_from_wire,
    engine_to_wire,
    gpu_from_wire,
    gpu_to_wire,
)
from coscheduler.rpc.convert.job import (
    asked_job_from_wire,
    job_from_wire,
    job_request_from_wire,
    job_request_to_wire,
    job_to_wire,
    plan_from_wire,
    plan_to_wire,
    real_time_factor,
)

__all__ = [
    "FileLabel",
    "artifact_from_wire",
    "artifact_to_wire",
    "asked_job_from_wire",
    "chat_event_from_wire",
    "chat_event_to_wire",
    "chat_request_from_wire",
    "chat_request_to_wire",
    "engine_from_wire",
    "engine_to_wire",
    "gpu_from_wire",
    "gpu_to_wire",
    "job_from_wire",
    "job_request_from_wire",
    "job_request_to_wire",
    "job_to_wire",
    "label_from_wire",
    "label_to_wire",
    "plan_from_wire",
    "plan_to_wire",
    "real_time_factor",
]
