"""Cutting transcripts: nothing is lost, nothing is too long, the overlap is bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coscheduler.engines.analysis import pieces
from coscheduler.engines.analysis.transcript import Turn
from coscheduler.errors import EngineFault


def count(text: str) -> int:
    """A tokenizer of two characters a token."""
    return -(-len(text) // 2)


def tokens(turns: tuple[Turn, ...]) -> int:
    return sum(count(turn.line + "\n") for turn in turns)


words = st.text("abcdefgh ", min_size=1, max_size=400).filter(str.strip)
talks = st.lists(words, min_size=1, max_size=40).map(
    lambda texts: tuple(
        Turn(" ".join(text.split()), "ANNA", number) for number, text in enumerate(texts)
    )
)


@given(talks, st.integers(32, 300), st.integers(0, 5), st.integers(1, 10))
def test_every_word_is_in_a_piece_and_every_piece_fits(
    turns: tuple[Turn, ...], tokens_max: int, overlap: int, turns_max: int
) -> None:
    found = pieces.cut(turns, count, tokens_max, overlap, turns_max)
    assert all(tokens(piece.turns) <= tokens_max for piece in found)
    assert all(len(piece.turns) <= turns_max for piece in found)
    assert all(0 <= piece.repeated <= overlap for piece in found)
    new = [turn for piece in found for turn in piece.new]
    for turn in turns:
        parts = [part.text for part in new if part.number == turn.number]
        assert "".join(parts).replace(" ", "") == turn.text.replace(" ", "")
    assert [turn.number for turn in new] == sorted(turn.number for turn in new)


def test_what_is_repeated_is_the_end_of_the_piece_before() -> None:
    turns = tuple(Turn(f"word {number} and more", "B", number) for number in range(20))
    first, second, *_ = pieces.cut(turns, count, 100, 2)
    assert second.repeated == 2
    assert second.turns[:2] == first.turns[-2:]
    assert second.new[0].number == first.turns[-1].number + 1


def test_a_long_turn_is_cut_between_words() -> None:
    turn = Turn("We ship on friday and write the report. " * 10, "ANNA", 7, 100, 900)
    found = pieces.cut([turn], count, 60, 2)
    assert len(found) > 2
    for piece in found:
        assert all((part.number, part.start_ms) == (7, 100) for part in piece.turns)
        assert all(set(part.text.split()) <= set(turn.text.split()) for part in piece.turns)


def test_too_small_a_piece_is_refused_with_numbers() -> None:
    with pytest.raises(EngineFault) as caught:
        pieces.cut([Turn("a")], count, 31, 2)
    assert caught.value.reason == "PIECE_TOO_SMALL"
    assert caught.value.numbers == {"tokens_max": "31", "tokens_min": "32"}


@given(talks, st.integers(0, 2000))
def test_the_newest_turns_that_fit(turns: tuple[Turn, ...], tokens_max: int) -> None:
    older, newest = pieces.newest(turns, count, tokens_max)
    assert older + newest == turns
    assert tokens(newest) <= tokens_max
    assert not older or tokens(older[-1:] + newest) > tokens_max
