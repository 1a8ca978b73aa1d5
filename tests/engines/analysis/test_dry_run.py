"""The library's own sizes, asked for without allocation, against what it then allocates."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from coscheduler.engines.analysis import (
    dry_run,
    footprint,
    header,
    library,
    native,
    sequences,
)
from coscheduler.errors import EngineFault

from . import architectures
from .conftest import settings_for

CONTEXTS = [
    dry_run.Wanted(1024, "f16", 256),
    dry_run.Wanted(512, "q8_0", 256),
    dry_run.Wanted(512, "q4_0", 256),
]


def test_sizes_are_those_of_a_real_context(write_model: Callable[..., Path]) -> None:
    path = write_model(layer_count=4, width=256, head_count=4, kv_head_count=2, feed_forward=1024)
    report = dry_run.measure(path, CONTEXTS, 1, ["We ship on friday.", ""])
    journal = library.open_library()
    model = native.Model(native.ModelSpec(path, use_mmap=False), journal)
    arithmetic = footprint.of(header.read(path))
    tokens = model.tokenize("We ship on friday.", add_special=False, parse_special=False)
    assert report.token_counts == (len(tokens), 0)
    settings = settings_for(path).analysis
    assert settings is not None
    assert 0 < report.peak_bytes < settings.survey_bytes_max
    for wanted, size in zip(CONTEXTS, report.sizes, strict=True):
        n_ctx, kv_type = wanted.n_ctx, wanted.kv_type
        context = sequences.Context(model, sequences.ContextSpec(n_ctx, 256, kv_type, 1), journal)
        assert size is not None
        assert size.kv_bytes == sum(journal.buffers("KV").values())
        assert size.compute_bytes == sum(journal.buffers("compute").values())
        assert abs(size.kv_bytes - arithmetic.kv_bytes(n_ctx, kv_type, 256)) < 0.01 * 2**20
        context.close()
    model.close()


def test_a_large_vocabulary_stays_within_what_is_charged_for_the_survey(
    write_model: Callable[..., Path],
) -> None:
    path = write_model(vocab_padding=131_072)
    settings = settings_for(path).analysis
    assert settings is not None
    report = dry_run.measure(path, CONTEXTS[:1], 1)
    assert report.peak_bytes < settings.survey_bytes_max


def test_unknown_architecture_is_a_fault_with_the_librarys_reason(tmp_path: Path) -> None:
    path = tmp_path / "new.gguf"
    writer = gguf.GGUFWriter(path, "notyetinvented")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(EngineFault) as caught:
        dry_run.measure(path, [dry_run.Wanted(512, "f16", 256)], 1)
    assert caught.value.reason == "MODEL_UNSUPPORTED"
    assert "notyetinvented" in caught.value.message


def test_a_model_that_makes_the_library_abort_costs_only_the_child(tmp_path: Path) -> None:
    path = tmp_path / "jamba.gguf"
    architectures.write_aborting(path)
    with pytest.raises(EngineFault) as caught:
        dry_run.measure(path, [dry_run.Wanted(512, "f16", 256)], 1)
    assert caught.value.reason == "MODEL_UNSUPPORTED"


def test_kv_type_that_the_model_does_not_allow(write_model: Callable[..., Path]) -> None:
    path = write_model(width=48, head_count=2, kv_head_count=1)  # heads of 24
    coarse, fine = dry_run.Wanted(512, "q8_0", 256), dry_run.Wanted(512, "f16", 256)
    report = dry_run.measure(path, [coarse, fine], 1)
    assert report.sizes[0] is None
    assert report.sizes[1] is not None
    assert "24" in report.refusal  # the library's own words
    with pytest.raises(EngineFault) as caught:
        dry_run.measure(path, [coarse], 1)
    assert caught.value.reason == "MODEL_UNSUPPORTED"


def test_logits_are_reserved_for_one_token_not_for_a_batch(
    write_model: Callable[..., Path],
) -> None:
    path = write_model(vocab_padding=30_000)
    (size,) = dry_run.measure(path, [dry_run.Wanted(512, "f16", 256)], 1).sizes
    assert size is not None
    assert size.compute_bytes < 256 * 30_000 * 4 // 4
