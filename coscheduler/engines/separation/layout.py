"""What of a checkpoint becomes which segment of the prepared file, and what is folded on the way.

Folded once instead of at every evaluation: weight norm; the 1/alpha of Snake; the constant that the
absent video adds; the table of anchor vectors; q, k, v into one matrix with its rows in head-major
order (the checkpoint keeps channel = d * heads + head); both gates of a feed-forward into one
matrix; the halves of the input projection (the features come doubled, the video slot is zero).

Segment names: "core", "layer.0" ..., "encoder", "decoder", "watermark".
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as fn

from coscheduler.engines.separation import quantise
from coscheduler.engines.separation.checkpoint import Checkpoint
from coscheduler.engines.separation.config import ModelConfig
from coscheduler.engines.streaming.prepared import SegmentPlan, TensorPlan

FORMAT = "sam-audio-1"  # part of the prepared file's key: raise it whenever the folding changes
SNAKE_EPSILON = 1e-9
RESIDUAL_DILATIONS = (1, 3, 9)
WATERMARK_ENTRIES = (3, 6, 7, 11)  # of a decoder block; its main path is 0, 1, 4, 5, 8
Parts = Callable[[], Iterator[Tensor]]


@dataclass
class _Builder:
    """Collects the tensors of one segment, checking every shape as it goes."""

    checkpoint: Checkpoint
    prefix: str = ""
    tensors: list[TensorPlan] = field(default_factory=list)

    def add(self, name: str, shape: tuple[int, ...], parts: Parts, dtype: str = "float32") -> None:
        self.tensors.append(TensorPlan(name, shape, dtype, parts))

    def shape(self, key: str, *expected: int | None) -> tuple[int, ...]:
        return self.checkpoint.shape(self.prefix + key, expected)

    def get(self, key: str) -> Tensor:
        return self.checkpoint.tensor(self.prefix + key)

    def copy(self, name: str, key: str, *expected: int | None, dtype: str = "float32") -> None:
        """A tensor as it is."""
        shape = self.shape(key, *expected)
        self.add(name, shape, lambda: iter((self.get(key),)), dtype)

    def matrix(self, name: str, shape: tuple[int, ...], parts: Parts, dtype: str) -> None:
        """The weight of a product, `name.weight`; as int8 with its `name.scale`."""
        if dtype != "int8":
            self.add(f"{name}.weight", shape, parts, dtype)
            return
        self.add(f"{name}.weight", shape, lambda: map(quantise.levels, parts()), dtype)
        self.add(f"{name}.scale", shape[:1], lambda: map(quantise.scales, parts()))

    def conv(self, name: str, key: str, *expected: int | None, rows: int = 0) -> None:
        """A weight-normed convolution (`weight_g`, `weight_v`, `bias`), folded; the first `rows`
        output channels only, where that is not 0. The bias of a transposed one has dim 1's size.
        """
        shape = self.shape(f"{key}.weight_v", *expected)
        self.shape(f"{key}.weight_g", shape[0], *(1 for _ in shape[1:]))
        kept = (rows or shape[0], *shape[1:])

        def fold() -> Iterator[Tensor]:
            v = self.get(f"{key}.weight_v")[: kept[0]]
            g = self.get(f"{key}.weight_g")[: kept[0]]
            norm = torch.linalg.vector_norm(v, dim=tuple(range(1, v.ndim)), keepdim=True)
            yield v * (g / norm)

        self.add(f"{name}.weight", kept, fold)

    def bias(self, name: str, key: str, size: int, rows: int = 0) -> None:
        self.shape(f"{key}.bias", size)
        kept = rows or size
        self.add(f"{name}.bias", (kept,), lambda: iter((self.get(f"{key}.bias")[:kept],)))

    def snake(self, name: str, key: str, channels: int) -> None:
        """Snake's alpha [C,1] and 1 / alpha [C,1]."""
        self.shape(f"{key}.alpha", 1, channels, 1)
        self.add(f"{name}.alpha", (channels, 1), lambda: iter((self.get(f"{key}.alpha")[0],)))
        self.add(
            f"{name}.inverse",
            (channels, 1),
            lambda: iter(((self.get(f"{key}.alpha")[0] + SNAKE_EPSILON).reciprocal(),)),
        )

    def plan(self, name: str) -> SegmentPlan:
        return SegmentPlan(name, tuple(self.tensors))


