"""What a model needs by its header, set right by what the library says of it.

One context is asked about to learn which caches the architecture keeps (`footprint.with_caches`),
in the same call as the contexts that the header alone suggests. Only where the two differ are
contexts chosen again, and asked about in a second call.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from coscheduler.config import AnalysisSettings, DeviceSettings
from coscheduler.engines.analysis import dry_run, footprint, header, options
from coscheduler.engines.analysis.dry_run import Sizes, Wanted
from coscheduler.engines.analysis.footprint import Footprint
from coscheduler.errors import EngineFault

PROBE_N_CTX = 16_384  # large beside usual windows, and beside the rounding of what is announced


@dataclass(frozen=True)
class Survey:
    """The model's footprint, each possible choice with its sizes, best tier first, and the highest
    anonymous memory of the processes that found out.
    """

    model: Footprint
    found: tuple[tuple[options.Choice, Sizes], ...]
    peak_bytes: int


def options_of(settings: AnalysisSettings, device: DeviceSettings) -> Survey:
    """What there is to choose from.

    Raises EngineFault MODEL_MISSING, MODEL_CORRUPT, MODEL_UNSUPPORTED, KV_CAP_TOO_SMALL or
    KV_TYPE_UNSUPPORTED.
    """
    by_header = footprint.of(header.read(settings.model))
    try:
        guessed = _chosen(by_header, settings, device)
    except EngineFault:
        guessed = ()  # the header may overstate the cache
    n_batch = options.batch(by_header, settings.n_batch, device)
    probe = Wanted(PROBE_N_CTX, "f16", n_batch)
    report = dry_run.measure(settings.model, [probe, *_wanted(guessed)], device.threads)
    corrected = corrected_by(by_header, probe, report.sizes[0])
    chosen, sizes = _chosen(corrected, settings, device), report.sizes[1:]
    peak_bytes = report.peak_bytes
    if chosen != guessed or not any(sizes):
        again = dry_run.measure(settings.model, _wanted(chosen), device.threads)
        sizes, peak_bytes = again.sizes, max(peak_bytes, again.peak_bytes)
    pairs = zip(chosen, sizes, strict=True)
    found = tuple((choice, size) for choice, size in pairs if size is not None)
    return Survey(corrected, found, peak_bytes)


def _chosen(
    model: Footprint, settings: AnalysisSettings, device: DeviceSettings
) -> tuple[options.Choice, ...]:
    return options.with_others(options.choices(model, settings, device), model, device)


def corrected_by(by_header: Footprint, probe: Wanted, sizes: Sizes | None) -> Footprint:
    """The footprint with the caches that the library announced for the probe."""
    if sizes is None:
        return by_header
    caches, state = sizes.caches, sizes.state_bytes
    return footprint.with_caches(by_header, caches, state, probe.n_ctx, probe.n_batch)


def _wanted(choices: Sequence[options.Choice]) -> list[Wanted]:
    return [choice.wanted for choice in choices]
