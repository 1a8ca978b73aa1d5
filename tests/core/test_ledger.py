import pytest
from hypothesis import given
from hypothesis import strategies as st

from coscheduler.core.ledger import Ledger, Part, ReservationState
from coscheduler.core.model import EngineName, Line, LineBytes, Lines
from coscheduler.errors import LedgerRefusal

KEY = (EngineName.ANALYSIS, Part.RESIDENT)


def lines(size: int) -> Lines:
    return (LineBytes(Line.WEIGHTS, size),)


def test_refuses_what_does_not_fit_and_changes_nothing() -> None:
    ledger = Ledger(100)
    ledger.reserve(KEY, lines(60))
    with pytest.raises(LedgerRefusal) as refusal:
        ledger.reserve((EngineName.ANALYSIS, Part.RUN), lines(41))
    assert refusal.value.numbers == {
        "required_bytes": "41", "free_bytes": "40", "capacity_bytes": "100",
    }  # fmt: skip
    assert ledger.used_bytes == 60
    ledger.reserve((EngineName.ANALYSIS, Part.RUN), lines(40))
    assert ledger.free_bytes == 0


def test_releasing_is_still_charged_until_it_is_dropped() -> None:
    ledger = Ledger(100)
    ledger.reserve(KEY, lines(60))
    ledger.commit(KEY)
    ledger.begin_release(KEY)
    assert (ledger.used_bytes, ledger.releasing_bytes, ledger.free_bytes) == (60, 60, 40)
    ledger.drop(*KEY)
    assert (ledger.used_bytes, ledger.free_bytes) == (0, 100)


@pytest.mark.parametrize("steps", [["begin_release"], ["commit", "commit"], ["commit", "reserve"]])
def test_steps_out_of_order_are_refused(steps: list[str]) -> None:
    ledger = Ledger(100)
    ledger.reserve(KEY, lines(1))
    *before, last = steps
    for step in before:
        getattr(ledger, step)(KEY)
    entries = ledger.entries()
    with pytest.raises(LedgerRefusal):
        ledger.reserve(KEY, lines(1)) if last == "reserve" else getattr(ledger, last)(KEY)
    assert ledger.entries() == entries


def test_what_was_never_reserved_cannot_be_committed() -> None:
    with pytest.raises(LedgerRefusal, match="holds no"):
        Ledger(1).commit(KEY)


def test_a_lowered_capacity_gives_nothing_out_and_says_by_how_much_it_is_exceeded() -> None:
    ledger = Ledger(100)
    ledger.reserve(KEY, lines(80))
    ledger.set_capacity(50)
    assert (ledger.free_bytes, ledger.overdraft_bytes) == (0, 30)
    with pytest.raises(LedgerRefusal):
        ledger.reserve((EngineName.ANALYSIS, Part.RUN), lines(1))
    ledger.resize(KEY, lines(70))  # shrinking is always allowed
    assert ledger.overdraft_bytes == 20


@given(st.lists(st.tuples(st.sampled_from(list(EngineName)), st.sampled_from(list(Part)),
                          st.integers(0, 60), st.integers(0, 3)), max_size=60))  # fmt: skip
def test_the_sum_of_reservations_never_exceeds_the_capacity(
    steps: list[tuple[EngineName, Part, int, int]],
) -> None:
    ledger = Ledger(100)
    for engine, part, size, action in steps:
        try:
            if action == 0:
                ledger.reserve((engine, part), lines(size))
            elif action == 1:
                ledger.resize((engine, part), lines(size))
            elif action == 2:
                ledger.commit((engine, part))
            else:
                ledger.drop(engine, part)
        except LedgerRefusal:
            pass
        by_hand = sum(entry.bytes for entry in ledger.entries().values())
        assert by_hand == ledger.used_bytes <= 100
        assert ledger.free_bytes == 100 - by_hand


def test_states_are_shown() -> None:
    ledger = Ledger(10)
    ledger.reserve(KEY, lines(1))
    assert ledger.entries()[KEY].state is ReservationState.RESERVED
    assert ledger.bytes_of(KEY[0]) == 1
    assert ledger.drop(KEY[0]) == 1
