"""A job's states as one table. An event that is not in the table raises and changes nothing.

    QUEUED ──start──> RUNNING ──succeed──> SUCCEEDED
      │  └──fail──────> FAILED <──fail──────┘ │
      └──cancel──> CANCELLED <──stop── CANCELLING <──cancel
                                  CANCELLING ──succeed──> SUCCEEDED   (the work was faster)

A job stays RUNNING between its stages and while one of them is tried again. Final states have no
way out.
"""

from dataclasses import replace
from enum import StrEnum

from coscheduler.core.model import Job, JobState, StageState


class JobEvent(StrEnum):
    """What can happen to a job."""

    START = "start"
    SUCCEED = "succeed"
    FAIL = "fail"
    CANCEL = "cancel"
    STOP = "stop"


TRANSITIONS: dict[tuple[JobState, JobEvent], JobState] = {
    (JobState.QUEUED, JobEvent.START): JobState.RUNNING,
    (JobState.QUEUED, JobEvent.FAIL): JobState.FAILED,
    (JobState.QUEUED, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.RUNNING, JobEvent.SUCCEED): JobState.SUCCEEDED,
    (JobState.RUNNING, JobEvent.FAIL): JobState.FAILED,
    (JobState.RUNNING, JobEvent.CANCEL): JobState.CANCELLING,
    (JobState.CANCELLING, JobEvent.SUCCEED): JobState.SUCCEEDED,
    (JobState.CANCELLING, JobEvent.STOP): JobState.CANCELLED,
}


class IllegalTransition(Exception):
    """An event came that the job's state does not allow: a bug in the caller."""

    def __init__(self, state: JobState, event: JobEvent) -> None:
        super().__init__(f"a {state} job cannot {event}")


def advance(state: JobState, event: JobEvent) -> JobState:
    """The next state. Raises IllegalTransition."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(state, event) from None


def recover(job: Job) -> Job:
    """A job as it must look after a restart: a stage that was in flight is pending again.

    A job whose cancel was under way is cancelled: nothing of it can be running any more.
    """
    in_flight = (StageState.LOADING, StageState.RUNNING, StageState.PAUSED)
    target = StageState.CANCELLED if job.state is JobState.CANCELLING else StageState.PENDING
    stages = tuple(
        replace(stage, state=target) if stage.state in in_flight else stage for stage in job.stages
    )
    if job.state is JobState.CANCELLING:
        return replace(job, stages=stages, state=advance(job.state, JobEvent.STOP))
    return replace(job, stages=stages)
