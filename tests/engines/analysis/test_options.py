"""Which options a config gives, in which order, with which bytes on which line."""

from pathlib import Path
from typing import Any

import pytest

from coscheduler.config import AnalysisSettings, DeviceSettings
from coscheduler.core.model import Line, Option
from coscheduler.engines.analysis import options
from coscheduler.engines.analysis.dry_run import Sizes
from coscheduler.engines.analysis.footprint import Footprint
from coscheduler.errors import EngineFault

from .test_footprint import MIB, model

ALL_TYPES = ("f16", "q8_0", "q4_0")


def analysis(**values: Any) -> AnalysisSettings:
    return AnalysisSettings(model=Path("m.gguf"), **values)


def chosen(footprint: Footprint, **values: Any) -> list[tuple[int, str, int]]:
    found = options.choices(footprint, analysis(**values), on_gpu=False)
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
    choice = options.Choice(8192, "f16", n_gpu_layers, 0)
    sizes = Sizes(kv_bytes=1280 * MIB, compute_bytes=90 * MIB)
    return options.option(choice, sizes, model(), analysis(**values), DeviceSettings(device=device))  # type: ignore[arg-type]


def lines_of(option: Option) -> dict[Line, int]:
    return {entry.line: entry.bytes for entry in option.resident}


def test_on_the_cpu_the_workspace_is_taken_by_the_run() -> None:
    option = option_on("cpu")
    assert lines_of(option)[Line.KV_CACHE] == 1280 * MIB
    assert Line.WORKSPACE not in lines_of(option)
    assert option.run[0].line is Line.WORKSPACE
    assert option.run[0].fixed_bytes >= 90 * MIB


def test_on_a_gpu_the_workspace_is_taken_at_once() -> None:
    option = option_on("cuda", n_gpu_layers=999)
    assert lines_of(option)[Line.WORKSPACE] == 90 * MIB
    assert option.run == ()


def test_kv_cache_follows_the_layers_to_the_gpu() -> None:
    option = option_on("cuda", n_gpu_layers=21)  # the output and 20 of 40 layers
    assert lines_of(option)[Line.KV_CACHE] == 640 * MIB


def test_the_library_has_the_last_word_on_caches_of_another_kind() -> None:
    choice = options.Choice(8192, "f16", 0, 0)
    device = DeviceSettings()
    option = options.option(choice, Sizes(700 * MIB, 0), model(), analysis(), device)
    assert lines_of(option)[Line.KV_CACHE] == 700 * MIB


def test_the_choice_survives_the_option() -> None:
    choice = options.Choice(4096, "q8_0", 12, 4)
    option = options.option(choice, Sizes(0, 0), model(), analysis(), DeviceSettings())
    assert options.Choice.of(option) == choice
