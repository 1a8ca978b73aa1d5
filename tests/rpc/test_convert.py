"""What goes onto the wire comes back the same."""

import json
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coscheduler import stages
from coscheduler.core.model import (
    EngineName,
    Failure,
    InputRef,
    Job,
    JobState,
    Output,
    Priority,
    Stage,
    StageKind,
    StageState,
)
from coscheduler.errors import InvalidInput
from coscheduler.rpc import convert
from coscheduler.rpc.convert import names
from coscheduler.runtime.api import (
    Artifact,
    AudioFacts,
    EngineView,
    GpuSnapshot,
    JobRequest,
    JobSnapshot,
    LedgerLine,
    Progress,
    StageRequest,
)
from coscheduler.v1 import artifact_pb2, gpu_pb2, job_pb2
from tests.rpc.fake_daemon import busy_gpu

INT32 = st.integers(0, 2**31 - 1)
INT64 = st.integers(0, 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
WORDS = st.text("abcdef gh", min_size=1, max_size=20)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)

PARAMETERS: dict[StageKind, st.SearchStrategy[dict[str, Any]]] = {
    StageKind.SEPARATE: st.fixed_dictionaries({"prompt": WORDS}, optional={"seed": INT64}),
    StageKind.TRANSCRIBE: st.fixed_dictionaries(
        {},
        optional={
            "language": st.sampled_from(["", "en", "yue"]),
            "formats": st.lists(st.sampled_from(stages.FORMATS), min_size=1, max_size=5),
            "align": st.booleans(),
            "diarize": st.booleans(),
            "speakers_min": st.integers(0, 32),
            "speakers_max": st.integers(32, 64),
        },
    ),
    StageKind.ANALYZE: st.one_of(
        st.fixed_dictionaries(
            {"template": st.sampled_from(stages.TEMPLATES)},
            optional={
                "tokens_max": st.integers(1, 32_768),
                "variables": st.dictionaries(WORDS, TEXT, max_size=3),
                "overflow": st.sampled_from(get_args(stages.Overflow)),
                "mode": st.sampled_from(get_args(stages.PieceMode)),
                "overlap_turns": st.integers(0, 50),
            },
        ),
        st.fixed_dictionaries({"template_text": WORDS}),
        st.fixed_dictionaries(
            {"prompt": WORDS}, optional={"seed": INT32, "tokens_max": st.integers(1, 32_768)}
        ),
    ),
}
INPUTS = st.one_of(
    st.builds(InputRef, artifact=WORDS),
    st.builds(InputRef, job=WORDS, role=st.sampled_from(["target", "residual", "transcript"])),
)
FAILURES = st.builds(
    Failure,
    TEXT,
    TEXT,
    st.dictionaries(TEXT, TEXT, max_size=3).map(lambda numbers: tuple(sorted(numbers.items()))),
)
KINDS = st.sampled_from(StageKind)


def canonical(kind: StageKind, values: dict[str, Any]) -> dict[str, Any]:
    return stages.parse(kind, values).model_dump()


@st.composite
def stage_requests(draw: st.DrawFn) -> StageRequest:
    kind = draw(KINDS)
    return StageRequest(kind, draw(PARAMETERS[kind]), draw(st.none() | INPUTS))


@st.composite
def job_stages(draw: st.DrawFn) -> Stage:
    kind = draw(KINDS)
    built = draw(
        st.builds(
            Stage,
            kind=st.just(kind),
            parameters_json=PARAMETERS[kind].map(json.dumps),
            input=st.just(InputRef()) | INPUTS,
            duration_ms=INT64,
            state=st.sampled_from(StageState),
            attempt_count=INT32,
            ready_ms=INT64,
            wait_ms=INT64,
            load_ms=INT64,
            run_ms=INT64,
            predicted_peak_bytes=INT64,
            measured_peak_bytes=INT64,
            option=TEXT,
            quality_tier=INT32,
            evicted=TEXTS,
            waited_for=TEXTS,
            outputs=st.lists(st.builds(Output, TEXT, TEXT, TEXT), max_size=3).map(tuple),
            notes=TEXTS,
            failure=st.none() | FAILURES,
        )
    )
    return built


