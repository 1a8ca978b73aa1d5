"""Which options a config gives, in which order, with which bytes on which line."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coscheduler.config import AnalysisSettings, DeviceSettings
from coscheduler.core.model import Line, Option, Segment, total_bytes
from coscheduler.engines.analysis import options
from coscheduler.engines.analysis.dry_run import Sizes
from coscheduler.engines.analysis.footprint import Footprint
from coscheduler.engines.analysis.header import Tensor
from coscheduler.errors import EngineFault

from .test_footprint import MIB, model

ALL_TYPES = ("f16", "q8_0", "q4_0")


def analysis(**values: Any) -> AnalysisSettings:
    return AnalysisSettings(model=Path("m.gguf"), **values)


def chosen(footprint: Footprint, **values: Any) -> list[tuple[int, str, int]]:
    found = options.choices(footprint, analysis(**values), DeviceSettings())
    return [(choice.n_ctx, choice.kv_type, choice.quality_tier) for choice in found]


def test_context_halves_within_one_kv_type() -> None:
    assert chosen(model(), n_ctx_min=1024) == [
        (8192, "f16", 0),
        (4096, "f16", 3),
        (2048, "f16", 6),
        (1024, "f16", 9),
    ]


def test_a_coarser_cache_comes_before_a_shorter_context() -> None:
    found = chosen(model(), kv_types=ALL_TYPES, n_ctx_min=1024)
    assert found[:3] == [(8192, "f16", 0), (8192, "q8_0", 1), (8192, "q4_0", 2)]
    # f16 at 4096 takes 640 MiB, more than q4_0 at 8192 with its 360: no use to anybody
    assert (4096, "f16", 3) not in found


def test_at_most_six_options_and_the_smallest_is_among_them() -> None:
    found = chosen(model(), kv_types=ALL_TYPES, n_ctx_min=512)
    assert len(found) == options.OPTIONS_MAX
    assert found[-1] == (512, "q4_0", 14)
    tiers = [tier for _, _, tier in found]
    assert tiers == sorted(set(tiers))


def test_the_cap_limits_each_type_by_itself() -> None:
    found = chosen(model(), kv_types=ALL_TYPES, kv_cache_max=700 * MIB, n_ctx_min=2048)
    assert found[0] == (8192, "q8_0", 1)
    assert all(tier > 0 for _, _, tier in found)


def test_the_context_never_exceeds_what_the_model_was_trained_for() -> None:
    assert chosen(model(context_length=2048), n_ctx_min=512)[0] == (2048, "f16", 0)


def test_a_cap_below_the_smallest_context_is_refused_with_numbers() -> None:
    with pytest.raises(EngineFault) as caught:
        chosen(model(), kv_cache_max=10 * MIB, n_ctx_min=512)
    assert caught.value.reason == "KV_CAP_TOO_SMALL"
    assert caught.value.numbers["required_bytes"] == str(80 * MIB)


def test_a_kv_type_that_no_head_allows_is_refused() -> None:
    with pytest.raises(EngineFault) as caught:
        chosen(model(attention__key_length=80), kv_types=("q8_0",))
    assert caught.value.reason == "KV_TYPE_UNSUPPORTED"


def option_on(device: str, n_gpu_layers: int = 0, **values: Any) -> Option:
    choice = options.Choice(8192, "f16", n_gpu_layers, 0, 512)
    sizes = Sizes(kv_bytes=1280 * MIB, compute_bytes=90 * MIB)
    return options.option(choice, sizes, model(), analysis(**values), DeviceSettings(device=device))  # type: ignore[arg-type]


def run_of(option: Option) -> dict[Line, int]:
    return {entry.line: entry.bytes for entry in option.run_lines(0)}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_load_takes_the_weights_and_a_run_the_context(device: str) -> None:
    option = option_on(device, n_gpu_layers=41)
    assert [entry.line for entry in option.resident] == [Line.WEIGHTS]
    assert run_of(option)[Line.KV_CACHE] == 1280 * MIB
    assert run_of(option)[Line.WORKSPACE] >= 90 * MIB


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kv_types", [("f16",), ALL_TYPES, ("q4_0",)])
@pytest.mark.parametrize("n_ctx_min", [512, 2048, 8192])
def test_at_most_six_options_and_a_safe_one_that_takes_no_more(
    device: str, kv_types: tuple[str, ...], n_ctx_min: int
) -> None:
    settings, on = analysis(kv_types=kv_types, n_ctx_min=n_ctx_min), DeviceSettings(device=device)  # type: ignore[arg-type]
    found = options.with_others(options.choices(model(), settings, on), model(), on)
    assert len(found) <= options.OPTIONS_MAX + 1
    assert [choice.is_safe for choice in found] == [False] * (len(found) - 1) + [True]
    sizes = [Sizes(model().kv_bytes(c.n_ctx, c.kv_type, c.n_batch), 90 * MIB) for c in found]
    made = [
        options.option(choice, size, model(), settings, on)
        for choice, size in zip(found, sizes, strict=True)
    ]
    assert len({option.name for option in made}) == len(made)
    assert made[-1].peak_bytes(0) <= made[0].peak_bytes(0)
    assert made[-1].base == made[0].base
    assert (found[-1].kv_type, found[-1].n_batch) == ("f16", options.BATCH_MIN)


def test_on_the_cpu_weights_are_loaded_or_mapped() -> None:
    on, settings = DeviceSettings(), analysis(kv_types=ALL_TYPES)
    found = options.with_others(options.choices(model(), settings, on), model(), on)
    heavy = replace(model(), output_bytes=500 * MIB)
    sizes = Sizes(1280 * MIB, 90 * MIB)
    loaded, mapped = (options.option(c, sizes, heavy, settings, on) for c in found[:2])
    assert total_bytes(loaded.resident) - total_bytes(mapped.resident) == mapped.host_bytes
    assert mapped.host_bytes == 500 * MIB and loaded.host_bytes == 0
    assert loaded.quality_tier == mapped.quality_tier and loaded.base != mapped.base
    assert loaded.run_ms_per_second < mapped.run_ms_per_second
    assert loaded.load_ms == mapped.load_ms, "its pages are read all the same"
    only = options.choices(model(), analysis(use_mmap=True), on)
    assert {choice.is_mapped for choice in only} == {True}


def test_kv_cache_follows_the_layers_to_the_gpu() -> None:
    option = option_on("cuda", n_gpu_layers=21)  # the output and 20 of 40 layers
    assert run_of(option)[Line.KV_CACHE] == 640 * MIB
    for layers in (0, 1):  # none, and only the output
        assert run_of(option_on("cuda", n_gpu_layers=layers))[Line.KV_CACHE] == 0


def test_what_is_not_on_the_gpu_is_in_the_memory_of_the_host() -> None:
    whole, half = (option_on("cuda", n_gpu_layers=layers) for layers in (999, 21))
    moved = model().offloaded_bytes(999) - model().offloaded_bytes(21)
    assert half.host_bytes - whole.host_bytes == moved + 640 * MIB


def test_on_a_gpu_the_best_is_offered_with_fewer_and_fewer_layers() -> None:
    card = DeviceSettings(device="cuda")
    found = options.choices(model(), analysis(kv_types=("f16", "q8_0")), card)
    assert [choice.n_gpu_layers for choice in found] == [41, 30, 20, 10, 5, 0]
    assert {(choice.n_ctx, choice.kv_type, choice.quality_tier) for choice in found} == {
        (8192, "f16", 0)
    }
    capped = options.choices(model(), analysis(n_gpu_layers=12), card)
    assert [choice.n_gpu_layers for choice in capped] == [12, 10, 5, 0]


def test_fewer_layers_on_the_gpu_are_smaller_and_slower_and_no_worse() -> None:
    layer = Segment("blk", 300 * MIB)
    heavy = replace(model(), layers=(layer,) * 40, output_bytes=500 * MIB)
    card, sizes = DeviceSettings(device="cuda"), Sizes(1280 * MIB, 90 * MIB)
    found = [
        options.option(choice, sizes, heavy, analysis(), card)
        for choice in options.choices(heavy, analysis(), card)
    ]
    assert len({option.name for option in found}) == 6
    for more, fewer in pairwise(found):
        assert fewer.peak_bytes(0) < more.peak_bytes(0)
        assert fewer.host_bytes > more.host_bytes
        assert fewer.run_ms_per_second > more.run_ms_per_second
        assert fewer.quality_tier == more.quality_tier
    assert found[-1].peak_bytes(0) == 90 * MIB  # the compute buffer alone


def test_the_library_has_the_last_word_on_caches_of_another_kind() -> None:
    choice = options.Choice(8192, "f16", 0, 0, 512)
    device = DeviceSettings()
    option = options.option(choice, Sizes(700 * MIB, 0), model(), analysis(), device)
    assert run_of(option)[Line.KV_CACHE] == 700 * MIB


def test_the_choice_survives_the_option() -> None:
    choice = options.Choice(4096, "q8_0", 12, 4, 256, 3, True, True)
    option = options.option(choice, Sizes(0, 0), model(), analysis(), DeviceSettings())
    assert options.Choice.of(option) == choice


WINDOWED: dict[str, Any] = {
    "attention__sliding_window": 1024,
    "attention__sliding_window_pattern": (True,) * 40,
}


def test_the_batch_is_halved_where_windows_leave_no_room_for_it() -> None:
    # 40 windowed layers cache the window and one batch: 1024 + 512 tokens are 240 MiB
    windowed = model(**WINDOWED)
    found = options.choices(windowed, analysis(kv_cache_max=240 * MIB), DeviceSettings())
    assert found[0].n_batch == 512
    found = options.choices(windowed, analysis(kv_cache_max=239 * MIB), DeviceSettings())
    assert found[0].n_batch == 256
    with pytest.raises(EngineFault) as caught:
        options.choices(windowed, analysis(kv_cache_max=160 * MIB), DeviceSettings())
    assert caught.value.reason == "KV_CAP_TOO_SMALL"


def test_the_batch_is_as_large_as_a_slice_allows() -> None:
    heavy = model(tensors=(Tensor("blk.0.ffn_up.weight", 2_000_000_000),))
    slow, fast = DeviceSettings(threads=2), DeviceSettings(device="cuda")
    assert options.batch(model(), 512, slow) == 512
    assert options.batch(heavy, 512, fast) == 512
    n_batch = options.batch(heavy, 512, slow)
    assert n_batch == options.BATCH_MIN or options.prefill_ms(heavy, n_batch, slow) <= 250
    assert n_batch < 512


@given(
    cap=st.integers(1, 2**31),
    n_ctx_max=st.integers(256, 40_000),
    n_ctx_min=st.integers(256, 4096),
    n_batch=st.integers(32, 2048),
    window=st.sampled_from([0, 512, 4096]),
)
def test_no_choice_ever_exceeds_the_cap(
    cap: int, n_ctx_max: int, n_ctx_min: int, n_batch: int, window: int
) -> None:
    flags = (False, True) * 20
    shape = model(attention__sliding_window=window, attention__sliding_window_pattern=flags)
    limits = {"kv_cache_max": cap, "n_ctx_max": n_ctx_max, "n_ctx_min": n_ctx_min}
    settings = analysis(kv_types=ALL_TYPES, n_batch=n_batch, **limits)
    try:
        found = options.choices(shape, settings, DeviceSettings())
    except EngineFault as fault:
        assert fault.reason == "KV_CAP_TOO_SMALL"
        assert int(fault.numbers["required_bytes"]) > cap
        return
    for choice in found:
        assert shape.kv_bytes(choice.n_ctx, choice.kv_type, choice.n_batch) <= cap
        assert choice.n_ctx <= n_ctx_max
        assert choice.n_batch <= n_batch


@pytest.mark.parametrize("name", ["n_ctx_maximum", "kv_unified", "flash_attn", "n_seq_max"])
def test_unknown_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        analysis(**{name: 1})
