"""The options of SAM-Audio as they are offered: bytes by line, estimated times. No tensor library.

In each precision all layers of the transformer stay, or fewer and fewer of them, and the others are
streamed through slots in every pass: the same result, less memory, in more time.
"""

import json
import math
from dataclasses import dataclass

from coscheduler.core.model import Line, LineBytes, Option
from coscheduler.engines.separation import footprint
from coscheduler.engines.separation.config import ModelConfig
from coscheduler.engines.separation.scheme import EVALUATIONS, WATERMARK
from coscheduler.engines.streaming.order import (
    SLOTS,
    pass_time,
    residency_order,
    streamed,
    useful_counts,
)
from coscheduler.engines.streaming.segments import SegmentEntry

MIB = 1024 * 1024
PRECISIONS = ("float32", "bfloat16", "int8")  # best first
# After a fork with the libraries imported: thread pools and kernels; on CUDA the context itself.
CONTEXT_BYTES = {"cpu": 24 * MIB, "cuda": 600 * MIB}
COPY_BYTES_PER_MS = 1_000_000
# Into slots: one thread out of the page cache; a PCIe 3.0 link with 16 lanes from pinned memory.
LINK_BYTES_PER_MS = {"cpu": 4_000_000, "cuda": 12_000_000}
KEPT_STEPS = 8  # all layers stay, or so many eighths of them
CPU_FLOP_PER_MS_THREAD = 20_000_000
CUDA_FLOP_PER_MS = 10_000_000_000


@dataclass(frozen=True)
class Machine:
    """What runs it; the speeds that follow are estimates, refined by whoever measures."""

    device: str  # "cpu" or "cuda"
    threads: int
    pinned_max: int = 0  # bytes of the host's memory that may be page-locked
    link: int = 0  # bytes into slots in a millisecond; 0: LINK_BYTES_PER_MS

    @property
    def flop_per_ms(self) -> int:
        """Floating point operations in a millisecond."""
        return CUDA_FLOP_PER_MS if self.device == "cuda" else CPU_FLOP_PER_MS_THREAD * self.threads

    @property
    def link_bytes_per_ms(self) -> int:
        """How fast layers are copied while others are computed."""
        return self.link or LINK_BYTES_PER_MS[self.device]

    def pinned_bytes(self, streamed_bytes: int) -> int:
        """What is page-locked of so many streamed bytes."""
        return min(self.pinned_max, streamed_bytes) if self.device == "cuda" else 0

    def cohort(self, streamed_bytes: int, window_flop: int) -> int:
        """How many windows a pass over the layers serves: the smallest G for which computing hides
        copying, G * window_flop / flop_per_ms >= streamed_bytes / link; at least 1.

        `streamed_bytes` are copied in each pass, `window_flop` are its operations for one window.
        """
        copying = streamed_bytes * self.flop_per_ms
        return max(1, -(-copying // (self.link_bytes_per_ms * window_flop)))


@dataclass(frozen=True)
class Shape:
    """A model in one precision, as far as its sizes go."""

    config: ModelConfig
    segments: tuple[SegmentEntry, ...]
    text_encoder: footprint.TextEncoder

    @property
    def layers(self) -> list[SegmentEntry]:
        """Of the transformer, in order."""
        return [segment for segment in self.segments if footprint.is_layer(segment)]


def options(
    name: str, shape: Shape, index: int, precision: str, window_ms: int, machine: Machine
) -> tuple[Option, ...]:
    """The options of the model at `index` in a precision, most memory first."""
    return tuple(
        _option(name, shape, index, precision, window_ms, machine, kept)
        for kept in kept_counts(len(shape.layers))
    )


def kept_counts(count: int) -> tuple[int, ...]:
    """How many of `count` layers may stay, largest first: eighths, where that saves anything."""
    eighths = {count * step // KEPT_STEPS for step in range(KEPT_STEPS + 1)}
    return tuple(kept for kept in useful_counts(count, SLOTS) if kept in eighths)


def _option(
    name: str,
    shape: Shape,
    index: int,
    precision: str,
    window_ms: int,
    machine: Machine,
    kept: int,
) -> Option:
    config, segments, layers = shape.config, shape.segments, shape.layers
    staying = residency_order(len(layers))[:kept]
    layer_bytes = sum(layers[place].bytes for place in staying)
    others = [s for s in segments if not footprint.is_layer(s) and s.name != WATERMARK]
    outside = sum(segment.bytes for segment in others)
    streamed_bytes = sum(layer.bytes for layer in layers) - layer_bytes
    cohort = machine.cohort(streamed_bytes, footprint.layers_flop(config, segments, window_ms))
    settings = {"dtype": precision, "model": index, "cohort": cohort, "kept": kept}
    speed = machine.flop_per_ms
    run_ms = footprint.flop_per_second(config, segments) // speed + 1
    run_ms += _streaming_ms_per_second(shape, window_ms, machine, kept, cohort)
    lines = [LineBytes(Line.WEIGHTS, outside + layer_bytes)]
    if streamed_bytes:
        slots = SLOTS * max(layer.bytes for layer in layers)
        lines.append(LineBytes(Line.SLOTS, slots))
    return Option(
        name=name if kept == len(layers) else f"{name}:{kept}/{len(layers)}",
        resident=tuple(lines),
        run=footprint.run_lines(config, segments, shape.text_encoder, window_ms, cohort),
        quality_tier=len(PRECISIONS) * index + PRECISIONS.index(precision),
        # What is streamed must come from the disk once, too, before it is streamed at full speed.
        load_ms=(outside + layer_bytes + streamed_bytes) // COPY_BYTES_PER_MS + 1,
        run_ms_per_second=run_ms,
        slice_ms_max=footprint.slice_flop(config, segments, window_ms) // speed + 200,
        host_bytes=sum(s.bytes for s in segments) + machine.pinned_bytes(streamed_bytes),
        settings_json=json.dumps(settings),
        family=f"{index}/{precision}",
    )


def _streaming_ms_per_second(
    shape: Shape, window_ms: int, machine: Machine, kept: int, cohort: int
) -> int:
    """What streaming adds to a second of audio: the part of the copies that no computation hides,
    and on a processor the time of the core that copies. Windows overlap by a sixth.
    """
    count = len(shape.layers)
    if kept == count:
        return 0
    flop = footprint.layers_flop(shape.config, shape.segments, window_ms)
    compute = cohort * flop / count / machine.flop_per_ms
    transfer = max(layer.bytes for layer in shape.layers) / machine.link_bytes_per_ms
    added = pass_time(compute, transfer, streamed(count, kept), SLOTS) - count * compute
    if machine.device == "cpu":
        added += (count - kept) * transfer / machine.threads
    frames = footprint.limits(shape.config, window_ms).window_frames
    seconds = cohort * frames / shape.config.frame_rate_hz * 5 / 6
    return math.ceil(EVALUATIONS * added / seconds)


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
