"""Write a tiny Whisper in the CTranslate2 layout, deterministically and in seconds.

The weights are random but arranged so that decoding behaves: the language is English, the text is
made of the words of `_SENTENCES`, and it ends after some twenty tokens. Three orthogonal directions
of the hidden space carry that, and everything else is noise that the audio stirs:

    KEEP    in every position; words point along it, all other tokens against it
    END     grows with the position; only <|endoftext|> points along it
    START   in <|startoftranscript|>; only <|en|> points along it
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ctranslate2.specs
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

HIDDEN_DIM = 128
FFN_DIM = 256
HEAD_COUNT = 2
ENCODER_LAYER_COUNT = 2
DECODER_LAYER_COUNT = 2
MEL_COUNT = 80
AUDIO_POSITION_COUNT = 1500  # loaders pad every window to 30 s, whatever the model was made for
TEXT_POSITION_COUNT = 448
TEXT_TOKEN_COUNT = 600

_LANGUAGES = re.findall(
    "[a-z]+",
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th "
    "ur hr bg lt la mi ml cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr "
    "pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt "
    "haw ln ha ba jw su yue",
)
_SENTENCES = (
    "good morning everyone and thank you for coming to the meeting",
    "i will send the report by friday",
    "we need the new budget before the end of the month",
    "please review the plan and call the customer on monday",
    "the server was slow last week but the team has found the problem",
    "anna will write the notes and peter will book the room",
    "let us talk about the schedule for the next release - 'tis late",
    "who can test the update tomorrow afternoon",
)
_WORDS = {word for sentence in _SENTENCES for word in sentence.split() if word.isalpha()}
_KEEP, _END, _START = 0, 1, 2
_END_GROWTH = 0.06  # of END for each position: the text ends after about twenty tokens

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """Widths and counts that a Whisper differs in; by default those of the demonstration."""

    hidden_dim: int = HIDDEN_DIM
    ffn_dim: int = FFN_DIM
    head_count: int = HEAD_COUNT
    encoder_layer_count: int = ENCODER_LAYER_COUNT
    decoder_layer_count: int = DECODER_LAYER_COUNT


DEMO = Shape()


def write(folder: Path, seed: int = 0, shape: Shape = DEMO) -> None:
    """Fill `folder` (made if missing) with model.bin, config.json and the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    text_count = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(_special_tokens())
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    spec = _spec(tokens, text_count, np.random.default_rng(seed), shape)
    spec.register_vocabulary(tokens)
    spec.validate()
    spec.optimize()  # makes the output projection an alias of the embeddings
    spec.save(str(folder))
    features = {"feature_size": MEL_COUNT, "sampling_rate": 16_000, "hop_length": 160,
                "chunk_length": 30, "n_fft": 400, "padding_value": 0.0,
                "feature_extractor_type": "WhisperFeatureExtractor"}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(features), encoding="utf-8")


