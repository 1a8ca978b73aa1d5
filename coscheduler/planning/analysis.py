"""The language model in a plan: the engine's own options, at the plan's link speed."""

from dataclasses import replace

from coscheduler.config import AnalysisSettings
from coscheduler.core.model import EngineName
from coscheduler.engines.analysis import footprint, header, on_card, options, sizes
from coscheduler.engines.analysis.dry_run import Sizes
from coscheduler.engines.analysis.footprint import Footprint
from coscheduler.engines.analysis.options import Choice
from coscheduler.planning.offer import Facts, Machine, Offer, Offered, local, shape_wanted, title

RAM_BYTES_PER_MS = on_card.RAM_BYTES_PER_MS  # an assumption that a plan must state


def offered(section: AnalysisSettings, machine: Machine) -> Offer:
    """The engine's options. Raises InvalidInput SIZES_UNKNOWN, EngineFault MODEL_CORRUPT or
    KV_CAP_TOO_SMALL.
    """
    shape = _footprint(section)
    choices = options.choices(shape, section, machine.device)
    return Offer(
        EngineName.ANALYSIS,
        title(section.model),
        options.CONTEXT_BYTES[machine.device.device],
        tuple(_entry(shape, choice, section, machine) for choice in choices),
    )


def _entry(
    shape: Footprint, choice: Choice, section: AnalysisSettings, machine: Machine
) -> Offered:
    kv_bytes = shape.kv_bytes(choice.n_ctx, choice.kv_type, choice.n_batch)
    guess = Sizes(kv_bytes, sizes.compute_bytes(shape, choice.n_ctx, choice.n_batch))
    option = options.option(choice, guess, shape, section, machine.device)
    # The plan keeps the cache where the model stays: a conversation may go on at any time.
    option = replace(option, resident=option.resident + option.run_lines(0), run=())
    if machine.device.device == "cuda":
        layers, n_batch = choice.n_gpu_layers, choice.n_batch
        prompt_ms = options.prefill_ms(shape, n_batch, machine.device)
        option = replace(
            option,
            load_ms=machine.copy_ms(shape.offloaded_bytes(layers)),
            run_ms_per_second=on_card.run_ms_per_second(
                shape, layers, n_batch, prompt_ms, machine.link_bytes_per_ms
            ),
        )
    facts: Facts = {
        "n_ctx": choice.n_ctx,
        "kv_type": choice.kv_type,
        "n_gpu_layers": choice.n_gpu_layers,
        "layers": len(shape.layers) + 1,
    }
    return Offered(option, option.name, facts, {"ram": option.host_bytes})


def _footprint(section: AnalysisSettings) -> Footprint:
    """By the file's header, or by what the config states of it."""
    path = local(section.model, "config.json")
    if section.shape is not None and not path.is_file():
        return footprint.of(sizes.header(section.shape))
    with shape_wanted(EngineName.ANALYSIS, section.model):
        return footprint.of(header.read(path))
