"""Predicted bytes against what llama.cpp allocates, on files of many architectures."""

from pathlib import Path
from typing import Any

import pytest

from coscheduler.config import DeviceSettings
from coscheduler.engines.analysis import (
    dry_run,
    footprint,
    header,
    library,
    native,
    options,
    sequences,
    survey,
)
from coscheduler.engines.analysis.footprint import KV_TYPES

from . import architectures
from .conftest import settings_for

ROUNDING_BYTES = 2 * footprint.ROUNDING_BYTES  # two caches, each rounded to 0.01 MiB
N_BATCH = 256


@pytest.fixture(scope="module", params=architectures.BUILDERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / f"{request.param}.gguf"
    architectures.write(path, request.param)
    return path


def test_what_is_predicted_is_what_is_allocated(model: Path) -> None:
    """All KV types, a context beside the probe and one within a window; weights; workspace."""
    probe = dry_run.Wanted(survey.PROBE_N_CTX, "f16", N_BATCH)
    contexts = [dry_run.Wanted(n_ctx, t, N_BATCH) for n_ctx in (2304, 512) for t in KV_TYPES]
    report = dry_run.measure(model, [probe, *contexts], 1)
    by_header = footprint.of(header.read(model))
    predicted = survey.corrected_by(by_header, probe, report.sizes[0])
    journal = library.open_library()
    loaded = native.Model(native.ModelSpec(model, use_mmap=False), journal)
    weights = sum(journal.buffers("model").values())
    assert abs(weights - predicted.weights_bytes) <= max(ROUNDING_BYTES, weights // 100)
    for wanted, sizes in zip(contexts, report.sizes[1:], strict=True):
        spec = sequences.ContextSpec(wanted.n_ctx, N_BATCH, wanted.kv_type, 1)
        context = sequences.Context(loaded, spec, journal)
        allocated = sum(journal.buffers("KV").values()) + sum(journal.buffers("RS").values())
        arithmetic = predicted.kv_bytes(wanted.n_ctx, wanted.kv_type, N_BATCH)
        assert abs(allocated - arithmetic) <= ROUNDING_BYTES
        assert sizes is not None
        assert abs(allocated - sizes.kv_bytes) <= ROUNDING_BYTES
        assert sum(journal.buffers("compute").values()) == sizes.compute_bytes
        context.close()
    loaded.close()


@pytest.mark.parametrize("name", ["gemma3", "deepseek2", "jamba"])
def test_every_choice_of_an_engine_keeps_the_cap(tmp_path: Path, name: str) -> None:
    model = tmp_path / f"{name}.gguf"
    architectures.write(model, name)
    cap = 1024 * 1024
    limits: dict[str, Any] = {
        "kv_cache_max": cap,
        "n_ctx_min": 256,
        "kv_types": ["f16", "q8_0", "q4_0"],
    }
    settings = settings_for(model, **limits)
    assert settings.analysis is not None
    known = survey.options_of(settings.analysis, DeviceSettings(threads=1))
    assert 1 <= len(known.found) <= options.OPTIONS_MAX
    for choice, sizes in known.found:
        assert known.model.kv_bytes(choice.n_ctx, choice.kv_type, choice.n_batch) <= cap
        assert sizes.kv_bytes <= cap + ROUNDING_BYTES


def test_windows_hard_wired_in_the_library_are_learnt(tmp_path: Path) -> None:
    path = tmp_path / "gemma3.gguf"
    architectures.write(path, "gemma3")
    by_header = footprint.of(header.read(path))
    probe = dry_run.Wanted(survey.PROBE_N_CTX, "f16", N_BATCH)
    (sizes,) = dry_run.measure(path, [probe], 1).sizes
    learnt = survey.corrected_by(by_header, probe, sizes)
    row = 2 * architectures.KV_HEADS * architectures.HEAD * 2
    window = 768  # 300 of the window and 256 of a batch, in steps of 256
    assert by_header.kv_bytes(16_384, "f16", N_BATCH) == 6 * 16_384 * row
    assert learnt.kv_bytes(16_384, "f16", N_BATCH) == (16_384 + 5 * window) * row
    assert learnt.n_ctx_fitting(4 * 2**20, 32_768, "f16", N_BATCH) == 4 * 2**20 // row - 5 * window


def test_what_the_header_already_says_stays_layer_by_layer(tmp_path: Path) -> None:
    path = tmp_path / "qwen3.gguf"
    architectures.write(path, "qwen3")
    by_header = footprint.of(header.read(path))
    probe = dry_run.Wanted(survey.PROBE_N_CTX, "f16", N_BATCH)
    (sizes,) = dry_run.measure(path, [probe], 1).sizes
    assert survey.corrected_by(by_header, probe, sizes) is by_header
