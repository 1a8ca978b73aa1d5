"""The language model in a plan: layers on the card, KV type, context.

What is not on the card stays in RAM and is computed there token by token; the work on a prompt
copies those layers over the link for every batch of it.
"""

from dataclasses import replace

from coscheduler.config import AnalysisSettings
from coscheduler.core.model import EngineName
from coscheduler.engines.analysis import footprint, header, options, sizes
from coscheduler.engines.analysis.dry_run import Sizes
from coscheduler.engines.analysis.footprint import Footprint
from coscheduler.engines.analysis.options import Choice
from coscheduler.planning.offer import Facts, Machine, Offer, Offered, local, shape_wanted, title

LAYER_STEPS = 8  # all layers on the card, or so many eighths of them
RAM_BYTES_PER_MS = 40_000_000  # weights that a processor reads: two channels of memory
ANSWER_TOKENS_PER_SECOND = 1  # of audio: a page for ten minutes
CONTEXT_BYTES = {"cpu": 12 * 1024 * 1024, "cuda": 400 * 1024 * 1024}


def offered(section: AnalysisSettings, machine: Machine) -> Offer:
    """The engine's options. Raises InvalidInput SIZES_UNKNOWN, EngineFault MODEL_CORRUPT or
    KV_CAP_TOO_SMALL.
    """
    shape = _footprint(section)
    choices = options.choices(shape, section, machine.device)
    on_card = machine.device.device == "cuda"
    found = [
        _entry(shape, replace(choice, n_gpu_layers=layers), section, machine)
        for choice in choices
        for layers in (_layer_counts(shape, section.n_gpu_layers) if on_card else (0,))
    ]
    return Offer(
        EngineName.ANALYSIS,
        title(section.model),
        CONTEXT_BYTES[machine.device.device],
        tuple(found),
    )


def _layer_counts(shape: Footprint, most: int) -> tuple[int, ...]:
    """Eighths of all layers, the output matrix counted as one; no more than the config allows."""
    every = len(shape.layers) + 1
    counts = {min(most, every * step // LAYER_STEPS) for step in range(LAYER_STEPS + 1)}
    return tuple(sorted(counts, reverse=True))


def _entry(
    shape: Footprint, choice: Choice, section: AnalysisSettings, machine: Machine
) -> Offered:
    kv_bytes = shape.kv_bytes(choice.n_ctx, choice.kv_type, choice.n_batch)
    guess = Sizes(kv_bytes, sizes.compute_bytes(shape, choice.n_ctx, choice.n_batch))
    option = options.option(choice, guess, shape, section, machine.device)
    if machine.device.device == "cuda":
        weights = shape.offloaded_bytes(choice.n_gpu_layers)
        option = replace(
            option,
            name=f"{choice.n_gpu_layers} layers, {choice.name}",
            load_ms=machine.copy_ms(weights),
            run_ms_per_second=_run_ms_per_second(shape, choice, weights, machine),
        )
    facts: Facts = {
        "n_ctx": choice.n_ctx,
        "kv_type": choice.kv_type,
        "n_gpu_layers": choice.n_gpu_layers,
        "layers": len(shape.layers) + 1,
    }
    return Offered(option, option.name, facts, {"ram": option.host_bytes})


def _run_ms_per_second(shape: Footprint, choice: Choice, weights: int, machine: Machine) -> int:
    """Reading what was said in a second, and writing the part of the answer that it adds."""
    speed = options.rates(machine.device)
    in_ram = options.layers_in_ram(shape, choice.n_gpu_layers)
    off_card = sum(layer.bytes for layer in in_ram)
    batch_ms = max(
        options.prefill_ms(shape, choice.n_batch, machine.device), machine.copy_ms(off_card)
    )
    token_ms = weights / speed.read_bytes_per_ms + off_card / RAM_BYTES_PER_MS
    reading_ms = options.SPEECH_TOKENS_PER_SECOND * batch_ms / choice.n_batch
    return 1 + int(reading_ms + ANSWER_TOKENS_PER_SECOND * token_ms)


def _footprint(section: AnalysisSettings) -> Footprint:
    """By the file's header, or by what the config states of it."""
    path = local(section.model, "config.json")
    if section.shape is not None and not path.is_file():
        return footprint.of(sizes.header(section.shape))
    with shape_wanted(EngineName.ANALYSIS, section.model):
        return footprint.of(header.read(path))