SNAPSHOTS = st.builds(
    JobSnapshot,
    job=st.builds(
        Job,
        name=TEXT,
        request_id=TEXT,
        priority=st.sampled_from(Priority),
        arrival_ms=INT64,
        stages=st.lists(job_stages(), max_size=3).map(tuple),
        title=TEXT,
        state=st.sampled_from(JobState),
        finished_ms=INT64,
        failure=st.none() | FAILURES,
    ),
    progress=st.none() | st.builds(Progress, INT32, INT64, INT64, TEXT),
    waiting_for=TEXT,
)


def with_canonical_parameters(snapshot: JobSnapshot) -> JobSnapshot:
    changed = tuple(
        replace(
            stage,
            # a map on the wire has no order
            parameters_json=json.dumps(
                canonical(stage.kind, json.loads(stage.parameters_json)), sort_keys=True
            ),
        )
        for stage in snapshot.job.stages
    )
    return replace(snapshot, job=replace(snapshot.job, stages=changed))


@given(SNAPSHOTS)
def test_job_comes_back_the_same_through_bytes(snapshot: JobSnapshot) -> None:
    data = convert.job_to_wire(snapshot).SerializeToString()
    back = convert.job_from_wire(job_pb2.Job.FromString(data))
    assert with_canonical_parameters(back) == with_canonical_parameters(snapshot)


@given(
    st.builds(
        JobRequest,
        request_id=TEXT,
        stages=st.lists(stage_requests(), max_size=3).map(tuple),
        source=st.none() | INPUTS,
        priority=st.sampled_from(Priority).map(int),
        title=TEXT,
    )
)
def test_request_comes_back_the_same(request: JobRequest) -> None:
    back = convert.job_request_from_wire(convert.job_request_to_wire(request))
    assert replace(back, stages=()) == replace(request, stages=())
    for received, sent in zip(back.stages, request.stages, strict=True):
        assert (received.kind, received.input) == (sent.kind, sent.input)
        assert canonical(received.kind, received.parameters) == canonical(
            sent.kind, sent.parameters
        )


@given(
    st.builds(
        Artifact,
        name=TEXT,
        kind=st.sampled_from(["audio", "transcript", "file"]),
        media_type=TEXT,
        filename=TEXT,
        size_bytes=INT64,
        sha256=TEXT,
        created_ms=INT64,
        job=TEXT,
        audio=st.none() | st.builds(AudioFacts, INT64, INT32, INT32, TEXT),
    )
)
def test_artifact_comes_back_the_same(artifact: Artifact) -> None:
    assert convert.artifact_from_wire(convert.artifact_to_wire(artifact)) == artifact


@given(
    st.builds(
        GpuSnapshot,
        device=TEXT,
        device_name=TEXT,
        capacity_bytes=INT64,
        headroom_bytes=INT64,
        reserved_bytes=INT64,
        measured_bytes=INT64,
        other_bytes=INT64,
        lines=st.lists(
            st.builds(
                LedgerLine,
                st.sampled_from(EngineName),
                TEXT,
                INT64,
                st.sampled_from(["reserved", "committed", "releasing"]),
            ),
            max_size=3,
        ).map(tuple),
        engines=st.lists(
            st.builds(
                EngineView,
                engine=st.sampled_from(EngineName),
                state=st.sampled_from(names.ENGINE_STATE.known()),
                model=TEXT,
                option=TEXT,
                quality_tier=INT32,
                pid=INT32,
                job=TEXT,
                predicted_bytes=INT64,
                measured_bytes=INT64,
                options=TEXTS,
                failure=TEXT,
            ),
            max_size=3,
        ).map(tuple),
        queued_count=INT32,
        running_count=INT32,
        warnings=TEXTS,
    )
)
def test_gpu_comes_back_the_same(snapshot: GpuSnapshot) -> None:
    assert convert.gpu_from_wire(convert.gpu_to_wire(snapshot)) == snapshot


