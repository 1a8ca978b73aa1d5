"""The segments of a SAM-Audio model by its config.json alone: what they will take, no checkpoint.

The names and shapes are those that `layout.py` makes of the official checkpoints, and of which the
config says nothing is taken as published: the feed-forward is 8 / 3 of the width, rounded up to 64;
the watermark's branch has a third of the decoder's widths. No tensor library.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from coscheduler.engines.separation.config import ModelConfig
from coscheduler.engines.separation.scheme import WATERMARK
from coscheduler.engines.streaming.segments import SegmentEntry, lay_out

FIRST_LAYER = "encoder.block.0.layer."  # of the T5 encoder
BIAS = "0.SelfAttention.relative_attention_bias.weight"
FINAL_NORM = "encoder.final_layer_norm.weight"
RESIDUAL_UNITS = 3
FIRST_KERNEL, LAST_KERNEL = 7, 3  # of the codec's way in; on the way out both are 7
WATERMARK_RATES = (8, 5, 4, 2)
MESSAGE_BITS = 16


class Tensor(NamedTuple):
    """A tensor of a segment to come."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


class Segment(NamedTuple):
    """A segment to come."""

    name: str
    tensors: tuple[Tensor, ...]


Tensors = Iterator[Tensor]


def segments(config: ModelConfig, precision: str) -> tuple[SegmentEntry, ...]:
    """All segments in a precision, in file order; offsets count from 0."""
    outside = "bfloat16" if precision == "int8" else precision
    layers = range(config.transformer.n_layers)
    plans = [
        Segment("core", tuple(_core(config, outside))),
        *(Segment(f"layer.{index}", tuple(_layer(config, precision))) for index in layers),
        Segment("encoder", tuple(_encoder(config))),
        Segment("decoder", tuple(_decoder(config))),
        Segment(WATERMARK, tuple(_watermark(config))),
    ]
    return lay_out(plans, 0)


def text_segment(config: Mapping[str, Any]) -> SegmentEntry:
    """What of the T5 encoder is in device memory at once, by its config.json, float32: a layer, the
    bias of all layers, which the first one has, and the last norm.
    """
    tensors = tuple(
        Tensor(name, shape)
        for name, shape in text_shapes(config).items()
        if name == FINAL_NORM or name.startswith(FIRST_LAYER)
    )
    (segment,) = lay_out((Segment("text", tensors),), 0)
    return segment


