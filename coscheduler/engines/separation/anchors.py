"""Time spans as the model knows them: an id for every frame.

Ids: 0 "<null>" (no statement), 1 "+" (the sound is there), 2 "-" (it is not), 3 "<pad>". Upstream
keeps a list of ids for each row ([null, pad, one for each span]) and for each frame an index into
that list.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

TOKEN_IDS = {"<null>": 0, "+": 1, "-": 2, "<pad>": 3}
NULL_ID, PAD_ID = 0, 3
FIRST_SPAN = 2  # spans follow null and pad in the list of ids


@dataclass(frozen=True)
class Span:
    """A statement about the time from `start_s` to `end_s`. `token` is a key of TOKEN_IDS."""

    token: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Aligned:
    """Rows as upstream lays them out: ids [B][K], index into them [B][T], real frames [B][T]."""

    ids: list[list[int]]
    alignment: list[list[int]]
    frame_mask: list[list[bool]]

    def frame_ids(self) -> list[list[int]]:
        """The anchor id of every frame, [B][T]."""
        return [
            [ids[index] for index in row] for ids, row in zip(self.ids, self.alignment, strict=True)
        ]


def frame_at(seconds: float, sample_rate_hz: int, hop: int) -> int:
    """The first frame that starts at or after a time. The order of the operations decides about
    rounding (0.68 s is 18 at 48 kHz / 1920, not 17), so it is upstream's.
    """
    return math.ceil(seconds * sample_rate_hz / hop)


def align(
    sizes: Sequence[int],
    spans: Sequence[Sequence[Span]],
    sample_rate_hz: int,
    hop: int,
) -> Aligned:
    """Lay out rows of `sizes` frames, padded to the longest; later spans overwrite earlier ones.

    Raises KeyError for an unknown token. Times follow Python's slices: a negative one counts from
    the end of the padded row, an end beyond it is cut, an empty span marks nothing.
    """
    frames = max(sizes)
    ids = [[NULL_ID, PAD_ID, *(TOKEN_IDS[span.token] for span in row)] for row in spans]
    width = max(map(len, ids))
    alignment = []
    for size, row in zip(sizes, spans, strict=True):
        indices = [0] * size + [1] * (frames - size)
        for number, span in enumerate(row, FIRST_SPAN):
            start = frame_at(span.start_s, sample_rate_hz, hop)
            chosen = range(frames)[start : frame_at(span.end_s, sample_rate_hz, hop)]
            for frame in chosen:
                indices[frame] = number
        alignment.append(indices)
    mask = [[frame < size for frame in range(frames)] for size in sizes]
    return Aligned([row + [PAD_ID] * (width - len(row)) for row in ids], alignment, mask)
