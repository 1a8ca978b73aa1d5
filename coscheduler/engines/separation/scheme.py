"""Numbers of the computation that need no tensor library: steps of the ODE, pieces at a time."""

from dataclasses import dataclass

STEPS = 16
EVALUATIONS = 2 * STEPS  # of the midpoint rule
WATERMARK = "watermark"  # the segment that is not always there


@dataclass(frozen=True)
class Limits:
    """How much of a recording is on the device at once, in latent frames."""

    window_frames: int
    encode_tile_frames: int
    decode_tile_frames: int
