"""The order in which layers stay: nested, even, and close to the best overlap for every budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coscheduler.engines.streaming.order import (
    pass_time,
    residency_order,
    resident,
    streamed,
    useful_counts,
)

COUNTS = (12, 16, 22, 24, 32, 40, 57)


def test_the_order_is_that_of_reversed_bits() -> None:
    assert residency_order(8) == (0, 4, 2, 6, 1, 5, 3, 7)
    assert residency_order(6) == (0, 4, 2, 1, 5, 3)
    assert residency_order(1) == (0,)


@given(st.integers(1, 300))
def test_every_layer_stands_in_the_order_once(count: int) -> None:
    assert sorted(residency_order(count)) == list(range(count))


@given(st.integers(1, 200), st.data())
def test_one_layer_more_moves_one_layer(count: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, count - 1))
    assert resident(count, kept) < resident(count, kept + 1)
    assert len(resident(count, kept)) == kept


def test_counts_between_all_and_the_slots_save_nothing() -> None:
    assert useful_counts(6, slots=2) == (6, 3, 2, 1, 0)
    assert useful_counts(2, slots=2) == (2,)


@pytest.mark.parametrize(("slots", "worst"), [(2, 1.09), (3, 1.02)])
def test_the_worst_overlap_of_all_budgets(slots: int, worst: float) -> None:
    """Against max(compute, transfer), for fast and slow links."""
    for count in COUNTS:
        for kept in useful_counts(count, slots)[1:]:
            for transfer in (0.75, 1.0, 1.5, 2.0, 4.0, 8.0):
                bound = max(count, (count - kept) * transfer)
                assert pass_time(1.0, transfer, streamed(count, kept), slots) <= worst * bound


def test_keeping_the_first_layers_instead_would_be_worse() -> None:
    leading = (False,) * 16 + (True,) * 16
    assert pass_time(1.0, 2.0, leading, 2) > 1.4 * 32
    assert pass_time(1.0, 2.0, streamed(32, 16), 2) < 1.05 * 32


def test_one_slot_hides_nothing() -> None:
    assert pass_time(1.0, 1.0, streamed(16, 0), 1) == pytest.approx(32.0)


def test_what_fits_the_slots_is_not_copied_again() -> None:
    assert pass_time(1.0, 50.0, streamed(16, 14), 2) == 16.0
