"""A SAM-Audio folder and T5 encoder in the official formats, with random weights, tiny or not.

Real are the file formats, all groups of keys and the rates (48 kHz, 25 frames/s); the widths are
those of `Sizes` and the sound means nothing. Every tensor is drawn from a generator seeded by its
own name, scaled so that signals keep their size on the way through. The same bytes every time.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

ENCODER_RATES, DECODER_RATES, WATERMARK_RATES = (2, 8, 10, 12), (12, 10, 8, 2), (8, 5, 4, 2)
CODEBOOK_DIM, STATE_CHANNELS, TIME_DIM = 128, 256, 256
VISION_DIM, ANCHOR_DIM, ANCHORS = 1024, 128, 3
MESSAGE_BITS = 16
WATERMARK_OUT = "audio_codec.decoder.wm_model.decoder_block.post.1"
WORDS = (
    "a an the of and in on with to from is no man woman person child people crowd speech speaking "
    "talking voice voices sing singing laugh laughter cry music song piano guitar drum drums "
    "violin dog bark barking cat bird birds wind rain thunder water traffic car engine siren door "
    "phone noise background hum keyboard typing applause footsteps loud quiet clean single speaker"
)
Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Sizes:
    """Widths and depths: of the codec, the transformer, the T5 encoder. The default is tiny."""

    encoder_dim: int = 8
    latent_dim: int = 64
    decoder_dim: int = 96  # a multiple of 96: the watermark has 48ths of it, and halves them
    dim: int = 128
    heads: int = 4
    layers: int = 4
    text_dim: int = 64
    text_heads: int = 4
    text_head_dim: int = 16
    text_hidden: int = 128
    text_layers: int = 2
    vocabulary: int = 0  # rows of the embedding; no fewer than the tokenizer has pieces
    text_buckets: int = 32

    @property
    def hidden(self) -> int:
        """Width of the feed-forward: 8/3 of dim, up to a multiple of 64."""
        return 64 * math.ceil(8 * self.dim // 3 / 64)


def official(dim: int, heads: int, layers: int) -> Sizes:
    """A published size: they share the codec and the text encoder, `t5-base`."""
    return Sizes(
        encoder_dim=64, latent_dim=1024, decoder_dim=1536, dim=dim, heads=heads, layers=layers,
        text_dim=768, text_heads=12, text_head_dim=64, text_hidden=3072, text_layers=12,
        vocabulary=32_128,
    )  # fmt: skip


TINY = Sizes()
# Nearly nothing at the official rates: for hours of audio.
LEAST = Sizes(encoder_dim=1, latent_dim=8, dim=16, heads=1, layers=1)
SIZES = {
    "tiny": TINY,
    "least": LEAST,
    "small": official(1536, 12, 12),
    "base": official(2048, 16, 16),
    "large": official(2816, 22, 22),
}


def write(folder: Path, text_encoder_folder: Path, seed: int = 0, sizes: Sizes = TINY) -> None:
    """Write `folder/{config.json, checkpoint.pt}` and `text_encoder_folder/{config.json,
    model.safetensors, tokenizer.json, tokenizer_config.json}`. The same seed gives the same bytes.
    All tensors are in memory at once: 2.4 GB for "small".
    """
    folder.mkdir(parents=True, exist_ok=True)
    text_encoder_folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", _config(sizes))
    tensors = {name: _draw(name, shape, seed) for name, shape in _shapes(sizes)}
    torch.save(tensors, folder / "checkpoint.pt")
    del tensors
    _write_text_encoder(text_encoder_folder, seed, sizes)


def _config(sizes: Sizes) -> dict[str, Any]:
    return {
        "in_channels": 3 * STATE_CHANNELS,
        "audio_codec": {
            "encoder_dim": sizes.encoder_dim,
            "encoder_rates": ENCODER_RATES,
            "latent_dim": sizes.latent_dim,
            "decoder_dim": sizes.decoder_dim,
            "decoder_rates": DECODER_RATES,
            "n_codebooks": 16,
            "codebook_size": 1024,
            "codebook_dim": CODEBOOK_DIM,
            "quantizer_dropout": False,
            "sample_rate": 48_000,
            "mean": 0.0,
            "std": 1.0,
        },
        "text_encoder": {
            "dim": sizes.text_dim, "name": "t5-tiny", "max_length": 512, "pad_mode": "longest"
        },
        "vision_encoder": {"dim": VISION_DIM, "name": "none"},
        "transformer": {
            "dim": sizes.dim, "n_heads": sizes.heads, "n_layers": sizes.layers, "dropout": 0.1,
            "norm_eps": 1e-5, "qk_norm": True, "fc_bias": False, "ffn_exp": 4,
            "ffn_dim_multiplier": 1, "multiple_of": 64, "non_linearity": "swiglu",
            "use_rope": True, "max_positions": 10_000,
            "frequency_embedding_dim": TIME_DIM, "timestep_non_linearity": "swiglu",
            "t_block_non_linearity": "silu", "t_block_bias": True, "context_dim": sizes.dim,
            "context_non_linearity": "swiglu", "context_embedder_dropout": 0.0,
            "context_norm": False, "out_channels": STATE_CHANNELS, "in_channels": None,
        },
        "num_anchors": ANCHORS,
        "anchor_embedding_dim": ANCHOR_DIM,
        "visual_ranker": None,
        "text_ranker": None,
        "span_predictor": None,
    }  # fmt: skip


def _shapes(sizes: Sizes) -> Shapes:
    """Every tensor of the checkpoint, with the official names."""
    yield from _encoder_shapes(sizes)
    yield from _decoder_shapes(sizes)
    yield from watermark_shapes(sizes)
    yield from _transformer_shapes(sizes)
    yield from _condition_shapes(sizes)
    # The official file also holds a vision model, which text prompting never reads.
    yield "vision_encoder.model.visual.conv1.weight", (16, 3, 14, 14)
    yield "vision_encoder.model.logit_scale", ()


def _conv(key: str, out: int, inner: int, kernel: int, bias: int | None = None) -> Shapes:
    """A weight-normed convolution; the bias of a transposed one has the size of dim 1."""
    yield f"{key}.bias", (bias or out,)
    yield f"{key}.weight_g", (out, 1, 1)
    yield f"{key}.weight_v", (out, inner, kernel)


def _residual(key: str, width: int) -> Shapes:
    yield f"{key}.block.0.alpha", (1, width, 1)
    yield from _conv(f"{key}.block.1", width, width, 7)
    yield f"{key}.block.2.alpha", (1, width, 1)
    yield from _conv(f"{key}.block.3", width, width, 1)


def _encoder_shapes(sizes: Sizes) -> Shapes:
    key, width = "audio_codec.encoder.block", sizes.encoder_dim
    yield from _conv(f"{key}.0", width, 1, 7)
    for index, rate in enumerate(ENCODER_RATES, 1):
        for unit in range(3):
            yield from _residual(f"{key}.{index}.block.{unit}", width)
        yield f"{key}.{index}.block.3.alpha", (1, width, 1)
        yield from _conv(f"{key}.{index}.block.4", 2 * width, width, 2 * rate)
        width *= 2
    yield f"{key}.5.alpha", (1, width, 1)
    yield from _conv(f"{key}.6", sizes.latent_dim, width, 3)
    yield from _conv("audio_codec.quantizer.in_proj", 2 * CODEBOOK_DIM, sizes.latent_dim, 1)


def _decoder_shapes(sizes: Sizes) -> Shapes:
    yield from _conv("audio_codec.quantizer.out_proj", sizes.latent_dim, CODEBOOK_DIM, 1)
    width = sizes.decoder_dim
    yield from _conv("audio_codec.decoder.model.0", width, sizes.latent_dim, 7)
    for index, rate in enumerate(DECODER_RATES, 1):
        key = f"audio_codec.decoder.model.{index}.block"
        yield f"{key}.0.alpha", (1, width, 1)
        yield from _conv(f"{key}.1", width, width // 2, 2 * rate, bias=width // 2)
        width //= 2
        for entry in (4, 5, 8):
            yield from _residual(f"{key}.{entry}", width)
    pre = "audio_codec.decoder.wm_model.encoder_block.pre"
    yield f"{pre}.0.alpha", (1, width, 1)
    yield from _conv(f"{pre}.1", 1, width, 7)


def _plain(key: str, *shape: int, bias: int | None = None) -> Shapes:
    yield f"{key}.weight", shape
    yield f"{key}.bias", (bias or shape[0],)


def _lstm(key: str, hidden: int) -> Shapes:
    for layer in (0, 1):
        yield f"{key}.weight_ih_l{layer}", (4 * hidden, hidden)
        yield f"{key}.weight_hh_l{layer}", (4 * hidden, hidden)
        yield f"{key}.bias_ih_l{layer}", (4 * hidden,)
        yield f"{key}.bias_hh_l{layer}", (4 * hidden,)


def watermark_shapes(sizes: Sizes, rates: tuple[int, ...] = WATERMARK_RATES) -> Shapes:
    """The official ratios: a third of the decoder's widths, a message four times the channels.
    The rates multiply to a divisor of the codec's hop.
    """
    hidden, channels = sizes.decoder_dim // 3, sizes.decoder_dim // 48
    message = 4 * channels
    wm = "audio_codec.decoder.wm_model"
    yield from _plain(f"{wm}.encoder_block.pre.3", channels, 1, 7)
    wide = hidden
    for index, rate in enumerate(rates, 1):
        key, narrow = f"audio_codec.decoder.model.{index}.block", wide // 2
        yield from _plain(f"{key}.3", wide, narrow, 2 * rate, bias=narrow)
        for entry in (6, 7):
            yield from _plain(f"{key}.{entry}.block.1", narrow // 2, narrow, 3)
            yield from _plain(f"{key}.{entry}.block.3", narrow, narrow // 2, 1)
        yield from _plain(f"{key}.11", wide, narrow, 2 * rate)
        wide = narrow
    yield from _lstm(f"{wm}.encoder_block.post.0.lstm", hidden)
    yield from _plain(f"{wm}.encoder_block.post.2", message, hidden, 7)
    yield f"{wm}.msg_processor.msg_processor.weight", (2 * MESSAGE_BITS, message)
    yield from _plain(f"{wm}.decoder_block.pre.0", hidden, message, 7)
    yield from _lstm(f"{wm}.decoder_block.pre.1.lstm", hidden)
    yield from _plain(WATERMARK_OUT, 1, channels, 7)


def _gated(key: str, inner: int, hidden: int, out: int) -> Shapes:
    yield f"{key}.w1.weight", (hidden, inner)
    yield f"{key}.w2.weight", (out, hidden)
    yield f"{key}.w3.weight", (hidden, inner)


def _transformer_shapes(sizes: Sizes) -> Shapes:
    yield "transformer.final_layer_scale_shift_table", (2, sizes.dim)
    for index in range(sizes.layers):
        key = f"transformer.layers.{index}"
        yield f"{key}.scale_shift_table", (6, sizes.dim)
        yield f"{key}.attention_norm.weight", (sizes.dim,)
        yield f"{key}.ffn_norm.weight", (sizes.dim,)
        for attention in ("attention", "cross_attention"):
            for name in ("wq", "wk", "wv", "wo"):
                yield f"{key}.{attention}.{name}.weight", (sizes.dim, sizes.dim)
            for name in ("q_norm", "k_norm"):
                yield f"{key}.{attention}.{name}.weight", (sizes.dim // sizes.heads,)
        yield from _gated(f"{key}.feed_forward", sizes.dim, sizes.hidden, sizes.dim)
    yield "transformer.norm.weight", (sizes.dim,)
    yield "transformer.output.weight", (STATE_CHANNELS, sizes.dim)
    for block in ("block1", "block2"):
        key = f"transformer.x_embedder.block.{block}"
        yield from _plain(f"{key}.groupnorm", sizes.dim)
        yield from _plain(f"{key}.project", sizes.dim, sizes.dim, 3)
    yield from _gated("transformer.y_embedder.projection", sizes.dim, sizes.dim, sizes.dim)
    yield from _gated("transformer.t_embedder.projection", TIME_DIM, sizes.dim, sizes.dim)
    yield from _plain("transformer.t_block", 6 * sizes.dim, sizes.dim)


def _condition_shapes(sizes: Sizes) -> Shapes:
    yield from _plain("proj", sizes.dim, 3 * STATE_CHANNELS)
    yield "align_masked_video.gate", (1,)
    yield from _plain("align_masked_video.conv", sizes.dim, VISION_DIM, 1)
    yield from _plain("align_masked_video.layer_norm", sizes.dim)
    yield "embed_anchors.gate", (1,)
    yield "embed_anchors.embed.weight", (ANCHORS + 1, ANCHOR_DIM)
    yield "embed_anchors.proj.weight", (sizes.dim, ANCHOR_DIM)
    yield from _plain("memory_proj", sizes.dim, sizes.text_dim)


def _draw(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Random values of a size that suits the tensor's role, which its name tells."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    values = torch.randn(shape, generator=generator)
    if name.startswith(WATERMARK_OUT):
        values.mul_(0.02)  # quiet, as a trained one is
    kind = name.rsplit(".", 1)[-1]
    if kind == "alpha":
        return values.abs_().add_(0.5)
    if kind == "weight_g":
        # Rows of unit norm times this: a residual branch adds a little, the rest keeps the size.
        return values.mul_(0.05).add_(0.3 if ".block.3." in name or ".block.1." in name else 1.0)
    if "norm" in name and kind == "weight":
        return values.mul_(0.05).add_(1.0)
    if kind == "bias" or kind == "gate" or "table" in kind or "bias_" in kind:
        return values.mul_(0.1)
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
    return values.div_(math.sqrt(max(1, fan_in)))


def _write_text_encoder(folder: Path, seed: int, sizes: Sizes) -> None:
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "T5TokenizerFast", "model_max_length": 512, "extra_ids": 0,
            "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
        },
    )  # fmt: skip
    vocabulary = max(tokenizer.get_vocab_size(), sizes.vocabulary)
    _write_json(
        folder / "config.json",
        {
            "architectures": ["T5EncoderModel"], "model_type": "t5", "is_encoder_decoder": True,
            "d_model": sizes.text_dim, "d_kv": sizes.text_head_dim, "d_ff": sizes.text_hidden,
            "num_heads": sizes.text_heads, "num_layers": sizes.text_layers,
            "relative_attention_num_buckets": sizes.text_buckets,
            "relative_attention_max_distance": 128, "feed_forward_proj": "relu",
            "layer_norm_epsilon": 1e-6, "dropout_rate": 0.1, "vocab_size": vocabulary,
            "pad_token_id": 0, "eos_token_id": 1,
        },
    )  # fmt: skip
    tensors = {
        name: _draw(f"t5.{name}", shape, seed) for name, shape in _t5_shapes(sizes, vocabulary)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _t5_shapes(sizes: Sizes, vocabulary: int) -> Shapes:
    inner = sizes.text_heads * sizes.text_head_dim
    yield "shared.weight", (vocabulary, sizes.text_dim)
    for index in range(sizes.text_layers):
        key = f"encoder.block.{index}.layer"
        for name in ("q", "k", "v"):
            yield f"{key}.0.SelfAttention.{name}.weight", (inner, sizes.text_dim)
        yield f"{key}.0.SelfAttention.o.weight", (sizes.text_dim, inner)
        if index == 0:
            bias = f"{key}.0.SelfAttention.relative_attention_bias.weight"
            yield bias, (sizes.text_buckets, sizes.text_heads)
        yield f"{key}.0.layer_norm.weight", (sizes.text_dim,)
        yield f"{key}.1.DenseReluDense.wi.weight", (sizes.text_hidden, sizes.text_dim)
        yield f"{key}.1.DenseReluDense.wo.weight", (sizes.text_dim, sizes.text_hidden)
        yield f"{key}.1.layer_norm.weight", (sizes.text_dim,)
    yield "encoder.final_layer_norm.weight", (sizes.text_dim,)


def _tokenizer() -> Tokenizer:
    """A unigram tokenizer as T5's: words with U+2581 for the space in front, then letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"\u2581{word}", -6.0) for word in WORDS.split()]
    pieces += [(chr(code), -10.0) for code in range(33, 127)] + [("\u2581", -9.0)]
    return unigram_tokenizer(pieces, normalizers.NFKC())


def unigram_tokenizer(pieces: list[tuple[str, float]], normalizer: Any) -> Tokenizer:
    """A tokenizer as T5's from pieces with their scores, of which the third stands for the unknown:
    the space is U+2581 before a word, and every text ends in "</s>".
    """
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return tokenizer


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
