"""How a transcript is counted against what was said."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
from numpy.typing import NDArray

from train import sentences
from train.meetings import Turn
from train.speech import Word

_STEP_SECONDS = 0.01


@dataclass(frozen=True)
class WordErrors:
    """Words substituted, left out and put in, over the words that were said."""

    errors: int
    words: int

    def __add__(self, other: "WordErrors") -> "WordErrors":
        return WordErrors(self.errors + other.errors, self.words + other.words)

    @property
    def rate(self) -> float:
        """May be above 1; 0 where nothing was said."""
        return self.errors / self.words if self.words else 0.0


def word_errors(said: str, written: str) -> WordErrors:
    """The least number of edits (Levenshtein) of words, case and punctuation aside."""
    reference, found = (sentences.normalised(text).split() for text in (said, written))
    costs = list(range(len(found) + 1))
    for row, word in enumerate(reference, start=1):
        diagonal, costs[0] = costs[0], row
        for column, other in enumerate(found, start=1):
            best = min(costs[column] + 1, costs[column - 1] + 1, diagonal + (word != other))
            diagonal, costs[column] = costs[column], best
    return WordErrors(costs[-1], len(reference))


def start_errors_ms(said: Sequence[Word], written: Sequence[Word]) -> list[float]:
    """How far the starts of the words that were recognised are off, in ms, without the sign."""
    reference, found = (
        [sentences.normalised(word.text) for word in words] for words in (said, written)
    )
    blocks = SequenceMatcher(None, reference, found, autojunk=False).get_matching_blocks()
    return [
        1000 * abs(said[block.a + index].start - written[block.b + index].start)
        for block in blocks
        for index in range(block.size)
    ]


@dataclass(frozen=True)
class Label:
    """A stretch that a diarization gives to a speaker, in seconds."""

    start: float
    end: float
    speaker: str


def speaker_error(turns: Sequence[Turn], labels: Sequence[Label]) -> float:
    """Share of the time in which words are spoken that has another speaker or none.

    Names of speakers are matched with the people as a whole, in the way that errs least. In steps
    of 10 ms, without tolerance at the borders.
    """
    words = [(word, turn.speaker) for turn in turns for word in turn.words]
    count = round(max(word.end for word, _ in words) / _STEP_SECONDS) + 1
    said = np.full(count, -1)
    for word, speaker in words:
        said[_steps(word.start, word.end, count)] = speaker
    names = sorted({label.speaker for label in labels})
    found = np.full(count, -1)
    for label in labels:
        found[_steps(label.start, label.end, count)] = names.index(label.speaker)
    people = sorted(set(said) - {-1})
    hits = np.array(
        [[np.sum((said == p) & (found == n)) for n in range(len(names))] for p in people]
    )
    return 1.0 - _best_match(hits) / int(np.sum(said >= 0))


def _steps(start: float, end: float, count: int) -> slice:
    return slice(min(count, round(start / _STEP_SECONDS)), min(count, round(end / _STEP_SECONDS)))


def _best_match(hits: NDArray[np.int64]) -> int:
    """The greatest sum of entries of which no two share a row or a column."""
    if hits.size == 0:
        return 0
    wide = hits if hits.shape[0] <= hits.shape[1] else hits.T
    columns = itertools.permutations(range(wide.shape[1]), wide.shape[0])
    return max(sum(int(wide[row, column]) for row, column in enumerate(c)) for c in columns)