def plan_segments(
    checkpoint: Checkpoint, config: ModelConfig, dtype: str
) -> tuple[SegmentPlan, ...]:
    """All segments, in file order. `dtype` is that of the DiT's matrices; the codec, norms, tables
    and biases stay float32. "int8" is that of the layers' matrices, with a float32 `.scale` for
    each row; outside the layers it means bfloat16. Reads shapes only; data is read when a part is
    asked for.

    Raises EngineFault MODEL_CORRUPT with file, key, expected and found shape.
    """
    layers = tuple(
        _layer(checkpoint, config, index, dtype) for index in range(config.transformer.n_layers)
    )
    codec = (_encoder(checkpoint, config), _decoder(checkpoint, config))
    outside = "bfloat16" if dtype == "int8" else dtype
    return (_core(checkpoint, config, outside), *layers, *codec, _watermark(checkpoint, config))


def _core(checkpoint: Checkpoint, config: ModelConfig, dtype: str) -> SegmentPlan:
    part, net = _Builder(checkpoint), config.transformer
    dim, channels = net.dim, net.out_channels
    _input_projection(part, config, dtype)
    part.copy("memory.weight", "memory_proj.weight", dim, config.text_encoder.dim, dtype=dtype)
    part.copy("memory.bias", "memory_proj.bias", dim)
    _conditions(part, config)
    for block in ("block1", "block2"):
        key = f"transformer.x_embedder.block.{block}"
        part.copy(f"{block}.norm.weight", f"{key}.groupnorm.weight", dim)
        part.copy(f"{block}.norm.bias", f"{key}.groupnorm.bias", dim)
        part.copy(f"{block}.weight", f"{key}.project.weight", dim, dim, 3, dtype=dtype)
        part.copy(f"{block}.bias", f"{key}.project.bias", dim)
    context_dim = net.context_dim or dim
    _gated(part, "context", "transformer.y_embedder.projection", context_dim, dim, dtype)
    # The time embedding runs once for all evaluations and steers everything: it stays float32.
    _gated(
        part,
        "time",
        "transformer.t_embedder.projection",
        net.frequency_embedding_dim,
        dim,
        "float32",
    )
    part.copy("time.table.weight", "transformer.t_block.weight", 6 * dim, dim)
    part.copy("time.table.bias", "transformer.t_block.bias", 6 * dim)
    part.copy("final.table", "transformer.final_layer_scale_shift_table", 2, dim)
    part.copy("final.norm", "transformer.norm.weight", dim)
    part.copy("final.weight", "transformer.output.weight", channels, dim, dtype=dtype)
    return part.plan("core")


def _input_projection(part: _Builder, config: ModelConfig, dtype: str) -> None:
    dim, channels = config.transformer.dim, config.latent_channels
    half = channels // 2
    part.shape("proj.weight", dim, config.in_channels)

    def features() -> Iterator[Tensor]:
        weight = part.get("proj.weight")[:, 2 * channels :]
        yield weight[:, :half] + weight[:, half:]

    part.add("noisy.weight", (dim, channels), _columns(part, channels), dtype)
    part.add("features.weight", (dim, half), features)
    part.copy("features.bias", "proj.bias", dim)


def _columns(part: _Builder, channels: int) -> Parts:
    return lambda: iter((part.get("proj.weight")[:, :channels],))


def _conditions(part: _Builder, config: ModelConfig) -> None:
    """The constant of the absent video, [dim], and the vector of each anchor id, [ids, dim]."""
    dim, width = config.transformer.dim, config.anchor_embedding_dim
    ids = config.num_anchors + 1
    video = _Builder(part.checkpoint, "align_masked_video.")
    for name in ("conv.bias", "layer_norm.weight", "layer_norm.bias"):
        video.shape(name, dim)
    video.shape("gate", 1)
    anchors = _Builder(part.checkpoint, "embed_anchors.")
    anchors.shape("embed.weight", ids, width)
    anchors.shape("proj.weight", dim, width)
    anchors.shape("gate", 1)

    def constant() -> Iterator[Tensor]:
        weight, bias = video.get("layer_norm.weight"), video.get("layer_norm.bias")
        yield video.get("gate").tanh() * fn.layer_norm(video.get("conv.bias"), (dim,), weight, bias)

    def vectors() -> Iterator[Tensor]:
        projected = fn.linear(anchors.get("embed.weight"), anchors.get("proj.weight"))
        yield anchors.get("gate").tanh() * projected

    part.add("video", (dim,), constant)
    part.add("anchors", (ids, dim), vectors)


