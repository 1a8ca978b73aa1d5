"""JobRequest and JobSnapshot <-> v1.CreateJobRequest and v1.Job."""

import json

from coscheduler import stages
from coscheduler.core.model import Failure, InputRef, Job, JobPlan, Output, Priority, Stage
from coscheduler.errors import InvalidInput
from coscheduler.rpc.convert.names import JOB_STATE, PRIORITY, STAGE_STATE
from coscheduler.rpc.convert.parameters import get_parameters, put_parameters
from coscheduler.runtime.api import JobRequest, JobSnapshot, Progress, StageRequest
from coscheduler.v1 import job_pb2


def job_request_to_wire(request: JobRequest) -> job_pb2.CreateJobRequest:
    """The message that asks for a job. Raises InvalidInput for parameters that are not allowed."""
    job = job_pb2.Job(
        title=request.title,
        priority=_priority_to_wire(request.priority),
        stages=[_stage_request_to_wire(stage) for stage in request.stages],
        source=_input_to_wire(request.source),
        quality_min=request.quality_min,
        deadline_time_ms=request.deadline_ms or 0,
    )
    return job_pb2.CreateJobRequest(request_id=request.request_id, job=job)


def job_request_from_wire(message: job_pb2.CreateJobRequest) -> JobRequest:
    """What a message asks for. Raises InvalidInput PRIORITY_UNKNOWN, STAGE_EMPTY or the like."""
    return asked_job_from_wire(message.job, message.request_id)


def asked_job_from_wire(job: job_pb2.Job, request_id: str) -> JobRequest:
    """The same for the job alone."""
    priority = PRIORITY.from_wire(job.priority or job_pb2.PRIORITY_NORMAL)
    return JobRequest(
        request_id=request_id,
        stages=tuple(_stage_request_from_wire(stage) for stage in job.stages),
        source=_input_from_wire(job.source) if job.HasField("source") else None,
        priority=int(priority),
        title=job.title,
        quality_min=job.quality_min if job.HasField("quality_min") else None,
        deadline_ms=job.deadline_time_ms or None,
    )


def _priority_to_wire(priority: int) -> job_pb2.Priority.ValueType:
    if priority not in list(Priority):
        known = ", ".join(str(int(entry)) for entry in Priority)
        raise InvalidInput(
            "PRIORITY_UNKNOWN", f"priority {priority} is unknown; there are: {known}",
            priority=priority, known=known,
        )  # fmt: skip
    return PRIORITY.to_wire(Priority(priority))


def _stage_request_to_wire(request: StageRequest) -> job_pb2.Stage:
    stage = job_pb2.Stage(input=_input_to_wire(request.input))
    parsed = stages.parse(request.kind, request.parameters)
    put_parameters(stage, request.kind, parsed.model_dump())
    return stage


def _stage_request_from_wire(stage: job_pb2.Stage) -> StageRequest:
    kind, parameters = get_parameters(stage)
    source = _input_from_wire(stage.input) if stage.HasField("input") else None
    return StageRequest(kind, parameters, source)


def job_to_wire(snapshot: JobSnapshot) -> job_pb2.Job:
    """The message for a job as it stands."""
    job = snapshot.job
    return job_pb2.Job(
        name=job.name,
        title=job.title,
        priority=PRIORITY.to_wire(job.priority),
        stages=[_stage_to_wire(stage) for stage in job.stages],
        source=_input_to_wire(job.stages[0].input) if job.stages else None,
        state=JOB_STATE.to_wire(job.state),
        create_time_ms=job.arrival_ms,
        finish_time_ms=job.finished_ms,
        request_id=job.request_id,
        progress=_progress_to_wire(snapshot.progress),
        waiting_for=snapshot.waiting_for,
        failure=_failure_to_wire(job.failure),
        quality_min=job.quality_min,
        deadline_time_ms=job.deadline_ms or 0,
        expected_end_time_ms=snapshot.expected_end_ms or 0,
        notes=snapshot.notes,
    )


def job_from_wire(message: job_pb2.Job) -> JobSnapshot:
    """The job in a message. Raises InvalidInput for an enum number that this version lacks."""
    job = Job(
        name=message.name,
        request_id=message.request_id,
        priority=PRIORITY.from_wire(message.priority),
        arrival_ms=message.create_time_ms,
        stages=tuple(_stage_from_wire(stage) for stage in message.stages),
        title=message.title,
        state=JOB_STATE.from_wire(message.state),
        finished_ms=message.finish_time_ms,
        failure=_failure_from_wire(message.failure) if message.HasField("failure") else None,
        quality_min=message.quality_min if message.HasField("quality_min") else None,
        deadline_ms=message.deadline_time_ms or None,
    )
    progress = _progress_from_wire(message.progress) if message.HasField("progress") else None
    end_ms, notes = message.expected_end_time_ms or None, tuple(message.notes)
    return JobSnapshot(job, progress, message.waiting_for, end_ms, notes)


