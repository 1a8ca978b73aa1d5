"""How many bytes a model will take, from its GGUF header alone. All results are exact integers.

KV cache, for each layer: cells x (K width x bytes per K element + V width x bytes per V element),
where a width is KV heads x head size, and cells are n_ctx rounded up to 256 (llama.cpp's own
rounding), or fewer for layers with a sliding window. 40 layers of 8 heads of 128 at 8,192 tokens:
1,280 MiB in f16, 680 in q8_0, 360 in q4_0.

Some architectures follow rules that are not in the header: windows hard-wired in the library,
recurrent state. The library says without allocating anything (`dry_run.py`) which caches one
context would have; `with_caches` takes their shape over, and the arithmetic for every other context
stays exact.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from coscheduler.core.model import Segment
from coscheduler.engines.analysis.header import Header

KV_TYPES: tuple[str, ...] = ("f16", "q8_0", "q4_0")
KV_BLOCKS: dict[str, tuple[int, int]] = {"f16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18)}
CELLS_STEP = 256
BUFFER_ALIGNMENT = 32
ROUNDING_BYTES = 5243  # half of the 0.01 MiB to which the library rounds what it announces
# What llama.cpp builds to tokenize, measured on BPE vocabularies of 32,000 and 131,072 tokens.
TOKEN_TABLE_BYTES = 134
MERGE_TABLE_BYTES = 106

_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class Cache:
    """One KV cache as the library announces it: `cells` tokens of `layers` layers in f16.

    The bytes, of all its layers, are rounded to 0.01 MiB.
    """

    cells: int
    layers: int
    key_bytes: int
    value_bytes: int


@dataclass(frozen=True)
class KvLayer:
    """The KV cache of one layer, or of several alike: elements per token, and its window (0 = the
    whole context).
    """

    key_width: int
    value_width: int
    head_size: int
    window: int


@dataclass(frozen=True)
class Footprint:
    """The model in numbers. `layers` are the repeating blocks in order; bytes are as stored."""

    layers: tuple[Segment, ...]
    embedding_bytes: int  # token embeddings: llama.cpp keeps them in host memory
    output_bytes: int  # final norm and output matrix
    tied: bool  # the output matrix is the token embedding again
    kv_layers: tuple[KvLayer, ...]
    value_size: int  # elements of one head's values
    n_ctx_train: int
    width: int
    feed_forward: int
    vocabulary_bytes: int  # tables of the tokenizer, host memory
    state_bytes: int = 0  # recurrent state, the same for every context

    @property
    def weights_bytes(self) -> int:
        """All tensors of the file."""
        return self.embedding_bytes + self.output_bytes + sum(layer.bytes for layer in self.layers)

    def offloaded_bytes(self, n_gpu_layers: int) -> int:
        """Bytes on the GPU when the last `n_gpu_layers` layers go there.

        The output matrix counts as one more layer, the last; a tied one is duplicated there.
        """
        if n_gpu_layers <= 0:
            return 0
        output = self.output_bytes + (self.embedding_bytes if self.tied else 0)
        first = self.first_offloaded(n_gpu_layers)
        return output + sum(layer.bytes for layer in self.layers[first:])

    def first_offloaded(self, n_gpu_layers: int) -> int:
        """Index of the first block on the GPU; the number of blocks when none is."""
        return max(0, len(self.layers) + 1 - n_gpu_layers) if n_gpu_layers > 0 else len(self.layers)

    def kv_bytes(self, n_ctx: int, kv_type: str, n_ubatch: int, first_layer: int = 0) -> int:
        """KV cache and state of the layers from `first_layer` on, one sequence, windows not kept
        in full. Where it is not known which layer keeps what, a share by the number of layers.
        """
        if first_layer and len(self.kv_layers) != len(self.layers):
            whole = self.kv_bytes(n_ctx, kv_type, n_ubatch)
            return -(-whole * (len(self.layers) - first_layer) // len(self.layers))
        return self.state_bytes + sum(
            _cells(layer, n_ctx, n_ubatch) * _row_bytes(layer, kv_type)
            for layer in self.kv_layers[first_layer:]
        )

    def supports(self, kv_type: str) -> bool:
        """Whether every head is a whole number of the type's blocks; llama.cpp refuses others."""
        block, _ = KV_BLOCKS[kv_type]
        return all(layer.head_size % block == 0 for layer in self.kv_layers if layer.key_width)

    def n_ctx_fitting(self, cap_bytes: int, n_ctx_max: int, kv_type: str, n_ubatch: int) -> int:
        """The largest multiple of 256 up to `n_ctx_max` whose KV cache fits the cap, or 0."""
        low, high = 0, n_ctx_max // CELLS_STEP
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.kv_bytes(middle * CELLS_STEP, kv_type, n_ubatch) <= cap_bytes
            low, high = (middle, high) if fits else (low, middle - 1)
        return low * CELLS_STEP


