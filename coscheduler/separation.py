"""SAM-Audio as a library, without a daemon.

    from coscheduler.separation import SamAudio

    with SamAudio.load("models/sam-audio-small", memory_limit="4 GiB") as sam:
        recording = sam.encode("street.flac")
        dog = sam.separate(recording, "a dog barking", spans=["6.3-7.0"], candidates=4)
        rain = sam.separate(recording, "rain")

Needs the extra `separation` (torch). The daemon shares a device among engines; this takes what it
is given.
"""

from coscheduler.engines.separation.api import SamAudio, Separation
from coscheduler.engines.separation.recording import Recording

__all__ = ["Recording", "SamAudio", "Separation"]
