"""An option of SAM-Audio as it is offered: bytes by line, estimated times. No tensor library."""

import json
from dataclasses import dataclass

from coscheduler.core.model import Line, LineBytes, Option
from coscheduler.engines.separation import footprint
from coscheduler.engines.separation.config import ModelConfig
from coscheduler.engines.separation.scheme import WATERMARK
from coscheduler.engines.streaming.segments import SegmentEntry

MIB = 1024 * 1024
PRECISIONS = ("float32", "bfloat16", "int8")  # best first
# After a fork with the libraries imported: thread pools and kernels; on CUDA the context itself.
CONTEXT_BYTES = {"cpu": 24 * MIB, "cuda": 600 * MIB}
COPY_BYTES_PER_MS = 1_000_000
CPU_FLOP_PER_MS_THREAD = 20_000_000
CUDA_FLOP_PER_MS = 10_000_000_000


@dataclass(frozen=True)
class Machine:
    """What runs it; the speeds that follow are estimates, refined by whoever measures."""

    device: str  # "cpu" or "cuda"
    threads: int

    @property
    def flop_per_ms(self) -> int:
        """Floating point operations in a millisecond."""
        return CUDA_FLOP_PER_MS if self.device == "cuda" else CPU_FLOP_PER_MS_THREAD * self.threads

    def cohort(self, streamed_bytes: int, window_flop: int) -> int:
        """How many windows a pass over the layers serves: the smallest G for which computing hides
        copying, G * window_flop / flop_per_ms >= streamed_bytes / COPY_BYTES_PER_MS; at least 1.

        `streamed_bytes` are copied in each pass, `window_flop` are its operations for one window.
        """
        copying = streamed_bytes * self.flop_per_ms
        return max(1, -(-copying // (COPY_BYTES_PER_MS * window_flop)))


@dataclass(frozen=True)
class Shape:
    """A model in one precision, as far as its sizes go."""

    config: ModelConfig
    segments: tuple[SegmentEntry, ...]
    text_encoder: footprint.TextEncoder


def option(
    name: str, shape: Shape, index: int, precision: str, window_ms: int, machine: Machine
) -> Option:
    """The option of the model at `index` in a precision."""
    config, segments = shape.config, shape.segments
    kept = [s for s in segments if s.name != WATERMARK]
    resident = sum(s.bytes for s in kept)
    streamed = sum(s.bytes for s in segments if footprint.is_layer(s) and s not in kept)
    cohort = machine.cohort(streamed, footprint.layers_flop(config, segments, window_ms))
    work = footprint.flop_per_second(config, segments)
    speed = machine.flop_per_ms
    return Option(
        name=name,
        resident=(LineBytes(Line.WEIGHTS, resident),),
        run=footprint.run_lines(config, segments, shape.text_encoder, window_ms, cohort),
        quality_tier=len(PRECISIONS) * index + PRECISIONS.index(precision),
        load_ms=resident // COPY_BYTES_PER_MS + 1,
        run_ms_per_second=work // speed + 1,
        slice_ms_max=footprint.slice_flop(config, segments, window_ms) // speed + 200,
        host_bytes=sum(s.bytes for s in segments),
        settings_json=json.dumps({"dtype": precision, "model": index, "cohort": cohort}),
    )


def reason(chosen: Option, offered: tuple[Option, ...]) -> str:
    """Why this one of several, in a sentence; empty where it is the best there is."""
    better = [option for option in offered if option.quality_tier < chosen.quality_tier]
    if not better:
        return ""
    return (
        f"Option {chosen.name} ({peak(chosen)} MiB at its peak) is the best that fitted the "
        f"memory; {better[0].name} takes {peak(better[0])} MiB."
    )


def peak(option: Option) -> int:
    """MiB of a whole window and more, without the context."""
    return -(-option.peak_bytes(3_600_000) // MIB)