def _tokenizer() -> Any:
    """Byte-level BPE over the sentences; the empty token at its end means "multilingual"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_TOKEN_COUNT,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator([f" {sentence}" for sentence in _SENTENCES], trainer)
    learned = json.loads(tokenizer.to_str())
    learned["model"]["vocab"][""] = len(learned["model"]["vocab"])
    return Tokenizer.from_str(json.dumps(learned))


def _special_tokens() -> list[str]:
    timestamps = [f"<|{index * 0.02:.2f}|>" for index in range(AUDIO_POSITION_COUNT + 1)]
    return [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *(f"<|{language}|>" for language in _LANGUAGES),
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
        *timestamps,
    ]


def _spec(tokens: list[str], text_count: int, rng: np.random.Generator, shape: Shape = DEMO) -> Any:
    spec = ctranslate2.specs.WhisperSpec(
        shape.encoder_layer_count, shape.head_count, shape.decoder_layer_count, shape.head_count
    )
    directions = _directions(rng, shape)
    _fill_encoder(spec.encoder, rng, shape)
    spec.decoder.embeddings.weight = _embeddings(tokens, directions, rng)
    spec.decoder.projection.weight = spec.decoder.embeddings.weight
    spec.decoder.position_encodings.encodings = _text_positions(directions, rng)
    _fill_norm(spec.decoder.layer_norm, shape.hidden_dim)
    for layer in spec.decoder.layer:
        _fill_attention(layer.self_attention, (3, 1), rng, shape)
        _fill_attention(layer.attention, (1, 2, 1), rng, shape)
        _fill_ffn(layer.ffn, rng, shape)
    languages = [tokens.index(f"<|{language}|>") for language in _LANGUAGES]
    spec.config.lang_ids = languages
    spec.config.suppress_ids = [*range(text_count + 1, languages[-1] + 6)]
    spec.config.suppress_ids_begin = [tokens.index("Ġ"), tokens.index("<|endoftext|>")]
    spec.config.alignment_heads = [
        (shape.decoder_layer_count - 1, head) for head in range(shape.head_count)
    ]
    return spec


def _directions(rng: np.random.Generator, shape: Shape) -> Array:
    """KEEP, END and START as rows: [3, hidden_dim], orthonormal and without mean.

    The last layer norm takes the mean away, so that a direction with one would be bent.
    """
    raw = rng.standard_normal((shape.hidden_dim, 4))
    raw[:, 0] = 1.0
    basis, _ = np.linalg.qr(raw)
    return np.ascontiguousarray(basis.T[1:], dtype=np.float32)


def _embeddings(tokens: list[str], directions: Array, rng: np.random.Generator) -> Array:
    """Token embeddings and, tied, output weights: [vocabulary, hidden_dim]."""
    weights = _normal(rng, len(tokens), directions.shape[1], scale=0.05)
    for index, token in enumerate(tokens):
        is_word = token.startswith("Ġ") and token[1:] in _WORDS
        weights[index] += (0.3 if is_word else -0.5) * directions[_KEEP]
    weights[tokens.index("<|endoftext|>")] += directions[_END]
    weights[tokens.index("<|startoftranscript|>")] += 2.0 * directions[_START]
    weights[tokens.index("<|en|>")] += 2.0 * directions[_START]
    return weights


def _text_positions(directions: Array, rng: np.random.Generator) -> Array:
    """[TEXT_POSITION_COUNT, hidden_dim]: KEEP everywhere, END growing, noise for variety."""
    end = _END_GROWTH * np.arange(TEXT_POSITION_COUNT, dtype=np.float32)[:, None]
    noise = _normal(rng, TEXT_POSITION_COUNT, directions.shape[1], scale=0.4)
    positions: Array = noise + directions[_KEEP] + end * directions[_END]
    return positions


def _fill_encoder(encoder: Any, rng: np.random.Generator, shape: Shape) -> None:
    encoder.conv1.weight = _normal(rng, shape.hidden_dim, MEL_COUNT, 3)
    encoder.conv2.weight = _normal(rng, shape.hidden_dim, shape.hidden_dim, 3)
    for conv in (encoder.conv1, encoder.conv2):
        conv.bias = np.zeros(shape.hidden_dim, np.float32)
    encoder.position_encodings.encodings = _normal(rng, AUDIO_POSITION_COUNT, shape.hidden_dim)
    _fill_norm(encoder.layer_norm, shape.hidden_dim)
    for layer in encoder.layer:
        _fill_attention(layer.self_attention, (3, 1), rng, shape)
        _fill_ffn(layer.ffn, rng, shape)


def _fill_attention(
    spec: Any, widths: tuple[int, ...], rng: np.random.Generator, shape: Shape
) -> None:
    """Projections of `widths` x hidden_dim outputs each (query, key and value may be fused)."""
    _fill_norm(spec.layer_norm, shape.hidden_dim)
    for linear, width in zip(spec.linear, widths, strict=True):
        _fill_linear(linear, width * shape.hidden_dim, shape.hidden_dim, rng)


def _fill_ffn(spec: Any, rng: np.random.Generator, shape: Shape) -> None:
    _fill_norm(spec.layer_norm, shape.hidden_dim)
    _fill_linear(spec.linear_0, shape.ffn_dim, shape.hidden_dim, rng)
    _fill_linear(spec.linear_1, shape.hidden_dim, shape.ffn_dim, rng)


def _fill_linear(spec: Any, rows: int, columns: int, rng: np.random.Generator) -> None:
    spec.weight = _normal(rng, rows, columns)
    spec.bias = np.zeros(rows, np.float32)


def _fill_norm(spec: Any, width: int) -> None:
    spec.gamma = np.ones(width, np.float32)
    spec.beta = np.zeros(width, np.float32)


def _normal(rng: np.random.Generator, *shape: int, scale: float = 0.03) -> Array:
    return (scale * rng.standard_normal(shape)).astype(np.float32)
