"""The header that a GGUF of the llama architecture would have, from the few numbers that decide it.

Which tensor is stored in which type follows llama.cpp's own rule for the named mixture: in Q4_K_M
the output matrix, and the values and the way down of every other layer or so, are Q6_K.
"""

from collections.abc import Iterator

from coscheduler.engines.analysis.footprint import Footprint
from coscheduler.engines.analysis.header import Header, Tensor, Value
from coscheduler.shapes import AnalysisShape

# Elements and bytes of a block.
BLOCKS = {"F32": (1, 4), "F16": (1, 2), "Q8_0": (32, 34), "Q6_K": (256, 210), "Q4_K": (256, 144)}
ARCHITECTURE = "llama"


def header(shape: AnalysisShape) -> Header:
    """A header with the fields and tensors that the footprint reads."""
    heads = shape.attention_head_count
    key_length = shape.attention_key_length or shape.embedding_length // heads
    numbers = {
        "block_count": shape.block_count,
        "embedding_length": shape.embedding_length,
        "feed_forward_length": shape.feed_forward_length,
        "attention.head_count": heads,
        "attention.head_count_kv": shape.attention_head_count_kv,
        "attention.key_length": key_length,
        "attention.value_length": key_length,
        "context_length": shape.context_length,
    }
    values: dict[str, Value] = {f"{ARCHITECTURE}.{key}": value for key, value in numbers.items()}
    values["general.architecture"] = ARCHITECTURE
    # Byte-pair vocabularies have about one merge for each token.
    lengths = {
        "tokenizer.ggml.tokens": shape.vocabulary_size,
        "tokenizer.ggml.merges": shape.vocabulary_size,
    }
    return Header(values, lengths, tuple(_tensors(shape, key_length)))


def _tensors(shape: AnalysisShape, key_length: int) -> Iterator[Tensor]:
    width, hidden = shape.embedding_length, shape.feed_forward_length
    queries = shape.attention_head_count * key_length
    keys = shape.attention_head_count_kv * key_length
    usual, finer = _types(shape)
    tied = shape.tied_embeddings
    yield _tensor("token_embd.weight", shape.vocabulary_size * width, finer if tied else usual)
    yield _tensor("output_norm.weight", width, "F32")
    if not tied:
        yield _tensor("output.weight", shape.vocabulary_size * width, finer)
    for index in range(shape.block_count):
        sensitive = finer if _is_sensitive(index, shape.block_count) else usual
        block = f"blk.{index}"
        yield _tensor(f"{block}.attn_norm.weight", width, "F32")
        yield _tensor(f"{block}.attn_q.weight", width * queries, usual)
        yield _tensor(f"{block}.attn_k.weight", width * keys, usual)
        yield _tensor(f"{block}.attn_v.weight", width * keys, sensitive)
        yield _tensor(f"{block}.attn_output.weight", queries * width, usual)
        yield _tensor(f"{block}.ffn_norm.weight", width, "F32")
        yield _tensor(f"{block}.ffn_gate.weight", width * hidden, usual)
        yield _tensor(f"{block}.ffn_up.weight", width * hidden, usual)
        yield _tensor(f"{block}.ffn_down.weight", hidden * width, sensitive)


def _types(shape: AnalysisShape) -> tuple[str, str]:
    """The type of most matrices, and of those that suffer most from being coarse."""
    if shape.quantization == "Q4_K_M":
        return "Q4_K", "Q6_K"
    return shape.quantization, shape.quantization


def _is_sensitive(index: int, count: int) -> bool:
    """The first and the last eighth of the layers, and every third one between them."""
    eighth = count // 8
    return index < eighth or index >= 7 * count // 8 or (index - eighth) % 3 == 2


def _tensor(name: str, element_count: int, kind: str) -> Tensor:
    block, block_bytes = BLOCKS[kind]
    return Tensor(name, -(-element_count // block) * block_bytes)


def compute_bytes(shape: Footprint, n_ctx: int, n_batch: int) -> int:
    """Estimate of the compute buffer: for each token of a batch the feed-forward's three matrices
    and four of the residual stream, float32, and its row of the attention's mask, float16.

    Within 5 % of what llama.cpp announces for 2,048 to 16,384 tokens and three shapes of 3B to 24B,
    for f16 and q8_0.
    """
    return n_batch * (4 * (3 * shape.feed_forward + 4 * shape.width) + 2 * n_ctx)
