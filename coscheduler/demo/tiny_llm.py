"""A tiny language model as a GGUF file: real format, real tokenizer, random weights.

Every loader, the chat template, the grammar and the memory arithmetic work on it as on a real
model; what it says means nothing. Two things keep its text readable: the vocabulary is byte-level
BPE whose longer pieces are English words, and the weights carry a bias for each token, so that
whole words are likely, raw bytes are not, and a quotation mark ends a string after a dozen words
or so.

How the bias gets in: the llama architecture has none for its logits. Coordinate 0 of every token
embedding holds the same large number, no layer writes to it, and after the final normalisation it
is close to `sqrt(width)`; column 0 of the output matrix therefore adds a constant to each logit.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import numpy.typing as npt

WORD_LIST = """
about after again agenda agreed all and answer before budget call change check clear client close
code comment cost customer date day decision deliver design detail done draft early end every
feature file final find first fix follow for form friday from goal good group hear help hour idea
issue item join know last later launch list longer look make market meeting monday month more move
name need new next note number offer open order owner paper part people phase plan point price
problem product project question quick ready reason release report result review risk room sales
send server ship short show side small speak start status step summary support survey task team
test thank that the then they think this thursday time today tomorrow topic tuesday turn update
use user value version wait want wednesday week with work write year
"""
WORDS = frozenset(WORD_LIST.split())
BOS, END = "<|bos|>", "<|end|>"
QUOTE = '"'
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>"
    "{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PUNCTUATION = frozenset(".,0123456789{}[]:")
NORMAL, CONTROL, UNUSED = 1, 3, 5  # token types of the GGUF format

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Shape:
    """The size of the network. `width` = heads x head size; the defaults make a file under 1 MB."""

    layer_count: int = 2
    width: int = 64
    head_count: int = 2
    kv_head_count: int = 1
    feed_forward: int = 128
    n_ctx_train: int = 16_384
    vocab_padding: int = 0  # unused tokens at the end, to make the logits as wide as a real model's
    weights: Literal["F16", "Q8_0", "Q4_0"] = "F16"  # quantised ones need widths divisible by 32


def write(path: Path, seed: int = 0, shape: Shape | None = None) -> None:
    """Write the model to `path`: the same bytes for the same seed and shape. Under a second."""
    shape = shape or Shape()
    tokens, merges = _vocabulary()
    tokens += [f"<|unused-{index}|>" for index in range(shape.vocab_padding)]
    writer = gguf.GGUFWriter(path, "llama")
    _add_metadata(writer, shape)
    _add_tokenizer(writer, tokens, merges)
    kind = gguf.GGMLQuantizationType[shape.weights]
    for name, tensor in _tensors(tokens, shape, seed).items():
        if tensor.ndim == 2:
            stored = gguf.quants.quantize(tensor, kind)
            writer.add_tensor(name, stored, raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _byte_symbols() -> list[str]:
    """The printable stand-in of each byte in byte-level BPE, index = byte value."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    symbols, spare = [], 0x100
    for byte in range(256):
        if byte in printable:
            symbols.append(chr(byte))
        else:
            symbols.append(chr(spare))
            spare += 1
    return symbols


def _vocabulary() -> tuple[list[str], list[str]]:
    """Tokens (bytes, pieces of words, control tokens) and the merges that build the words."""
    symbols = _byte_symbols()
    tokens = dict.fromkeys(symbols)
    merges: dict[str, None] = {}
    for word in WORD_LIST.split():
        left = symbols[ord(" ")]
        for letter in word:
            merges[f"{left} {letter}"] = None
            left += letter
            tokens[left] = None
    return [*tokens, BOS, END, *ROLES], list(merges)


def _token_type(token: str) -> int:
    if token.startswith("<|unused"):
        return UNUSED
    return CONTROL if token in (BOS, END, *ROLES) else NORMAL


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name("coscheduler tiny LLM (random weights)")
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layer_count)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.head_count)
    writer.add_head_count_kv(shape.kv_head_count)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // shape.head_count)


def _add_tokenizer(writer: gguf.GGUFWriter, tokens: list[str], merges: list[str]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([_token_type(token) for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index(BOS))
    writer.add_eos_token_id(tokens.index(END))
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tensors(tokens: list[str], shape: Shape, seed: int) -> dict[str, Array]:
    """All weights by their GGUF names, float32; matrices are (outputs, inputs)."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, scale: float) -> Array:
        return rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(scale)

    width, kv_width = shape.width, shape.width // shape.head_count * shape.kv_head_count
    inner = 1 / math.sqrt(width)
    tensors: dict[str, Array] = {"token_embd.weight": matrix(len(tokens), width, 1.0)}
    for layer in range(shape.layer_count):
        block = {
            "attn_q": matrix(width, width, inner),
            "attn_k": matrix(kv_width, width, inner),
            "attn_v": matrix(kv_width, width, inner),
            "attn_output": matrix(width, width, inner),
            "ffn_gate": matrix(shape.feed_forward, width, inner),
            "ffn_up": matrix(shape.feed_forward, width, inner),
            "ffn_down": matrix(width, shape.feed_forward, 1 / math.sqrt(shape.feed_forward)),
        }
        block["attn_output"][0] = 0  # coordinate 0 of the residual stream stays as embedded
        block["ffn_down"][0] = 0
        tensors |= {f"blk.{layer}.{name}.weight": value for name, value in block.items()}
        for norm in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{norm}.weight"] = np.ones(width, dtype=np.float32)
    tensors["output_norm.weight"] = np.ones(width, dtype=np.float32)
    tensors["output.weight"] = matrix(len(tokens), width, 0.5 * inner)
    _plant_bias(tensors, [_bias(token) for token in tokens], width)
    return tensors


def _plant_bias(tensors: dict[str, Array], bias: list[float], width: int) -> None:
    """Make coordinate 0 dominate the normalised hidden state and add `bias` to the logits."""
    loud = 4 * math.sqrt(width)
    tensors["token_embd.weight"][:, 0] = loud
    after_norm = loud / math.sqrt((loud**2 + width) / width)
    tensors["output.weight"][:, 0] = np.array(bias, dtype=np.float32) / np.float32(after_norm)


def _bias(token: str) -> float:
    """How likely a token should be, as a logit: words 0, a quotation mark more, bytes hardly."""
    if token == QUOTE:
        return 0.6
    if token == END:
        return 0.2
    if _token_type(token) != NORMAL:
        return -20.0
    if token[1:] in WORDS:
        return 0.0
    return -4.0 if token in PUNCTUATION else -9.0
