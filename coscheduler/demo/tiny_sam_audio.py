"""A tiny SAM-Audio folder and T5 encoder in the official formats, with random weights.

Real are the file formats, all groups of keys and the rates (48 kHz, 25 frames/s); the widths are
tiny and the sound means nothing. Every tensor is drawn from a generator seeded by its own name,
scaled so that signals keep their size on the way through. The same bytes every time.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

ENCODER_DIM, LATENT_DIM, DECODER_DIM, CODEBOOK_DIM = 8, 64, 96, 128
ENCODER_RATES, DECODER_RATES, WATERMARK_RATES = (2, 8, 10, 12), (12, 10, 8, 2), (8, 5, 4, 2)
DIM, HEADS, LAYERS, FFN_HIDDEN = 128, 4, 4, 384
TEXT_DIM, VISION_DIM, ANCHOR_DIM, ANCHORS = 64, 1024, 128, 3
TIME_DIM, STATE_CHANNELS = 256, 2 * CODEBOOK_DIM
T5_HEADS, T5_HEAD_DIM, T5_FFN, T5_LAYERS, T5_BUCKETS = 4, 16, 128, 2, 32
MESSAGE_BITS = 16
WORDS = (
    "a an the of and in on with to from is no man woman person child people crowd speech speaking "
    "talking voice voices sing singing laugh laughter cry music song piano guitar drum drums "
    "violin dog bark barking cat bird birds wind rain thunder water traffic car engine siren door "
    "phone noise background hum keyboard typing applause footsteps loud quiet clean single speaker"
)
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def write(folder: Path, text_encoder_folder: Path, seed: int = 0) -> None:
    """Write `folder/{config.json, checkpoint.pt}` and `text_encoder_folder/{config.json,
    model.safetensors, tokenizer.json, tokenizer_config.json}`. The same seed gives the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text_encoder_folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", _config())
    torch.save(
        {name: _draw(name, shape, seed) for name, shape in _shapes()}, folder / "checkpoint.pt"
    )
    _write_text_encoder(text_encoder_folder, seed)


def _config() -> dict[str, Any]:
    return {
        "in_channels": 3 * STATE_CHANNELS,
        "audio_codec": {
            "encoder_dim": ENCODER_DIM,
            "encoder_rates": ENCODER_RATES,
            "latent_dim": LATENT_DIM,
            "decoder_dim": DECODER_DIM,
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
            "dim": TEXT_DIM, "name": "t5-tiny", "max_length": 512, "pad_mode": "longest"
        },
        "vision_encoder": {"dim": VISION_DIM, "name": "none"},
        "transformer": {
            "dim": DIM, "n_heads": HEADS, "n_layers": LAYERS, "dropout": 0.1, "norm_eps": 1e-5,
            "qk_norm": True, "fc_bias": False, "ffn_exp": 4, "ffn_dim_multiplier": 1,
            "multiple_of": 64, "non_linearity": "swiglu", "use_rope": True, "max_positions": 10_000,
            "frequency_embedding_dim": TIME_DIM, "timestep_non_linearity": "swiglu",
            "t_block_non_linearity": "silu", "t_block_bias": True, "context_dim": DIM,
            "context_non_linearity": "swiglu", "context_embedder_dropout": 0.0,
            "context_norm": False, "out_channels": STATE_CHANNELS, "in_channels": None,
        },
        "num_anchors": ANCHORS,
        "anchor_embedding_dim": ANCHOR_DIM,
        "visual_ranker": None,
        "text_ranker": None,
        "span_predictor": None,
    }  # fmt: skip


def _shapes() -> Shapes:
    """Every tensor of the checkpoint, with the official names."""
    yield from _encoder_shapes()
    yield from _decoder_shapes()
    yield from _watermark_shapes()
    yield from _transformer_shapes()
    yield from _condition_shapes()
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


def _encoder_shapes() -> Shapes:
    key, width = "audio_codec.encoder.block", ENCODER_DIM
    yield from _conv(f"{key}.0", width, 1, 7)
    for index, rate in enumerate(ENCODER_RATES, 1):
        for unit in range(3):
            yield from _residual(f"{key}.{index}.block.{unit}", width)
        yield f"{key}.{index}.block.3.alpha", (1, width, 1)
        yield from _conv(f"{key}.{index}.block.4", 2 * width, width, 2 * rate)
        width *= 2
    yield f"{key}.5.alpha", (1, width, 1)
    yield from _conv(f"{key}.6", LATENT_DIM, width, 3)
    yield from _conv("audio_codec.quantizer.in_proj", 2 * CODEBOOK_DIM, LATENT_DIM, 1)


def _decoder_shapes() -> Shapes:
    yield from _conv("audio_codec.quantizer.out_proj", LATENT_DIM, CODEBOOK_DIM, 1)
    width = DECODER_DIM
    yield from _conv("audio_codec.decoder.model.0", width, LATENT_DIM, 7)
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


def _watermark_shapes() -> Shapes:
    """The official ratios: a third of the decoder's widths, a message four times the channels."""
    hidden, channels = DECODER_DIM // 3, DECODER_DIM // 48
    message = 4 * channels
    wm = "audio_codec.decoder.wm_model"
    yield from _plain(f"{wm}.encoder_block.pre.3", channels, 1, 7)
    wide = hidden
    for index, rate in enumerate(WATERMARK_RATES, 1):
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
    yield from _plain(f"{wm}.decoder_block.post.1", 1, channels, 7)