def of(header: Header) -> Footprint:
    """The footprint of a model by its header."""
    layer_count = header.integer("block_count", 0)
    layer_bytes = [0] * layer_count
    embedding = output = 0
    for tensor in header.tensors:
        size = -(-tensor.bytes // BUFFER_ALIGNMENT) * BUFFER_ALIGNMENT
        layer = _LAYER.match(tensor.name)
        if layer is not None and int(layer[1]) < layer_count:
            layer_bytes[int(layer[1])] += size
        elif tensor.name.startswith("token_embd"):
            embedding += size
        else:
            output += size
    names = {tensor.name for tensor in header.tensors}
    return Footprint(
        layers=tuple(Segment(f"blk.{index}", size) for index, size in enumerate(layer_bytes)),
        embedding_bytes=embedding,
        output_bytes=output,
        tied="output.weight" not in names,
        kv_layers=_kv_layers(header, layer_count),
        value_size=max(1, header.integer("attention.value_length", _head_size(header))),
        n_ctx_train=header.integer("context_length", 0),
        width=header.integer("embedding_length", 0),
        feed_forward=max(header.per_layer("feed_forward_length", max(layer_count, 1), 0)),
        vocabulary_bytes=_vocabulary_bytes(header),
    )


def with_caches(
    footprint: Footprint, caches: Sequence[Cache], state_bytes: int, n_ctx: int, n_ubatch: int
) -> Footprint:
    """The footprint corrected by what the library announced for a context of `n_ctx` tokens in f16.

    Where the arithmetic says the same it is kept, layer by layer. Otherwise each cache becomes one
    entry: its width is made exact by the head sizes of the header, and one with fewer cells than
    `n_ctx` has a window.
    """
    announced = sum(cache.key_bytes + cache.value_bytes for cache in caches)
    tolerance = 2 * ROUNDING_BYTES * (len(caches) + 1)
    if not state_bytes and abs(announced - footprint.kv_bytes(n_ctx, "f16", n_ubatch)) < tolerance:
        return footprint
    heads = [layer for layer in footprint.kv_layers if layer.key_width]
    head_size = max((layer.head_size for layer in heads), default=1)
    kv_layers = tuple(
        KvLayer(
            key_width=_exact_width(cache.key_bytes, cache.cells, head_size),
            value_width=_exact_width(cache.value_bytes, cache.cells, footprint.value_size),
            head_size=head_size,
            window=cache.cells - n_ubatch if cache.cells < n_ctx else 0,
        )
        for cache in caches
    )
    return replace(footprint, kv_layers=kv_layers, state_bytes=state_bytes)


def _exact_width(cache_bytes: int, cells: int, head_size: int) -> int:
    """Elements per token from rounded bytes of f16: a whole number of heads."""
    return round(cache_bytes / (cells * 2 * head_size)) * head_size


def _vocabulary_bytes(header: Header) -> int:
    tokens = header.array_lengths.get("tokenizer.ggml.tokens", 0)
    merges = header.array_lengths.get("tokenizer.ggml.merges", 0)
    return tokens * TOKEN_TABLE_BYTES + merges * MERGE_TABLE_BYTES


def _kv_layers(header: Header, layer_count: int) -> tuple[KvLayer, ...]:
    """Widths and windows by layer; a layer without KV heads (recurrent) has width 0."""
    heads = header.per_layer("attention.head_count", layer_count, 1)
    embedded = _head_size(header)
    key_size = header.integer("attention.key_length", embedded)
    value_size = header.integer("attention.value_length", embedded)
    if header.integer("attention.key_length_mla", 0):
        value_size = 0  # multi-head latent attention: values are read out of the cached keys
    kv_heads = header.per_layer("attention.head_count_kv", layer_count, heads[0] if heads else 0)
    return tuple(
        KvLayer(count * key_size, count * value_size, key_size, window)
        for count, window in zip(kv_heads, _windows(header, layer_count), strict=True)
    )


def _head_size(header: Header) -> int:
    """Elements of one head where the header does not say: the width shared out."""
    heads = header.per_layer("attention.head_count", max(1, header.integer("block_count", 1)), 1)
    return header.integer("embedding_length", 0) // max(1, *heads)


def _windows(header: Header, layer_count: int) -> tuple[int, ...]:
    """The sliding window of each layer, 0 where the whole context is kept.

    The pattern is a number n (every n-th layer sees everything) or an array of flags.
    Architectures that hard-wire it in the library are counted as if they had none, which is never
    too little.
    """
    window = header.integer("attention.sliding_window", 0)
    pattern = header.values.get(f"{header.architecture}.attention.sliding_window_pattern", 0)
    if isinstance(pattern, tuple):
        flags = [bool(flag) for flag in pattern[:layer_count]]
    else:
        period = int(pattern) if isinstance(pattern, int) else 0
        flags = [period > 0 and index % period < period - 1 for index in range(layer_count)]
    return tuple(window if flag else 0 for flag in flags)


def _cells(layer: KvLayer, n_ctx: int, n_ubatch: int) -> int:
    needed = min(n_ctx, layer.window + n_ubatch) if layer.window else n_ctx
    return -(-needed // CELLS_STEP) * CELLS_STEP


def _row_bytes(layer: KvLayer, kv_type: str) -> int:
    block, block_bytes = KV_BLOCKS[kv_type]
    return (layer.key_width + layer.value_width) // block * block_bytes
