"""Predicted device bytes of a separation, from shapes alone.

The phases follow one another and each gives its scratch back: the text encoder (layer by layer),
a codec tile on the way in, one window of the transformer, a codec tile on the way out, a tile of
the watermark. The constants were measured on the CPU; on CUDA the convolution library usually needs
less.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from coscheduler.core.model import Line, RunLine
from coscheduler.engines.separation.config import ModelConfig
from coscheduler.engines.separation.scheme import EVALUATIONS, WATERMARK, Limits
from coscheduler.engines.streaming.segments import SegmentEntry

MIB = 1024 * 1024
TILE_BYTES_MAX = 24 * MIB  # of the codec's widest tensor
TILE_FRAMES_MIN, TILE_FRAMES_MAX = 4, 25
LIVE_TILES = (
    6  # copies of the widest tensor at once: a residual unit's input, its padded input, two
)
# in the convolution library's own layout, the output, and the one that waits for the sum
LIVE_STREAMS = 11  # tensors of the residual stream's width at once, in the self attention
HEAP_BYTES = 20 * MIB  # tensors too small for a mapping of their own, decoder, tokenizer, kernels
SIGNALS = 2  # target and residual are decoded together


@dataclass(frozen=True)
class Widths:
    """Bytes of one latent frame in the widest tensor of the codec, float32, one signal."""

    encode: int
    decode: int


class TextEncoder(Protocol):
    """What counts of a T5 folder: its config, and what of its weights is in memory at once."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The fields of its config.json."""
        ...

    @property
    def segment(self) -> SegmentEntry:
        """A layer, and what all layers need."""
        ...


def widths(config: ModelConfig) -> Widths:
    """Channels times samples per frame, at the widest point of each direction."""
    codec = config.audio_codec
    samples, channels, encode = codec.hop, codec.encoder_dim, 0
    for rate in codec.encoder_rates:
        encode = max(encode, samples * channels)
        samples, channels = samples // rate, 2 * channels
    samples, channels, decode = 1, codec.decoder_dim, 0
    for rate in codec.decoder_rates:
        samples, channels = samples * rate, channels // 2
        decode = max(decode, samples * channels)
    return Widths(4 * encode, 4 * decode)


def limits(config: ModelConfig, window_ms: int) -> Limits:
    """Window and tiles in frames; a window longer than the model has positions for is cut."""
    window = int(window_ms * config.frame_rate_hz) // 1000
    wide = widths(config)
    return Limits(
        window_frames=max(1, min(window, config.transformer.max_positions)),
        encode_tile_frames=_tile_frames(wide.encode),
        decode_tile_frames=_tile_frames(SIGNALS * wide.decode),
    )


