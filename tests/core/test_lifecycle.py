from dataclasses import replace
from itertools import product

import pytest

from coscheduler.core.lifecycle import TRANSITIONS, IllegalTransition, JobEvent, advance, recover
from coscheduler.core.model import JobState, StageKind, StageState
from tests.core.build import job


@pytest.mark.parametrize(("state", "event"), list(product(JobState, JobEvent)))
def test_every_pair_is_in_the_table_or_raises(state: JobState, event: JobEvent) -> None:
    if (state, event) in TRANSITIONS:
        assert advance(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalTransition):
            advance(state, event)


def test_final_states_have_no_way_out_and_all_others_have_one() -> None:
    for state in JobState:
        ways = [target for (source, _), target in TRANSITIONS.items() if source is state]
        assert bool(ways) is not state.is_final


def test_a_stage_in_flight_is_pending_after_a_restart() -> None:
    running = job("jobs/1", StageKind.SEPARATE, StageKind.TRANSCRIBE)
    done, at_work = running.stages
    running = replace(
        running,
        state=JobState.RUNNING,
        stages=(
            replace(done, state=StageState.SUCCEEDED),
            replace(at_work, state=StageState.RUNNING, attempt_count=2),
        ),
    )
    again = recover(running)
    assert [stage.state for stage in again.stages] == [StageState.SUCCEEDED, StageState.PENDING]
    assert again.stages[1].attempt_count == 2
    assert again.state is JobState.RUNNING


def test_a_cancel_under_way_is_complete_after_a_restart() -> None:
    cancelling = job()
    cancelling = replace(
        cancelling,
        state=JobState.CANCELLING,
        stages=(replace(cancelling.stages[0], state=StageState.RUNNING),),
    )
    again = recover(cancelling)
    assert again.state is JobState.CANCELLED
    assert again.stages[0].state is StageState.CANCELLED
