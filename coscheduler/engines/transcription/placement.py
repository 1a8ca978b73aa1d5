"""What stays on the device from load to unload, and what is there only while it is in use.

Whisper, the aligners and the diarizer are components of their own. Speech detection always stays:
it is small, and every recording begins with it. The result is the same wherever they are.
"""

from dataclasses import dataclass
from enum import StrEnum


class Part(StrEnum):
    """What can come and go by itself."""

    WHISPER = "whisper"
    ALIGNERS = "aligners"
    DIARIZER = "diarizer"


@dataclass(frozen=True)
class Placement:
    """`in_use`: the parts that are on the device only while they are in use."""

    in_use: frozenset[Part] = frozenset()

    @property
    def label(self) -> str:
        """For names of options: "aligners and diarizer in use"; "" where all is held."""
        if Part.WHISPER in self.in_use:
            return "parked"
        named = " and ".join(part for part in Part if part in self.in_use)
        return f"{named} in use" if named else ""

    def holds(self, part: Part) -> bool:
        """Is it there from load to unload?"""
        return part not in self.in_use


HELD = Placement()


def placements(there: frozenset[Part], device: str) -> tuple[Placement, ...]:
    """The placements of the parts that there are, from most held to least.

    First the diarizer goes, which the fewest jobs want, then the aligners. On a card Whisper can go
    too: its weights wait in RAM. On the CPU they would be read and converted anew for every job.
    """
    small = there - {Part.WHISPER}
    steps = [frozenset[Part](), there & {Part.DIARIZER}, small]
    if device == "cuda":
        steps.append(there)
    return tuple(Placement(step) for step in dict.fromkeys(steps))
