"""The ways for the model to be in memory: at most six, and on a card a safe one.

On the CPU: KV type x context length, the best of them also with the weights mapped from the file:
slower, for they are not repacked. On a card: the best of these, with fewer and fewer layers on the
card and the others in RAM. As that always fits, no coarser cache is ever needed there. The safe one
is for the time after the library has aborted: no flash attention, f16, a small batch.

Weights are what a load takes; the KV cache comes with a run and goes with it. So options of the
same weights (`Option.base`) take each other's place without a load.

Quality tiers. Full context in f16, q8_0, q4_0 are tiers 0, 1, 2. A smaller context comes after all
KV types of a larger one, three tiers for each halving: it changes no word of an answer, but longer
transcripts are refused, and that is worse than a coarser cache. An option that takes no less
memory than one of a better tier is left out.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from coscheduler.config import AnalysisSettings, DeviceSettings
from coscheduler.core.model import Line, LineBytes, Option, RunLine
from coscheduler.engines.analysis import on_card
from coscheduler.engines.analysis.dry_run import Sizes, Wanted
from coscheduler.engines.analysis.footprint import CELLS_STEP, KV_TYPES, Footprint
from coscheduler.errors import EngineFault

CONTEXT_BYTES = {"cpu": 12 * 1024 * 1024, "cuda": 400 * 1024 * 1024}  # until it has been measured
OPTIONS_MAX = 6
DECODE_TOKENS_PER_SLICE = 32
SLICE_MS_MIN = 250
BATCH_MIN = 32
MAPPED_SLOWDOWN = 2  # of weights that are not repacked for the processor
CONTENTION = 4  # a slice may take this much longer than on an idle machine


@dataclass(frozen=True)
class Choice:
    """One option before its bytes are known. `load` reads it back from `Option.settings_json`."""

    n_ctx: int
    kv_type: str
    n_gpu_layers: int
    quality_tier: int
    n_batch: int  # tokens decoded in one call
    sequence_count: int = 1  # texts that share the context
    is_mapped: bool = False  # weights read from the file as they are needed
    is_safe: bool = False

    @property
    def name(self) -> str:
        """For people: "n_ctx 8192, KV q8_0, mapped"."""
        parts = [f"n_ctx {self.n_ctx}", f"KV {self.kv_type}"]
        return ", ".join(parts + ["mapped"] * self.is_mapped + ["safe"] * self.is_safe)

    @property
    def base(self) -> str:
        """What is loaded: the same for options that differ in their runs alone."""
        return f"{self.n_gpu_layers} GPU layers, mapped: {self.is_mapped}"

    @property
    def wanted(self) -> Wanted:
        """The context to ask the library about."""
        flash = not self.is_safe
        return Wanted(self.n_ctx, self.kv_type, self.n_batch, self.sequence_count, flash)

    @staticmethod
    def of(option: Option) -> "Choice":
        """The choice that an option was made of."""
        return Choice(**json.loads(option.settings_json))


@dataclass(frozen=True)
class Rates:
    """Rough speed of a device, for estimates of time only."""

    copy_bytes_per_ms: int
    read_bytes_per_ms: int  # weights read for one decoded token
    flops_per_ms: int


def rates(device: DeviceSettings) -> Rates:
    """Cautious figures: two CPU cores of a server, a card of the 24 GB class."""
    if device.device == "cuda":
        return Rates(2_000_000, on_card.CARD_BYTES_PER_MS, 10_000_000_000)
    return Rates(1_000_000, 5_000_000 * device.threads, 60_000_000 * device.threads)


def batch(footprint: Footprint, n_batch_max: int, device: DeviceSettings) -> int:
    """Tokens of a prompt decoded in one call: `n_batch_max`, halved while such a call is expected
    to take longer than a slice should.
    """
    n_batch = n_batch_max
    while n_batch > BATCH_MIN and prefill_ms(footprint, n_batch, device) > SLICE_MS_MIN:
        n_batch = max(BATCH_MIN, n_batch // 2)
    return n_batch


def prefill_ms(footprint: Footprint, n_batch: int, device: DeviceSettings) -> int:
    """Expected time to decode `n_batch` tokens of a prompt."""
    return 2 * footprint.weights_bytes * n_batch // rates(device).flops_per_ms


def choices(
    footprint: Footprint, settings: AnalysisSettings, device: DeviceSettings
) -> tuple[Choice, ...]:
    """Which (n_ctx, KV type) fit `kv_cache_max`, best tier first; on a card the best of them with
    each number of layers.

    Layers with a sliding window cache a batch beside it: where nothing fits, the batch is halved.
    Raises EngineFault KV_CAP_TOO_SMALL when not even the smallest context fits.
    """
    n_batch = batch(footprint, settings.n_batch, device)
    while not (found := _fitting(footprint, settings, device, n_batch)):
        if n_batch <= BATCH_MIN:
            raise _cap_too_small(footprint, settings, n_batch)
        n_batch = max(BATCH_MIN, n_batch // 2)
    kept = _pruned(found, footprint)
    if device.device == "cpu":
        return kept
    counts = on_card.layer_counts(footprint, settings.n_gpu_layers)
    return tuple(replace(kept[0], n_gpu_layers=count) for count in counts)


def _limits(footprint: Footprint, settings: AnalysisSettings) -> tuple[int, int]:
    """The largest context that is wanted, and the smallest that is of use."""
    full = min(settings.n_ctx_max, footprint.n_ctx_train or settings.n_ctx_max)
    return full, max(min(settings.n_ctx_min, full) // CELLS_STEP, 1) * CELLS_STEP


def _fitting(
    footprint: Footprint, settings: AnalysisSettings, device: DeviceSettings, n_batch: int
) -> list[Choice]:
    full, floor = _limits(footprint, settings)
    count = _sequence_count(footprint, settings)
    found = []
    for kv_type in settings.kv_types:
        if not footprint.supports(kv_type):
            continue
        cap = int(settings.kv_cache_max)
        n_ctx = footprint.n_ctx_fitting(cap, full, kv_type, n_batch)
        while n_ctx >= floor:
            tier = KV_TYPES.index(kv_type) + len(KV_TYPES) * math.ceil(math.log2(full / n_ctx))
            found.append(Choice(n_ctx, kv_type, 0, tier, n_batch, count, settings.use_mmap))
            n_ctx = n_ctx // 2 // CELLS_STEP * CELLS_STEP
    return found


def _sequence_count(footprint: Footprint, settings: AnalysisSettings) -> int:
    """Texts that share the context. State and windows would take memory for each of them."""
    has_windows = any(layer.window for layer in footprint.kv_layers)
    return 1 if footprint.state_bytes or has_windows else settings.sequences_max


def with_others(
    chosen: Sequence[Choice], footprint: Footprint, device: DeviceSettings
) -> tuple[Choice, ...]:
    """The choices, on the CPU the best also mapped, and the safe one last."""
    best, others = chosen[0], chosen[1:]
    first = [best]
    if device.device == "cpu" and not best.is_mapped:
        first.append(replace(best, is_mapped=True))
    on_cpu = device.device == "cpu"  # there the safe one is one of the six
    room = OPTIONS_MAX - len(first) - int(on_cpu)
    kept = others if len(others) <= room else (*others[: room - 1], others[-1])
    safe = _safe(best, footprint)
    return (*first, *kept, *([safe] if safe else []))


def _safe(best: Choice, footprint: Footprint) -> Choice | None:
    """The safe choice beside the best one, with no more KV cache; None where nothing is left."""
    cap = footprint.kv_bytes(best.n_ctx, best.kv_type, best.n_batch)
    n_ctx = footprint.n_ctx_fitting(cap, best.n_ctx, "f16", BATCH_MIN)
    if not n_ctx or not footprint.supports("f16"):
        return None
    tier = len(KV_TYPES) * math.ceil(math.log2(best.n_ctx / n_ctx)) + best.quality_tier
    tier -= KV_TYPES.index(best.kv_type)
    safe = replace(best, n_ctx=n_ctx, kv_type="f16", n_batch=BATCH_MIN, is_safe=True)
    return replace(safe, quality_tier=tier)


def _pruned(found: list[Choice], footprint: Footprint) -> tuple[Choice, ...]:
    """Keep what is smaller than all better tiers; of more than six, the first five and the last."""
    kept: list[Choice] = []
    least: float = math.inf
    for choice in sorted(found, key=lambda choice: choice.quality_tier):
        size = footprint.kv_bytes(choice.n_ctx, choice.kv_type, choice.n_batch)
        if size < least:
            kept.append(choice)
            least = size
    return tuple(kept if len(kept) <= OPTIONS_MAX else [*kept[: OPTIONS_MAX - 1], kept[-1]])


def _cap_too_small(footprint: Footprint, settings: AnalysisSettings, n_batch: int) -> EngineFault:
    supported = [kv_type for kv_type in settings.kv_types if footprint.supports(kv_type)]
    if not supported:
        return EngineFault(
            "KV_TYPE_UNSUPPORTED",
            f"this model's head size rules out KV types {', '.join(settings.kv_types)}; use f16",
        )
    _, n_ctx = _limits(footprint, settings)
    needed = min(footprint.kv_bytes(n_ctx, kv_type, n_batch) for kv_type in supported)
    return EngineFault(
        "KV_CAP_TOO_SMALL",
        f"a context of {n_ctx} tokens needs {needed} bytes of KV cache; kv_cache_max is "
        f"{int(settings.kv_cache_max)}, the model was trained for {footprint.n_ctx_train} tokens",
        required_bytes=needed,
        kv_cache_max=int(settings.kv_cache_max),
        n_ctx=n_ctx,
        n_ctx_train=footprint.n_ctx_train,
    )


def option(
    choice: Choice, sizes: Sizes, footprint: Footprint, analysis: AnalysisSettings,
    device: DeviceSettings,
) -> Option:  # fmt: skip
    """The option with its bytes by line and its estimated times.

    KV cache and compute buffer are taken by a run, and given back at its end.
    """
    whole_kv = kv_bytes = _kv_bytes(choice, sizes, footprint)
    workspace, layers, n_batch = sizes.compute_bytes, choice.n_gpu_layers, choice.n_batch
    if device.device == "cpu":
        weights = 0 if choice.is_mapped else footprint.weights_bytes
        on_device = weights + footprint.vocabulary_bytes
        host_bytes = footprint.weights_bytes if choice.is_mapped else 0
        workspace += n_batch * max(footprint.feed_forward, footprint.width) * 2
        workspace += kv_bytes // max(1, 2 * len(footprint.layers))  # keys of a layer being saved
    else:
        on_device = footprint.offloaded_bytes(layers)
        kv_bytes = on_card.kv_bytes(
            footprint, layers, choice.n_ctx, choice.kv_type, n_batch, whole_kv
        )
        host_bytes = footprint.embedding_bytes + footprint.vocabulary_bytes
        host_bytes += on_card.ram_bytes(footprint, layers) + whole_kv - kv_bytes
    slowdown = MAPPED_SLOWDOWN if choice.is_mapped else 1
    prompt_ms = slowdown * prefill_ms(footprint, n_batch, device)
    decode_ms = slowdown * DECODE_TOKENS_PER_SLICE * _token_ms(choice, footprint, device)
    return Option(
        name=choice.name if device.device == "cpu" else f"{layers} layers, {choice.name}",
        resident=(LineBytes(Line.WEIGHTS, on_device),),
        run=(RunLine(Line.KV_CACHE, kv_bytes), RunLine(Line.WORKSPACE, workspace)),
        quality_tier=choice.quality_tier,
        load_ms=50 + (footprint.weights_bytes + kv_bytes) // rates(device).copy_bytes_per_ms,
        run_ms_per_second=_run_ms_per_second(choice, footprint, prompt_ms, device),
        slice_ms_max=max(SLICE_MS_MIN, CONTENTION * max(prompt_ms, int(decode_ms))),
        host_bytes=max(0, host_bytes),
        settings_json=json.dumps(choice.__dict__, sort_keys=True),
        files=(str(analysis.model),),
        base=choice.base,
        is_safe=choice.is_safe,
    )


def _kv_bytes(choice: Choice, sizes: Sizes, footprint: Footprint) -> int:
    """The exact figure of the arithmetic where the library agrees, else the library's."""
    whole = footprint.kv_bytes(choice.n_ctx, choice.kv_type, choice.n_batch)
    return sizes.kv_bytes if abs(whole - sizes.kv_bytes) > 64 * 1024 else whole


def _token_ms(choice: Choice, footprint: Footprint, device: DeviceSettings) -> float:
    """One token of an answer."""
    if device.device == "cuda":
        return on_card.token_ms(footprint, choice.n_gpu_layers)
    return footprint.weights_bytes / rates(device).read_bytes_per_ms


def _run_ms_per_second(
    choice: Choice, footprint: Footprint, prompt_ms: int, device: DeviceSettings
) -> int:
    if device.device == "cuda":
        return on_card.run_ms_per_second(footprint, choice.n_gpu_layers, choice.n_batch, prompt_ms)
    return 1 + prompt_ms * on_card.SPEECH_TOKENS_PER_SECOND // choice.n_batch
