"""Which layers stay in device memory, and what a pass over all of them takes. Pure.

One fixed order for each model: the bits of a layer's index, reversed (the van der Corput sequence).
The first k of it stay, for every k, so that they lie evenly between those that are streamed, and
one layer more or less moves one layer.
"""

from collections.abc import Sequence

SLOTS = 2  # worst overlap 1.09 of max(compute, transfer); a third one takes a layer more for 1.02
PASSES = 8  # that `pass_time` looks at: the first one fills the pipe, the others are alike


def residency_order(count: int) -> tuple[int, ...]:
    """All indices 0 .. count - 1; the first k are the ones to keep where there is room for k."""
    bits = max(1, (count - 1).bit_length())
    reversed_bits = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(1 << bits))
    return tuple(index for index in reversed_bits if index < count)


def resident(count: int, kept: int) -> frozenset[int]:
    """The layers that stay where there is room for `kept` of `count`."""
    return frozenset(residency_order(count)[:kept])


def useful_counts(count: int, slots: int) -> tuple[int, ...]:
    """The numbers of resident layers that are worth choosing, largest first.

    All, or so few that more layers are streamed than there are slots: between the two the slots
    would take as many bytes as the layers that they save.
    """
    return (count, *range(count - slots - 1, -1, -1))


def streamed(count: int, kept: int) -> tuple[bool, ...]:
    """For each layer whether it is streamed where `kept` of `count` stay."""
    staying = resident(count, kept)
    return tuple(index not in staying for index in range(count))


def pass_time(compute: float, transfer: float, is_streamed: Sequence[bool], slots: int) -> float:
    """Time of one pass of many over layers that take `compute` each, of which the streamed ones are
    copied in `transfer` each, one after the other, into `slots` slots. In any unit of time.

    A copy begins when its slot was last read, a layer when it is there.
    """
    if sum(is_streamed) <= slots:
        return len(is_streamed) * compute
    copied = now = 0.0
    ends = [0.0] * slots  # when the layers in the slots were computed, the oldest first
    passes = []
    for _ in range(PASSES):
        for waits in is_streamed:
            if waits:
                copied = max(copied, ends.pop(0)) + transfer
                now = max(now, copied)
            now += compute
            if waits:
                ends.append(now)
        passes.append(now)
    return (passes[-1] - passes[0]) / (PASSES - 1)
