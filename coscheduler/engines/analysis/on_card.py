"""Some layers on a card, the others in RAM: how many, which bytes lie where, how long it takes.

llama.cpp puts the last layers on the card, the output matrix counting as one more, and each layer's
cache where the layer is. What is in RAM is read by the processor for every token of an answer; for
a prompt it is copied to the card once for every batch. So a card too small for a model makes it
slower and changes nothing else.
"""

from coscheduler.core.model import Segment
from coscheduler.engines.analysis.footprint import Footprint

EIGHTHS = (8, 6, 4, 2, 1, 0)  # of all layers: the six ways that are offered
SPEECH_TOKENS_PER_SECOND = 5
ANSWER_TOKENS_PER_SECOND = 1  # of audio: a page for ten minutes
# Cautious: a card of the 24 GB class, a PCIe 3.0 link with 16 lanes, two channels of memory.
CARD_BYTES_PER_MS = 300_000_000
LINK_BYTES_PER_MS = 12_000_000
RAM_BYTES_PER_MS = 40_000_000


def layer_counts(footprint: Footprint, most: int) -> tuple[int, ...]:
    """Values of n_gpu_layers to offer, largest first; none is larger than `most`."""
    every = len(footprint.layers) + 1
    counts = {min(most, every * eighths // 8) for eighths in EIGHTHS}
    return tuple(sorted(counts, reverse=True))


def layers_in_ram(footprint: Footprint, n_gpu_layers: int) -> tuple[Segment, ...]:
    """The layers that do not go to the card: the first ones."""
    return footprint.layers[: footprint.first_offloaded(n_gpu_layers)]


def ram_bytes(footprint: Footprint, n_gpu_layers: int) -> int:
    """Bytes of those layers."""
    return sum(layer.bytes for layer in layers_in_ram(footprint, n_gpu_layers))


def kv_bytes(
    footprint: Footprint, n_gpu_layers: int, n_ctx: int, kv_type: str, n_batch: int, whole: int
) -> int:
    """The cache of the layers on the card, of `whole` bytes in all. Where the library's figure is
    not the arithmetic's, all of it; a card without any layer has none.
    """
    first = footprint.first_offloaded(n_gpu_layers)
    if first == len(footprint.layers):
        return 0
    if whole != footprint.kv_bytes(n_ctx, kv_type, n_batch):
        return whole
    return footprint.kv_bytes(n_ctx, kv_type, n_batch, first)


def token_ms(footprint: Footprint, n_gpu_layers: int) -> float:
    """One token of an answer: all weights are read, each where it lies."""
    on_card = footprint.offloaded_bytes(n_gpu_layers)
    return on_card / CARD_BYTES_PER_MS + ram_bytes(footprint, n_gpu_layers) / RAM_BYTES_PER_MS


def run_ms_per_second(
    footprint: Footprint,
    n_gpu_layers: int,
    n_batch: int,
    prefill_ms: int,
    link_bytes_per_ms: int = LINK_BYTES_PER_MS,
) -> int:
    """Reading what was said in a second, and writing the part of the answer that it adds.

    `prefill_ms` is the computation of a batch of `n_batch` tokens; copying goes on beside it.
    """
    copy_ms = ram_bytes(footprint, n_gpu_layers) / link_bytes_per_ms
    reading_ms = SPEECH_TOKENS_PER_SECOND * max(prefill_ms, copy_ms) / n_batch
    writing_ms = ANSWER_TOKENS_PER_SECOND * token_ms(footprint, n_gpu_layers)
    return 1 + int(reading_ms + writing_ms)
