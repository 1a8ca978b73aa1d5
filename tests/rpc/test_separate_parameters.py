"""What a separation may be asked for, from the client's plan through the wire and back."""

from typing import Any

import pytest

from coscheduler import stages
from coscheduler.client import Plan
from coscheduler.core.model import StageKind
from coscheduler.errors import InvalidInput
from coscheduler.rpc import convert
from coscheduler.v1 import job_pb2

FULL = {
    "prompt": "a dog barking",
    "seed": 2**62,
    "spans": [
        {"sign": "+", "start_ms": 6300, "end_ms": 7000},
        {"sign": "-", "start_ms": 0, "end_ms": 40},
    ],
    "candidates": 4,
    "ranking": "consistency",
    "redraws_max": 0,
    "residual": "mixture-minus-target",
    "watermark": False,
    "sample_rate_hz": 44_100,
}  # fmt: skip


def there_and_back(plan: Plan) -> dict[str, Any]:
    """The parameters of the first stage after a trip as bytes."""
    message = convert.job_request_to_wire(plan.request("artifacts/1", "x"))
    arrived = job_pb2.CreateJobRequest.FromString(message.SerializeToString())
    stage = convert.job_request_from_wire(arrived).stages[0]
    return stages.parse(stage.kind, stage.parameters).model_dump(mode="json")


@pytest.mark.parametrize(
    "changes", [{}, {"redraws_max": 3}, {"residual": "generated"}, {"watermark": True}]
)
def test_everything_arrives(changes: dict[str, Any]) -> None:
    wanted = {**FULL, **changes}
    further = {key: value for key, value in wanted.items() if key != "prompt"}
    assert there_and_back(Plan("a dog barking", separation=further)) == wanted


def test_what_is_left_out_has_the_defaults_of_the_stage() -> None:
    defaults = stages.parse(StageKind.SEPARATE, {"prompt": "x"}).model_dump(mode="json")
    assert there_and_back(Plan("x")) == defaults


def test_spans_may_be_text() -> None:
    found = there_and_back(Plan("x", separation={"spans": ["6.3-7.0", "-0-0.04"]}))
    assert found["spans"] == FULL["spans"]


def test_a_span_without_a_sign_on_the_wire_means_that_the_sound_is_there() -> None:
    message = job_pb2.SeparateParameters(prompt="x")
    message.spans.add(start_ms=5, end_ms=9)
    request = job_pb2.CreateJobRequest(job=job_pb2.Job(stages=[job_pb2.Stage(separate=message)]))
    (stage,) = convert.job_request_from_wire(request).stages
    assert stage.parameters["spans"][0]["sign"] == "+"


def test_a_plan_with_a_wrong_span_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(InvalidInput) as caught:
        Plan("x", separation={"spans": ["7-6"]}).request("artifacts/1", "x")
    assert caught.value.reason == "PARAMETER_INVALID"
