"""Headers from a few written numbers, against a real file's and the library's own words."""

from pathlib import Path

import pytest

from coscheduler.core.model import Line, Option
from coscheduler.engines.analysis import dry_run, footprint, header, sizes
from coscheduler.engines.analysis.dry_run import Wanted
from coscheduler.engines.analysis.engine import AnalysisEngine
from coscheduler.engines.analysis.on_card import LINK_BYTES_PER_MS
from coscheduler.planning import stages
from coscheduler.shapes import AnalysisShape

from .conftest import settings_for


def shape_of(read: header.Header) -> AnalysisShape:
    numbers = {
        key: read.integer(key.replace("attention_", "attention."), 0)
        for key in (
            "block_count", "embedding_length", "feed_forward_length", "attention_head_count",
            "attention_head_count_kv", "context_length",
        )
    }  # fmt: skip
    tied = "output.weight" not in {tensor.name for tensor in read.tensors}
    tokens = read.array_lengths["tokenizer.ggml.tokens"]
    return AnalysisShape.model_validate(
        {**numbers, "vocabulary_size": tokens, "quantization": "F16", "tied_embeddings": tied}
    )


def test_written_numbers_give_the_header_that_the_file_has(tiny_model: Path) -> None:
    read = header.read(tiny_model)
    written = sizes.header(shape_of(read))
    names = {tensor.name for tensor in read.tensors}
    assert {tensor.name for tensor in written.tensors} == names
    by_file, by_hand = footprint.of(read), footprint.of(written)
    assert by_hand.kv_layers == by_file.kv_layers
    assert (by_hand.width, by_hand.feed_forward) == (by_file.width, by_file.feed_forward)
    assert by_hand.weights_bytes == by_file.weights_bytes


def test_the_compute_buffer_is_near_what_the_library_announces(tiny_model: Path) -> None:
    read = footprint.of(header.read(tiny_model))
    wanted = [Wanted(n_ctx, "f16", 64) for n_ctx in (512, 2048)]
    for context, found in zip(wanted, dry_run.measure(tiny_model, wanted, 1).sizes, strict=True):
        assert found is not None
        estimate = sizes.compute_bytes(read, context.n_ctx, context.n_batch)
        assert estimate == pytest.approx(found.compute_bytes, rel=0.25)


def test_a_24b_model_in_q4_k_m() -> None:
    shape = AnalysisShape(
        block_count=40, embedding_length=5120, feed_forward_length=32_768,
        attention_head_count=32, attention_head_count_kv=8, attention_key_length=128,
        context_length=32_768, vocabulary_size=131_072,
    )  # fmt: skip
    large = footprint.of(sizes.header(shape))
    assert large.kv_bytes(8192, "f16", 512) == 1280 * 1024**2
    assert large.weights_bytes == pytest.approx(14.33e9, rel=0.001)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_plan_offers_what_the_engine_offers(tiny_model: Path, device: str) -> None:
    settings = settings_for(tiny_model, device)
    described = AnalysisEngine(settings).describe()
    (planned,) = stages.offers_of(settings, LINK_BYTES_PER_MS)
    assert (planned.model, planned.context_bytes) == (described.model, described.context_bytes)
    names = [entry.option.name for entry in planned.offered]
    offered = [option for option in described.options if option.name in names]
    for entry, option in zip(planned.offered, offered, strict=True):
        assert (entry.option.name, entry.option.settings_json) == (
            option.name,
            option.settings_json,
        )
        assert (entry.option.quality_tier, entry.option.host_bytes) == (
            option.quality_tier, option.host_bytes
        )  # fmt: skip
        for line in (Line.WEIGHTS, Line.KV_CACHE):
            assert bytes_of(entry.option, line) == bytes_of(option, line)
        if device == "cuda":
            assert entry.option.run_ms_per_second == option.run_ms_per_second


def bytes_of(option: Option, line: Line) -> int:
    lines = option.resident + option.run_lines(0)
    return sum(entry.bytes for entry in lines if entry.line == line)