def text_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a T5 encoder, as its config implies them."""
    dim, hidden, heads = config["d_model"], config["d_ff"], config["num_heads"]
    inner = heads * config["d_kv"]
    gated = str(config.get("feed_forward_proj", "relu")).startswith("gated")
    shapes = {
        "shared.weight": (config["vocab_size"], dim),
        FINAL_NORM: (dim,),
    }
    shapes[FIRST_LAYER + BIAS] = (config.get("relative_attention_num_buckets", 32), heads)
    for index in range(config["num_layers"]):
        key = f"encoder.block.{index}.layer"
        shapes |= {f"{key}.0.SelfAttention.{name}.weight": (inner, dim) for name in "qkv"}
        shapes[f"{key}.0.SelfAttention.o.weight"] = (dim, inner)
        shapes[f"{key}.0.layer_norm.weight"] = (dim,)
        for name in ("wi_0", "wi_1") if gated else ("wi",):
            shapes[f"{key}.1.DenseReluDense.{name}.weight"] = (hidden, dim)
        shapes[f"{key}.1.DenseReluDense.wo.weight"] = (dim, hidden)
        shapes[f"{key}.1.layer_norm.weight"] = (dim,)
    return {name: tuple(map(int, shape)) for name, shape in shapes.items()}


def feed_forward_width(dim: int) -> int:
    """Width of a layer's feed-forward."""
    return 64 * -(-(8 * dim // 3) // 64)


def _core(config: ModelConfig, dtype: str) -> Tensors:
    net = config.transformer
    dim, channels = net.dim, net.out_channels
    yield Tensor("noisy.weight", (dim, channels), dtype)
    yield Tensor("features.weight", (dim, channels // 2))
    yield Tensor("features.bias", (dim,))
    yield Tensor("memory.weight", (dim, config.text_encoder.dim), dtype)
    yield Tensor("memory.bias", (dim,))
    yield Tensor("video", (dim,))
    yield Tensor("anchors", (config.num_anchors + 1, dim))
    for block in ("block1", "block2"):
        yield Tensor(f"{block}.norm.weight", (dim,))
        yield Tensor(f"{block}.norm.bias", (dim,))
        yield Tensor(f"{block}.weight", (dim, dim, 3), dtype)
        yield Tensor(f"{block}.bias", (dim,))
    yield from _gated("context", net.context_dim or dim, dim, dim, dtype)
    yield from _gated("time", net.frequency_embedding_dim, dim, dim, "float32")
    yield Tensor("time.table.weight", (6 * dim, dim))
    yield Tensor("time.table.bias", (6 * dim,))
    yield Tensor("final.table", (2, dim))
    yield Tensor("final.norm", (dim,))
    yield Tensor("final.weight", (channels, dim), dtype)


def _layer(config: ModelConfig, dtype: str) -> Tensors:
    dim, head_dim = config.transformer.dim, config.transformer.head_dim
    yield Tensor("table", (6, dim))
    yield Tensor("attention_norm", (dim,))
    yield Tensor("ffn_norm", (dim,))
    for name, stacks in (("self", ("qkv",)), ("cross", ("q", "kv"))):
        for letters in stacks:
            yield from _matrix(f"{name}.{letters}", len(letters) * dim, dim, dtype)
        yield from _matrix(f"{name}.out", dim, dim, dtype)
        yield Tensor(f"{name}.q_norm", (head_dim,))
        yield Tensor(f"{name}.k_norm", (head_dim,))
    yield from _gated("ffn", dim, feed_forward_width(dim), dim, dtype)


def _gated(name: str, inner: int, hidden: int, out: int, dtype: str) -> Tensors:
    yield from _matrix(f"{name}.gate", 2 * hidden, inner, dtype)
    yield from _matrix(f"{name}.out", out, hidden, dtype)


def _matrix(name: str, rows: int, columns: int, dtype: str) -> Tensors:
    yield Tensor(f"{name}.weight", (rows, columns), dtype)
    if dtype == "int8":
        yield Tensor(f"{name}.scale", (rows,))


def _encoder(config: ModelConfig) -> Tensors:
    codec = config.audio_codec
    width = codec.encoder_dim
    yield from _conv("first", 1, width, FIRST_KERNEL)
    for index, rate in enumerate(codec.encoder_rates):
        yield from _residuals(index, width)
        yield from _snake(f"{index}.down", width)
        yield from _conv(f"{index}.down", width, 2 * width, 2 * rate)
        width *= 2
    yield from _snake("last", width)
    yield from _conv("last", width, codec.latent_dim, LAST_KERNEL)
    yield from _conv("mean", codec.latent_dim, codec.codebook_dim, 1)


def _decoder(config: ModelConfig) -> Tensors:
    codec = config.audio_codec
    width = codec.decoder_dim
    yield from _conv("latent", codec.codebook_dim, codec.latent_dim, 1)
    yield from _conv("first", codec.latent_dim, width, FIRST_KERNEL)
    for index, rate in enumerate(codec.decoder_rates):
        yield from _snake(f"{index}.up", width)
        yield Tensor(f"{index}.up.weight", (width, width // 2, 2 * rate))  # transposed
        yield Tensor(f"{index}.up.bias", (width // 2,))
        width //= 2
        yield from _residuals(index, width)
    yield from _snake("last", width)
    yield from _conv("last", width, 1, FIRST_KERNEL)


def _residuals(index: int, width: int) -> Tensors:
    for unit in range(RESIDUAL_UNITS):
        for part, kernel in (("a", 7), ("b", 1)):
            yield from _snake(f"{index}.{unit}.{part}", width)
            yield from _conv(f"{index}.{unit}.{part}", width, width, kernel)


def _snake(name: str, width: int) -> Tensors:
    yield Tensor(f"{name}.alpha", (width, 1))
    yield Tensor(f"{name}.inverse", (width, 1))


def _conv(name: str, in_width: int, out_width: int, kernel: int) -> Tensors:
    yield Tensor(f"{name}.weight", (out_width, in_width, kernel))
    yield Tensor(f"{name}.bias", (out_width,))


def _watermark(config: ModelConfig) -> Tensors:
    hidden, channels = config.audio_codec.decoder_dim // 3, config.audio_codec.decoder_dim // 48
    message, wide = 4 * channels, hidden
    yield from _conv("in", 1, channels, 7)
    for index, rate in enumerate(WATERMARK_RATES):
        narrow = wide // 2
        yield Tensor(f"{index}.up.weight", (wide, narrow, 2 * rate))
        yield Tensor(f"{index}.up.bias", (narrow,))
        for name in ("a", "b"):
            yield from _conv(f"{index}.{name}.0", narrow, narrow // 2, 3)
            yield from _conv(f"{index}.{name}.1", narrow // 2, narrow, 1)
        yield from _conv(f"{index}.down", narrow, wide, 2 * rate)
        wide = narrow
    yield from _lstm("encode", hidden)
    yield from _conv("bottleneck", hidden, message, 7)
    yield Tensor("message", (2 * MESSAGE_BITS, message))
    yield from _conv("spread", message, hidden, 7)
    yield from _lstm("decode", hidden)
    yield from _conv("out", channels, 1, 7)


def _lstm(name: str, hidden: int) -> Tensors:
    for layer in range(2):
        yield Tensor(f"{name}.weight_ih_l{layer}", (4 * hidden, hidden))
        yield Tensor(f"{name}.weight_hh_l{layer}", (4 * hidden, hidden))
        yield Tensor(f"{name}.bias_ih_l{layer}", (4 * hidden,))
        yield Tensor(f"{name}.bias_hh_l{layer}", (4 * hidden,))