def _gated(
    part: _Builder, name: str, key: str, in_dim: int | None, out_dim: int, dtype: str
) -> None:
    """w2(silu(w1 x) * w3 x): w1 and w3 stacked into `gate.weight`."""
    hidden, width = part.shape(f"{key}.w1.weight", None, in_dim)
    part.shape(f"{key}.w3.weight", hidden, width)
    part.matrix(
        f"{name}.gate",
        (2 * hidden, width),
        lambda: (part.get(f"{key}.{which}.weight") for which in ("w1", "w3")),
        dtype,
    )
    shape = part.shape(f"{key}.w2.weight", out_dim, hidden)
    part.matrix(f"{name}.out", shape, lambda: iter((part.get(f"{key}.w2.weight"),)), dtype)


def _layer(checkpoint: Checkpoint, config: ModelConfig, index: int, dtype: str) -> SegmentPlan:
    part, dim = (
        _Builder(checkpoint, f"transformer.layers.{index}."),
        config.transformer.dim,
    )
    part.copy("table", "scale_shift_table", 6, dim)
    part.copy("attention_norm", "attention_norm.weight", dim)
    part.copy("ffn_norm", "ffn_norm.weight", dim)
    _attention(part, config, "self", "attention", ("qkv",), dtype)
    _attention(part, config, "cross", "cross_attention", ("q", "kv"), dtype)
    _gated(part, "ffn", "feed_forward", dim, dim, dtype)
    return part.plan(f"layer.{index}")


def _attention(
    part: _Builder,
    config: ModelConfig,
    name: str,
    key: str,
    stacks: tuple[str, ...],
    dtype: str,
) -> None:
    dim, heads = config.transformer.dim, config.transformer.n_heads
    head_dim = config.transformer.head_dim
    for which in "qkvo":
        part.shape(f"{key}.w{which}.weight", dim, dim)

    def head_major(letters: str) -> Parts:
        def rows() -> Iterator[Tensor]:
            for letter in letters:
                weight = part.get(f"{key}.w{letter}.weight")
                yield weight.view(head_dim, heads, dim).transpose(0, 1)

        return rows

    for letters in stacks:
        shape = (len(letters) * dim, dim)
        part.matrix(f"{name}.{letters}", shape, head_major(letters), dtype)
    part.matrix(f"{name}.out", (dim, dim), lambda: iter((part.get(f"{key}.wo.weight"),)), dtype)
    part.copy(f"{name}.q_norm", f"{key}.q_norm.weight", head_dim)
    part.copy(f"{name}.k_norm", f"{key}.k_norm.weight", head_dim)


def _encoder(checkpoint: Checkpoint, config: ModelConfig) -> SegmentPlan:
    codec = config.audio_codec
    part = _Builder(checkpoint, "audio_codec.")
    width = codec.encoder_dim
    _conv(part, "first", "encoder.block.0", 1, width, None)
    for index, rate in enumerate(codec.encoder_rates):
        key = f"encoder.block.{index + 1}.block"
        for unit in range(len(RESIDUAL_DILATIONS)):
            _residual(part, f"{index}.{unit}", f"{key}.{unit}", width)
        part.snake(f"{index}.down", f"{key}.3", width)
        _conv(part, f"{index}.down", f"{key}.4", width, 2 * width, 2 * rate)
        width *= 2
    tail = len(codec.encoder_rates) + 1
    part.snake("last", f"encoder.block.{tail}", width)
    _conv(part, "last", f"encoder.block.{tail + 1}", width, codec.latent_dim, None)
    # The bottleneck gives mean and scale; only the mean is used.
    _conv(
        part, "mean", "quantizer.in_proj", codec.latent_dim, 2 * codec.codebook_dim, 1,
        rows=codec.codebook_dim,
    )  # fmt: skip
    return part.plan("encoder")