def _tile_frames(frame_bytes: int) -> int:
    return max(TILE_FRAMES_MIN, min(TILE_FRAMES_MAX, TILE_BYTES_MAX // frame_bytes))


def run_lines(
    config: ModelConfig,
    segments: tuple[SegmentEntry, ...],
    text_encoder: TextEncoder,
    window_ms: int,
    cohort: int = 1,
) -> tuple[RunLine, ...]:
    """What each phase holds beside the resident weights; only the windows grow with the length, up
    to a `cohort` of them.
    """
    chosen, wide = limits(config, window_ms), widths(config)
    encode = chosen.encode_tile_frames * wide.encode
    decode = SIGNALS * chosen.decode_tile_frames * wide.decode
    tokens = config.text_encoder.max_length
    prompt = prompt_workspace_bytes(text_encoder.config, tokens)
    stream = stream_bytes_per_frame(config, hidden_width(segments))
    seconds = math.ceil(chosen.window_frames / config.frame_rate_hz)
    watermark = next(s for s in segments if s.name == WATERMARK)
    mark = SIGNALS * chosen.decode_tile_frames * config.audio_codec.hop * _mark_bytes(watermark)
    reordered = {s.name: _largest_bytes(s) for s in segments}
    embedding = 12 * config.transformer.dim**2  # the kernel-3 convolutions before the layers
    embedding = max(embedding, unpacked_bytes(segments))
    return (
        RunLine(Line.WEIGHTS, text_encoder.segment.bytes, phase="text"),
        RunLine(Line.WORKSPACE, prompt + HEAP_BYTES, phase="text"),
        RunLine(Line.WORKSPACE, codec_bytes(encode, reordered["encoder"]), phase="encode"),
        RunLine(Line.WORKSPACE, embedding + HEAP_BYTES, phase="window"),
        RunLine(
            Line.HIDDEN_STATE,
            0,
            bytes_per_second=math.ceil(stream * config.frame_rate_hz),
            seconds_max=seconds,
            phase="window",
        ),
        *_waiting_windows(config, chosen.window_frames, cohort),
        RunLine(Line.WORKSPACE, codec_bytes(decode, reordered["decoder"]), phase="decode"),
        RunLine(Line.WEIGHTS, watermark.bytes, phase="mark"),
        RunLine(Line.WORKSPACE, codec_bytes(mark, reordered[WATERMARK]), phase="mark"),
    )


def _waiting_windows(config: ModelConfig, window_frames: int, cohort: int) -> tuple[RunLine, ...]:
    """The streams of a cohort's other windows while a layer works on one. Windows overlap by a
    sixth, so there are 6 / 5 seconds of them for each second of a recording.
    """
    if cohort == 1:
        return ()
    frame_bytes = 4 * max(config.transformer.dim, config.latent_channels)
    per_second = math.ceil(frame_bytes * config.frame_rate_hz * 6 / 5)
    seconds = math.ceil((cohort - 1) * window_frames / config.frame_rate_hz * 5 / 6)
    return (
        RunLine(
            Line.HIDDEN_STATE, 0, bytes_per_second=per_second, seconds_max=seconds, phase="window"
        ),
    )


def prompt_workspace_bytes(config: Mapping[str, Any], tokens: int) -> int:
    """Scratch of one encoder pass over `tokens` tokens: bias, scores and shares of the attention,
    and the widest activations.
    """
    heads, dim, hidden = int(config["num_heads"]), int(config["d_model"]), int(config["d_ff"])
    return 4 * (3 * heads * tokens * tokens + tokens * (hidden + 4 * dim))


def codec_bytes(tile_bytes: int, weight_bytes: int) -> int:
    """Scratch of one codec direction.

    Where samples are many, copies of the widest tensor; where channels are many, the largest
    weight in the convolution library's own layout.
    """
    return max(LIVE_TILES * tile_bytes, weight_bytes + tile_bytes) + HEAP_BYTES


def stream_bytes_per_frame(config: ModelConfig, hidden: int) -> int:
    """The transformer's activations for one frame, float32."""
    dim = config.transformer.dim
    return 4 * max(LIVE_STREAMS * dim, 3 * dim + 3 * hidden)


def unpacked_bytes(segments: tuple[SegmentEntry, ...]) -> int:
    """The largest int8 matrix as the bfloat16 that it becomes for its product; 0 without any."""
    tensors = (tensor for segment in segments for tensor in segment.tensors)
    return max((2 * tensor.bytes for tensor in tensors if tensor.dtype == "int8"), default=0)


def hidden_width(segments: tuple[SegmentEntry, ...]) -> int:
    """Width of the feed-forward, from the first layer's tensors."""
    layer = next(segment for segment in segments if segment.name == "layer.0")
    gate = next(tensor for tensor in layer.tensors if tensor.name == "ffn.gate.weight")
    return gate.shape[0] // 2


def flop_per_second(config: ModelConfig, segments: tuple[SegmentEntry, ...]) -> int:
    """Floating point operations for one second of audio: every weight of the transformer once for
    each frame and evaluation, and the codec.
    """
    weights = sum(_weight_count(s) for s in segments if s.name == "core" or is_layer(s))
    transformer = 2 * EVALUATIONS * weights
    return int((transformer + _codec_flop_per_frame(config)) * config.frame_rate_hz)


def slice_flop(config: ModelConfig, segments: tuple[SegmentEntry, ...], window_ms: int) -> int:
    """Operations of the longest piece that cannot pause: a layer over a window, or a codec tile."""
    chosen = limits(config, window_ms)
    layer = max(2 * _weight_count(s) * chosen.window_frames for s in segments if is_layer(s))
    tile = max(chosen.encode_tile_frames, chosen.decode_tile_frames)
    return max(layer, _codec_flop_per_frame(config) * tile)


def layers_flop(config: ModelConfig, segments: tuple[SegmentEntry, ...], window_ms: int) -> int:
    """Operations of all layers over one window, once."""
    frames = limits(config, window_ms).window_frames
    return sum(2 * _weight_count(s) * frames for s in segments if is_layer(s))


def _codec_flop_per_frame(config: ModelConfig) -> int:
    """Residual units (3 x 8 taps of C x C for each sample) and strided convolutions, both ways; the
    way out twice, for two signals.
    """
    codec = config.audio_codec
    total, samples, channels = 0, codec.hop, codec.encoder_dim
    for rate in codec.encoder_rates:
        total += samples * channels * channels * 24 + samples * channels * channels * 4
        samples, channels = samples // rate, 2 * channels
    samples, channels = 1, codec.decoder_dim
    for rate in codec.decoder_rates:
        total += SIGNALS * samples * rate * channels * channels
        samples, channels = samples * rate, channels // 2
        total += SIGNALS * samples * channels * channels * 24
    return 2 * total


def _mark_bytes(watermark: SegmentEntry) -> int:
    """Of a sample in the watermark's widest tensors: its channels, float32."""
    first = next(tensor for tensor in watermark.tensors if tensor.name == "in.weight")
    return 4 * first.shape[0]


def _largest_bytes(segment: SegmentEntry) -> int:
    return max(tensor.bytes for tensor in segment.tensors)


def _weight_count(segment: SegmentEntry) -> int:
    return sum(math.prod(tensor.shape) for tensor in segment.tensors)


def is_layer(segment: SegmentEntry) -> bool:
    """Whether it is a layer of the transformer."""
    return segment.name.startswith("layer.")
