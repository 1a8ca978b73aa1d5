"""Cut a transcript into pieces that fit, at turns, by exact numbers of tokens.

A piece begins with the last turns of the one before it, so that what is said across the cut is
seen whole once. A turn that is longer than a piece is cut between words; its parts keep its number.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from coscheduler.engines.analysis.transcript import Turn
from coscheduler.errors import EngineFault

OVERLAP_SHARE = 4  # the turns said again take at most a quarter of a piece
PIECE_TOKENS_MIN = 32
TURNS_MAX = 2**31

Count = Callable[[str], int]


@dataclass(frozen=True)
class Piece:
    """Some turns in a row; the first `repeated` of them are also the end of the piece before."""

    turns: tuple[Turn, ...]
    repeated: int = 0

    @property
    def new(self) -> tuple[Turn, ...]:
        """The turns that no piece before it has."""
        return self.turns[self.repeated :]


def cut(
    turns: Sequence[Turn],
    count: Count,
    tokens_max: int,
    overlap_turns: int,
    turns_max: int = TURNS_MAX,
) -> tuple[Piece, ...]:
    """Pieces of at most `tokens_max` tokens and `turns_max` turns that hold all turns in order.

    `count` says how many tokens a text has. Raises EngineFault PIECE_TOO_SMALL.
    """
    if tokens_max < PIECE_TOKENS_MIN:
        raise EngineFault(
            "PIECE_TOO_SMALL",
            f"{tokens_max} tokens are left for a piece of the transcript; it needs "
            f"{PIECE_TOKENS_MIN} at least: ask for a shorter answer",
            tokens_max=tokens_max,
            tokens_min=PIECE_TOKENS_MIN,
        )
    pieces: list[Piece] = []
    current: list[tuple[Turn, int]] = []
    used = repeated = 0
    for turn, tokens in _sized(turns, count, tokens_max):
        if current and (used + tokens > tokens_max or len(current) == turns_max):
            pieces.append(Piece(tuple(turn for turn, _ in current), repeated))
            room = min(tokens_max // OVERLAP_SHARE, tokens_max - tokens)
            current = _overlap(current[repeated:], min(overlap_turns, turns_max - 1), room)
            used, repeated = sum(size for _, size in current), len(current)
        current.append((turn, tokens))
        used += tokens
    if current:
        pieces.append(Piece(tuple(turn for turn, _ in current), repeated))
    return tuple(pieces)


def newest(
    turns: Sequence[Turn], count: Count, tokens_max: int
) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
    """(older, newest): as many turns from the end as have at most `tokens_max` tokens in all."""
    used = 0
    for index in range(len(turns) - 1, -1, -1):
        used += _tokens(turns[index], count)
        if used > tokens_max:
            return tuple(turns[: index + 1]), tuple(turns[index + 1 :])
    return (), tuple(turns)


def _overlap(
    turns: Sequence[tuple[Turn, int]], overlap_turns: int, room: int
) -> list[tuple[Turn, int]]:
    """The last turns, at most so many and of at most `room` tokens."""
    kept: list[tuple[Turn, int]] = []
    for turn, tokens in reversed(turns[-overlap_turns:] if overlap_turns else []):
        room -= tokens
        if room < 0:
            break
        kept.append((turn, tokens))
    return kept[::-1]


def _sized(turns: Sequence[Turn], count: Count, tokens_max: int) -> Iterator[tuple[Turn, int]]:
    """Each turn with its tokens, none of more than `tokens_max`."""
    for turn in turns:
        for part in _parts(turn, count, tokens_max):
            yield part, _tokens(part, count)


def _parts(turn: Turn, count: Count, tokens_max: int) -> Iterator[Turn]:
    """The turn, halved at a space (or anywhere, where there is none) until each part fits."""
    if _tokens(turn, count) <= tokens_max:
        yield turn
        return
    if len(turn.text) < 2:  # the speaker's name alone is too long
        yield replace(turn, speaker="")
        return
    middle = len(turn.text) // 2
    space = turn.text.rfind(" ", 1, middle + 1)
    at = space if space > 0 else middle
    for text in (turn.text[:at], turn.text[at:]):
        yield from _parts(replace(turn, text=text.strip() or text), count, tokens_max)


def _tokens(turn: Turn, count: Count) -> int:
    return count(turn.line + "\n")
