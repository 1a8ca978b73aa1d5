"""Spans to frames, with upstream's rounding and Python's slices."""

import pytest

from coscheduler.engines.separation.anchors import Span, align, frame_at

RATE, HOP = 48_000, 1920


@pytest.mark.parametrize(
    ("seconds", "frame"),
    [(0.0, 0), (0.04, 1), (0.041, 2), (0.2, 5), (0.28, 8), (0.68, 18), (-0.1, -2)],
)
def test_a_time_becomes_the_frame_that_upstream_finds(seconds: float, frame: int) -> None:
    assert frame_at(seconds, RATE, HOP) == frame


def test_without_spans_every_frame_is_null_and_padding_is_pad() -> None:
    aligned = align([4, 2], [[], []], RATE, HOP)
    assert aligned.ids == [[0, 3], [0, 3]]
    assert aligned.alignment == [[0, 0, 0, 0], [0, 0, 1, 1]]
    assert aligned.frame_mask == [[True] * 4, [True, True, False, False]]
    assert aligned.frame_ids() == [[0, 0, 0, 0], [0, 0, 3, 3]]


def test_a_later_span_overwrites_an_earlier_one() -> None:
    spans = [Span("+", 0.0, 0.16), Span("-", 0.08, 0.12)]
    aligned = align([5], [spans], RATE, HOP)
    assert aligned.ids == [[0, 3, 1, 2]]
    assert aligned.alignment == [[2, 2, 3, 2, 0]]
    assert aligned.frame_ids() == [[1, 1, 2, 1, 0]]


def test_ends_beyond_the_recording_are_cut_and_empty_spans_mark_nothing() -> None:
    spans = [Span("+", 0.08, 99.0), Span("-", 0.1, 0.1), Span("+", 0.04, 0.0)]
    assert align([4], [spans], RATE, HOP).alignment == [[0, 0, 2, 2]]


def test_rows_with_fewer_spans_are_filled_with_pad() -> None:
    aligned = align([2, 2], [[Span("+", 0, 1)], []], RATE, HOP)
    assert aligned.ids == [[0, 3, 1], [0, 3, 3]]


def test_an_unknown_token_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        align([2], [[Span("?", 0, 1)]], RATE, HOP)