def plan_to_wire(plan: JobPlan) -> job_pb2.JobPlan:
    """The message for a plan."""
    return job_pb2.JobPlan(
        job=job_to_wire(JobSnapshot(plan.job)),
        end_time_ms=plan.end_ms or 0,
        decisions=plan.decisions,
        refusal=_failure_to_wire(plan.refusal),
    )


def plan_from_wire(message: job_pb2.JobPlan) -> JobPlan:
    """The plan in a message."""
    refusal = _failure_from_wire(message.refusal) if message.HasField("refusal") else None
    job = job_from_wire(message.job).job
    return JobPlan(job, message.end_time_ms or None, tuple(message.decisions), refusal)


def real_time_factor(stage: Stage) -> float | None:
    """run_ms / duration_ms; None where the stage has not run or its input has no length."""
    return stage.run_ms / stage.duration_ms if stage.run_ms and stage.duration_ms else None


def _stage_to_wire(stage: Stage) -> job_pb2.Stage:
    message = job_pb2.Stage(
        input=_input_to_wire(stage.input),
        state=STAGE_STATE.to_wire(stage.state),
        attempt_count=stage.attempt_count,
        ready_time_ms=stage.ready_ms,
        duration_ms=stage.duration_ms,
        wait_ms=stage.wait_ms,
        load_ms=stage.load_ms,
        run_ms=stage.run_ms,
        real_time_factor=real_time_factor(stage),
        predicted_peak_bytes=stage.predicted_peak_bytes,
        measured_peak_bytes=stage.measured_peak_bytes,
        option=stage.option,
        quality_tier=stage.quality_tier,
        evicted=stage.evicted,
        waited_for=stage.waited_for,
        notes=stage.notes,
        numbers=dict(stage.numbers),
        outputs=[job_pb2.Output(**vars(output)) for output in stage.outputs],
        failure=_failure_to_wire(stage.failure),
        preempt_count=stage.preempt_count,
        oom_count=stage.oom_count,
    )
    put_parameters(message, stage.kind, json.loads(stage.parameters_json))
    return message


def _stage_from_wire(message: job_pb2.Stage) -> Stage:
    kind, parameters = get_parameters(message)
    return Stage(
        kind=kind,
        parameters_json=json.dumps(parameters, sort_keys=True),
        input=_input_from_wire(message.input),
        duration_ms=message.duration_ms,
        state=STAGE_STATE.from_wire(message.state),
        attempt_count=message.attempt_count,
        ready_ms=message.ready_time_ms,
        wait_ms=message.wait_ms,
        load_ms=message.load_ms,
        run_ms=message.run_ms,
        predicted_peak_bytes=message.predicted_peak_bytes,
        measured_peak_bytes=message.measured_peak_bytes,
        option=message.option,
        quality_tier=message.quality_tier,
        evicted=tuple(message.evicted),
        waited_for=tuple(message.waited_for),
        outputs=tuple(Output(one.role, one.artifact, one.filename) for one in message.outputs),
        notes=tuple(message.notes),
        numbers=tuple(sorted(message.numbers.items())),
        failure=_failure_from_wire(message.failure) if message.HasField("failure") else None,
        preempt_count=message.preempt_count,
        oom_count=message.oom_count,
    )


def _input_to_wire(ref: InputRef | None) -> job_pb2.Input | None:
    if ref is None or ref == InputRef():
        return None
    if ref.artifact:
        return job_pb2.Input(artifact=ref.artifact)
    return job_pb2.Input(output_of=job_pb2.OutputOf(job=ref.job, role=ref.role))


def _input_from_wire(message: job_pb2.Input) -> InputRef:
    """An empty reference for an empty message; the daemon says what is missing."""
    return InputRef(message.artifact, message.output_of.job, message.output_of.role)


def _progress_to_wire(progress: Progress | None) -> job_pb2.Progress | None:
    if progress is None:
        return None
    return job_pb2.Progress(
        stage_index=progress.stage_index,
        done_count=progress.done,
        total_count=progress.total,
        note=progress.note,
    )


def _progress_from_wire(message: job_pb2.Progress) -> Progress:
    return Progress(message.stage_index, message.done_count, message.total_count, message.note)


def _failure_to_wire(failure: Failure | None) -> job_pb2.Failure | None:
    if failure is None:
        return None
    return job_pb2.Failure(
        reason=failure.reason, message=failure.message, numbers=dict(failure.numbers)
    )


def _failure_from_wire(message: job_pb2.Failure) -> Failure:
    return Failure(message.reason, message.message, tuple(sorted(message.numbers.items())))