def test_engine_states_on_the_wire_are_those_of_the_interface() -> None:
    documented = "not_configured unavailable stopped starting started loading loaded running"
    rest = {"paused", "unloading", "stopping", "unspecified"}
    assert set(names.ENGINE_STATE.known()) == {*documented.split(), *rest}


def test_state_that_the_wire_lacks_is_unspecified_not_an_error() -> None:
    snapshot = busy_gpu()
    odd = replace(snapshot, engines=(EngineView(EngineName.ANALYSIS, "dreaming"),))
    message = convert.gpu_to_wire(odd)
    assert message.engines[0].state == gpu_pb2.EngineStatus.STATE_UNSPECIFIED


@pytest.mark.parametrize("number", [4, 99, -1])
def test_priority_out_of_range_is_refused_with_the_number(number: int) -> None:
    message = job_pb2.CreateJobRequest(job=job_pb2.Job(priority=number))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput) as caught:
        convert.job_request_from_wire(message)
    assert caught.value.reason == "PRIORITY_UNKNOWN"
    assert caught.value.numbers == {"priority": str(number), "known": "1, 2, 3"}


def test_priority_out_of_range_is_refused_before_it_is_sent() -> None:
    with pytest.raises(InvalidInput, match="priority 7"):
        convert.job_request_to_wire(JobRequest("r", (), priority=7))


def test_priority_left_out_is_normal() -> None:
    request = convert.job_request_from_wire(job_pb2.CreateJobRequest())
    assert request.priority == Priority.NORMAL


def test_stage_without_parameters_is_refused() -> None:
    message = job_pb2.CreateJobRequest(job=job_pb2.Job(stages=[job_pb2.Stage()]))
    with pytest.raises(InvalidInput) as caught:
        convert.job_request_from_wire(message)
    assert caught.value.reason == "STAGE_EMPTY"


def test_unknown_parameter_is_refused_before_it_is_sent() -> None:
    request = JobRequest("r", (StageRequest(StageKind.SEPARATE, {"promt": "a dog"}),))
    with pytest.raises(InvalidInput) as caught:
        convert.job_request_to_wire(request)
    assert caught.value.reason == "PARAMETER_INVALID"


@pytest.mark.parametrize("filename", ["../etc/passwd", "a/b", "..", ".", "a\0b", "x" * 256])
def test_filename_that_names_a_folder_is_refused(filename: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        convert.label_from_wire(artifact_pb2.ArtifactMetadata(filename=filename))
    assert caught.value.reason == "FILENAME_INVALID"


def test_upload_without_a_kind_is_audio() -> None:
    label = convert.label_from_wire(artifact_pb2.ArtifactMetadata(filename="a.wav"))
    assert label == convert.FileLabel("audio", "", "a.wav")


def test_upload_of_unknown_kind_is_refused() -> None:
    metadata = artifact_pb2.ArtifactMetadata(kind=9)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput) as caught:
        convert.label_from_wire(metadata)
    assert caught.value.reason == "KIND_UNKNOWN"
    with pytest.raises(InvalidInput):
        convert.label_to_wire(convert.FileLabel("movie", "", "a.mov"))


def test_real_time_factor_is_absent_where_it_means_nothing() -> None:
    stage = Stage(StageKind.TRANSCRIBE, "{}", InputRef(artifact="a"), duration_ms=4000, run_ms=1000)
    assert convert.real_time_factor(stage) == 0.25
    assert convert.real_time_factor(replace(stage, duration_ms=0)) is None
    assert convert.real_time_factor(replace(stage, run_ms=0)) is None