def _gated(key: str, inner: int, hidden: int, out: int) -> Shapes:
    yield f"{key}.w1.weight", (hidden, inner)
    yield f"{key}.w2.weight", (out, hidden)
    yield f"{key}.w3.weight", (hidden, inner)


def _transformer_shapes() -> Shapes:
    yield "transformer.final_layer_scale_shift_table", (2, DIM)
    for index in range(LAYERS):
        key = f"transformer.layers.{index}"
        yield f"{key}.scale_shift_table", (6, DIM)
        yield f"{key}.attention_norm.weight", (DIM,)
        yield f"{key}.ffn_norm.weight", (DIM,)
        for attention in ("attention", "cross_attention"):
            for name in ("wq", "wk", "wv", "wo"):
                yield f"{key}.{attention}.{name}.weight", (DIM, DIM)
            for name in ("q_norm", "k_norm"):
                yield f"{key}.{attention}.{name}.weight", (DIM // HEADS,)
        yield from _gated(f"{key}.feed_forward", DIM, FFN_HIDDEN, DIM)
    yield "transformer.norm.weight", (DIM,)
    yield "transformer.output.weight", (STATE_CHANNELS, DIM)
    for block in ("block1", "block2"):
        key = f"transformer.x_embedder.block.{block}"
        yield from _plain(f"{key}.groupnorm", DIM)
        yield from _plain(f"{key}.project", DIM, DIM, 3)
    yield from _gated("transformer.y_embedder.projection", DIM, DIM, DIM)
    yield from _gated("transformer.t_embedder.projection", TIME_DIM, DIM, DIM)
    yield from _plain("transformer.t_block", 6 * DIM, DIM)


def _condition_shapes() -> Shapes:
    yield from _plain("proj", DIM, 3 * STATE_CHANNELS)
    yield "align_masked_video.gate", (1,)
    yield from _plain("align_masked_video.conv", DIM, VISION_DIM, 1)
    yield from _plain("align_masked_video.layer_norm", DIM)
    yield "embed_anchors.gate", (1,)
    yield "embed_anchors.embed.weight", (ANCHORS + 1, ANCHOR_DIM)
    yield "embed_anchors.proj.weight", (DIM, ANCHOR_DIM)
    yield from _plain("memory_proj", DIM, TEXT_DIM)


def _draw(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Random values of a size that suits the tensor's role, which its name tells."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    values = torch.randn(shape, generator=generator)
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


def _write_text_encoder(folder: Path, seed: int) -> None:
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "T5TokenizerFast", "model_max_length": 512, "extra_ids": 0,
            "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
        },
    )  # fmt: skip
    vocabulary = tokenizer.get_vocab_size()
    _write_json(
        folder / "config.json",
        {
            "architectures": ["T5EncoderModel"], "model_type": "t5", "is_encoder_decoder": True,
            "d_model": TEXT_DIM, "d_kv": T5_HEAD_DIM, "d_ff": T5_FFN, "num_heads": T5_HEADS,
            "num_layers": T5_LAYERS, "relative_attention_num_buckets": T5_BUCKETS,
            "relative_attention_max_distance": 128, "feed_forward_proj": "relu",
            "layer_norm_epsilon": 1e-6, "dropout_rate": 0.1, "vocab_size": vocabulary,
            "pad_token_id": 0, "eos_token_id": 1,
        },
    )  # fmt: skip
    tensors = {name: _draw(f"t5.{name}", shape, seed) for name, shape in _t5_shapes(vocabulary)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _t5_shapes(vocabulary: int) -> Shapes:
    inner = T5_HEADS * T5_HEAD_DIM
    yield "shared.weight", (vocabulary, TEXT_DIM)
    for index in range(T5_LAYERS):
        key = f"encoder.block.{index}.layer"
        for name in ("q", "k", "v"):
            yield f"{key}.0.SelfAttention.{name}.weight", (inner, TEXT_DIM)
        yield f"{key}.0.SelfAttention.o.weight", (TEXT_DIM, inner)
        if index == 0:
            bias = f"{key}.0.SelfAttention.relative_attention_bias.weight"
            yield bias, (T5_BUCKETS, T5_HEADS)
        yield f"{key}.0.layer_norm.weight", (TEXT_DIM,)
        yield f"{key}.1.DenseReluDense.wi.weight", (T5_FFN, TEXT_DIM)
        yield f"{key}.1.DenseReluDense.wo.weight", (TEXT_DIM, T5_FFN)
        yield f"{key}.1.layer_norm.weight", (TEXT_DIM,)
    yield "encoder.final_layer_norm.weight", (TEXT_DIM,)


def _tokenizer() -> Tokenizer:
    """A unigram tokenizer as T5's: words with U+2581 for the space in front, then letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"\u2581{word}", -6.0) for word in WORDS.split()]
    pieces += [(chr(code), -10.0) for code in range(33, 127)] + [("\u2581", -9.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return tokenizer


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
