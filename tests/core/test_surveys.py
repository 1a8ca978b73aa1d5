"""Finding out what an engine is takes memory that is in the ledger while it lasts."""

from dataclasses import replace

import pytest

from coscheduler.core import events as ev
from coscheduler.core.commands import Describe
from coscheduler.core.engine_state import Phase
from coscheduler.core.ledger import Part
from coscheduler.core.model import EngineName, Failure
from coscheduler.core.scheduler import Scheduler
from tests.core.build import description, job, limits, option

S, T, A = EngineName.SEPARATION, EngineName.TRANSCRIPTION, EngineName.ANALYSIS
BROKEN = Failure("MODEL_CORRUPT", "it is cut short")


def scheduler_of(capacity: int) -> Scheduler:
    return Scheduler(capacity, tuple(EngineName), limits())


def test_the_survey_is_charged_until_the_answer_has_come() -> None:
    scheduler = scheduler_of(1000)
    assert scheduler.handle(ev.EngineAdded(A, 300), 1).commands == (Describe(A),)
    assert scheduler.ledger.bytes_of(A, Part.SURVEY) == 300
    found = replace(description(A), survey_bytes=120)
    outcome = scheduler.handle(ev.Described(A, found), 2)
    assert scheduler.ledger.used_bytes == 0
    assert outcome.decisions == ("analysis is known: its survey took 120 of 300 bytes",)
    assert scheduler.engines[A].phase is Phase.STOPPED


def test_a_failed_survey_gives_its_bytes_back() -> None:
    scheduler = scheduler_of(1000)
    scheduler.handle(ev.EngineAdded(A, 300), 1)
    scheduler.handle(ev.DescribeFailed(A, BROKEN), 2)
    assert scheduler.ledger.used_bytes == 0
    assert scheduler.engines[A].failure == BROKEN
    assert scheduler.handle(ev.Ticked(), 3).commands == ()


@pytest.mark.parametrize("size", [0, 300])
def test_an_engine_is_asked_once(size: int) -> None:
    scheduler = scheduler_of(1000)
    assert scheduler.handle(ev.EngineAdded(A, size), 1).commands == (Describe(A),)
    assert scheduler.handle(ev.Ticked(), 2).commands == ()


def test_a_survey_waits_for_memory() -> None:
    scheduler = scheduler_of(400)
    scheduler.handle(ev.EngineAdded(T, 300), 1)
    assert scheduler.handle(ev.EngineAdded(A, 300), 2).commands == ()
    assert scheduler.engines[A].phase is Phase.UNDESCRIBED
    assert scheduler.handle(ev.Described(T, description(T)), 3).commands == (Describe(A),)


def test_a_load_waits_for_a_survey() -> None:
    scheduler = scheduler_of(400)
    scheduler.handle(ev.EngineAdded(A, 300), 1)
    scheduler.handle(ev.Described(S, description(S, option(weights=200))), 2)
    assert scheduler.handle(ev.Submitted(job()), 3).commands == ()
    commands = scheduler.handle(ev.Described(A, description(A)), 4).commands
    assert [type(command).__name__ for command in commands] == ["Load"]


def test_a_budget_below_the_survey_is_said_and_a_larger_one_helps() -> None:
    scheduler = scheduler_of(200)
    outcome = scheduler.handle(ev.EngineAdded(A, 300), 1)
    failure = scheduler.engines[A].failure
    assert outcome.commands == () and failure is not None
    assert failure.reason == "NEVER_FITS"
    assert "300 bytes and the whole budget is 200" in failure.message
    assert scheduler.handle(ev.Ticked(), 2).decisions == ()  # said once
    assert scheduler.handle(ev.CapacityChanged(500, 500), 3).commands == (Describe(A),)
    assert scheduler.engines[A].phase is Phase.UNDESCRIBED


def test_other_programs_only_delay_a_survey() -> None:
    scheduler = scheduler_of(1000)
    scheduler.handle(ev.CapacityChanged(100, 1000), 1)
    scheduler.handle(ev.EngineAdded(A, 300), 2)
    assert scheduler.engines[A].phase is Phase.UNDESCRIBED
    assert scheduler.handle(ev.CapacityChanged(1000, 1000), 3).commands == (Describe(A),)
