"""The separator's text encoder: a T5 whose tokens are codes and whose layers add nothing.

Each word of a prompt that names a class is that class's code, every other word the code of a word
without meaning, to which the transformer pays no attention. So a prompt is read by its words alone.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, normalizers

from coscheduler.demo.tiny_sam_audio import unigram_tokenizer
from train.separator_data import CLASSES

TEXT_DIM, HEADS, HEAD_DIM, HIDDEN, LAYERS, BUCKETS = 32, 2, 16, 64, 1, 32
# Where the transformer's sinusoid of the time is constant: the lowest frequencies' sines (0) and
# one of their cosines (1).
CODE_ROWS = range(376, 384)
CONSTANT_ROW = 191
NO_CLASS = len(CLASSES)  # the code of a word without meaning
WORDS = {
    "speech": "speech speaking speaker speakers speak person people man woman men women voice "
    "voices talk talking narrator conversation",
    "noise": "noise noises noisy hum humming hiss wind fan static",
    "beeps": "beep beeps beeping tone tones alarm alarms",
    "music": "music musical song melody piano instrument instruments chords",
}
PLAIN_WORDS = "a an the of and in on with to from is single background"


def write(folder: Path) -> None:
    """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json."""
    pieces = _pieces()
    tokenizer = _tokenizer([piece for piece, _ in pieces])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "T5TokenizerFast", "model_max_length": 512, "extra_ids": 0,
            "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
        },
    )  # fmt: skip
    _write_json(
        folder / "config.json",
        {
            "architectures": ["T5EncoderModel"], "model_type": "t5", "is_encoder_decoder": True,
            "d_model": TEXT_DIM, "d_kv": HEAD_DIM, "d_ff": HIDDEN, "num_heads": HEADS,
            "num_layers": LAYERS, "relative_attention_num_buckets": BUCKETS,
            "relative_attention_max_distance": 128, "feed_forward_proj": "relu",
            "layer_norm_epsilon": 1e-6, "dropout_rate": 0.1, "vocab_size": len(pieces),
            "pad_token_id": 0, "eos_token_id": 1,
        },
    )  # fmt: skip
    codes = torch.nn.functional.one_hot(torch.tensor([code for _, code in pieces]), TEXT_DIM)
    save_file(_tensors(codes.float()), folder / "model.safetensors", metadata={"format": "pt"})


def _tensors(embedding: torch.Tensor) -> dict[str, torch.Tensor]:
    inner, layer = HEADS * HEAD_DIM, "encoder.block.0.layer"
    parts = {
        f"{layer}.0.SelfAttention.{name}.weight": torch.zeros(inner, TEXT_DIM) for name in "qkv"
    }
    return parts | {
        "shared.weight": embedding,
        f"{layer}.0.SelfAttention.o.weight": torch.zeros(TEXT_DIM, inner),
        f"{layer}.0.SelfAttention.relative_attention_bias.weight": torch.zeros(BUCKETS, HEADS),
        f"{layer}.0.layer_norm.weight": torch.ones(TEXT_DIM),
        f"{layer}.1.DenseReluDense.wi.weight": torch.zeros(HIDDEN, TEXT_DIM),
        f"{layer}.1.DenseReluDense.wo.weight": torch.zeros(TEXT_DIM, HIDDEN),
        f"{layer}.1.layer_norm.weight": torch.ones(TEXT_DIM),
        # The norm makes a code sqrt(TEXT_DIM) large.
        "encoder.final_layer_norm.weight": torch.full((TEXT_DIM,), TEXT_DIM**-0.5),
    }


def _pieces() -> list[tuple[str, int]]:
    """Every piece of the vocabulary and its code."""
    special = [(piece, NO_CLASS) for piece in ("<pad>", "</s>", "<unk>")]
    named = [
        (f"\u2581{word}", CLASSES.index(name)) for name in CLASSES for word in WORDS[name].split()
    ]
    plain = [(f"\u2581{word}", NO_CLASS) for word in PLAIN_WORDS.split()]
    letters = [(chr(code), NO_CLASS) for code in range(33, 127)] + [("\u2581", NO_CLASS)]
    return special + named + plain + letters


def _tokenizer(pieces: list[str]) -> Tokenizer:
    """A unigram tokenizer as T5's: words with U+2581 for the space in front, then letters."""
    scores = {piece: 0.0 if piece.startswith("<") and len(piece) > 1 else -6.0 for piece in pieces}
    scores |= {piece: -10.0 for piece in pieces if len(piece) == 1}
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return unigram_tokenizer(list(scores.items()), normalizer)


def _write_json(path: Path, document: dict[str, object]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