def _decoder(checkpoint: Checkpoint, config: ModelConfig) -> SegmentPlan:
    codec = config.audio_codec
    part = _Builder(checkpoint, "audio_codec.")
    _conv(part, "latent", "quantizer.out_proj", codec.codebook_dim, codec.latent_dim, 1)
    width = codec.decoder_dim
    _conv(part, "first", "decoder.model.0", codec.latent_dim, width, None)
    for index, rate in enumerate(codec.decoder_rates):
        key = f"decoder.model.{index + 1}.block"
        part.snake(f"{index}.up", f"{key}.0", width)
        part.conv(f"{index}.up", f"{key}.1", width, width // 2, 2 * rate)
        part.bias(f"{index}.up", f"{key}.1", width // 2)
        width //= 2
        for unit, entry in enumerate((4, 5, 8)):
            _residual(part, f"{index}.{unit}", f"{key}.{entry}", width)
    pre = "decoder.wm_model.encoder_block.pre"
    part.snake("last", f"{pre}.0", width)
    _conv(part, "last", f"{pre}.1", width, 1, None)
    return part.plan("decoder")


def _conv(
    part: _Builder,
    name: str,
    key: str,
    in_width: int,
    out_width: int,
    kernel: int | None,
    rows: int = 0,
) -> None:
    part.conv(name, key, out_width, in_width, kernel, rows=rows)
    part.bias(name, key, out_width, rows)


def _residual(part: _Builder, name: str, key: str, width: int) -> None:
    part.snake(f"{name}.a", f"{key}.block.0", width)
    _conv(part, f"{name}.a", f"{key}.block.1", width, width, None)
    part.snake(f"{name}.b", f"{key}.block.2", width)
    _conv(part, f"{name}.b", f"{key}.block.3", width, width, 1)


def _watermark(checkpoint: Checkpoint, config: ModelConfig) -> SegmentPlan:
    """The watermark branch: plain convolutions and LSTMs, their widths read from the tensors."""
    part = _Builder(checkpoint, "audio_codec.decoder.")
    wm = "wm_model"
    channels, _, _ = _plain(part, "in", f"{wm}.encoder_block.pre.3", None, 1, None)
    for index in range(len(config.audio_codec.decoder_rates)):
        block = f"model.{index + 1}.block"
        wide, narrow, _ = _plain(part, f"{index}.up", f"{block}.3", None, None, None, bias_dim=1)
        for entry, name in ((6, "a"), (7, "b")):
            squeezed, _, _ = _plain(
                part, f"{index}.{name}.0", f"{block}.{entry}.block.1", None, narrow, None
            )
            _plain(part, f"{index}.{name}.1", f"{block}.{entry}.block.3", narrow, squeezed, None)
        _plain(part, f"{index}.down", f"{block}.11", wide, narrow, None)
    hidden = _lstm(part, "encode", f"{wm}.encoder_block.post.0.lstm")
    width, _, _ = _plain(part, "bottleneck", f"{wm}.encoder_block.post.2", None, hidden, None)
    part.copy("message", f"{wm}.msg_processor.msg_processor.weight", None, width)
    _plain(part, "spread", f"{wm}.decoder_block.pre.0", hidden, width, None)
    _lstm(part, "decode", f"{wm}.decoder_block.pre.1.lstm")
    _plain(part, "out", f"{wm}.decoder_block.post.1", 1, channels, None)
    return part.plan("watermark")


def _plain(
    part: _Builder, name: str, key: str, *expected: int | None, bias_dim: int = 0
) -> tuple[int, ...]:
    shape = part.shape(f"{key}.weight", *expected)
    part.copy(f"{name}.weight", f"{key}.weight", *shape)
    part.copy(f"{name}.bias", f"{key}.bias", shape[bias_dim])
    return shape


def _lstm(part: _Builder, name: str, key: str) -> int:
    layers = 0
    hidden = 0
    while layers == 0 or f"{part.prefix}{key}.weight_ih_l{layers}" in part.checkpoint:
        gates, _ = part.shape(f"{key}.weight_ih_l{layers}", None, None)
        hidden = gates // 4
        for which, shape in (
            ("weight_ih", (gates, hidden)),
            ("weight_hh", (gates, hidden)),
            ("bias_ih", (gates,)),
            ("bias_hh", (gates,)),
        ):
            part.copy(f"{name}.{which}_l{layers}", f"{key}.{which}_l{layers}", *shape)
        layers += 1
    return hidden
