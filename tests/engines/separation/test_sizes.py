"""Sizes from config.json alone: those that the files have, and those of the published models."""

import math
from pathlib import Path

import pytest

from coscheduler import config
from coscheduler.engines.separation import sizes
from coscheduler.engines.separation.config import ModelConfig
from coscheduler.engines.separation.engine import SeparationEngine
from coscheduler.engines.separation.model import open_folder
from coscheduler.engines.separation.offer import LINK_BYTES_PER_MS
from coscheduler.engines.separation.text import open_text_encoder
from coscheduler.planning import stages


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_every_tensor_is_where_the_checkpoint_puts_it(models: Path, precision: str) -> None:
    folder = open_folder(models / "sam")
    assert sizes.segments(folder.config, precision) == folder.segments(precision)


def test_the_text_encoder_is_what_its_config_says(models: Path) -> None:
    source = open_text_encoder(models / "t5", 64)
    assert sizes.text_segment(source.config) == source.segment


def test_a_plan_offers_what_the_engine_offers(models: Path) -> None:
    section = {"model": "sam", "text_encoder": "t5", "precisions": ["float32", "int8"]}
    settings = config.parse({"separation": section}, models)
    described = SeparationEngine(settings).describe()
    (planned,) = stages.offers_of(settings, LINK_BYTES_PER_MS["cpu"])
    assert (planned.model, planned.context_bytes) == (described.model, described.context_bytes)
    for entry, option in zip(planned.offered, described.options, strict=True):
        assert (entry.option.name, entry.option.resident) == (option.name, option.resident)
        assert (entry.option.run, entry.option.quality_tier) == (option.run, option.quality_tier)
        assert entry.option.run_ms_per_second == option.run_ms_per_second
        assert sum(entry.host.values()) == option.host_bytes


def published(dim: int, heads: int) -> ModelConfig:
    codec = {
        "encoder_dim": 64, "encoder_rates": (2, 8, 10, 12), "latent_dim": 1024,
        "decoder_dim": 1536, "decoder_rates": (12, 10, 8, 2),
    }  # fmt: skip
    net = {"dim": dim, "n_heads": heads, "n_layers": heads}
    return ModelConfig.model_validate({"audio_codec": codec, "transformer": net})


@pytest.mark.parametrize(
    ("dim", "heads", "layer_count"),
    [(1536, 12, 37_761_536), (2048, 16, 67_387_904), (2816, 22, 127_261_184)],
)
def test_a_layer_of_the_published_models(dim: int, heads: int, layer_count: int) -> None:
    segments = {entry.name: entry for entry in sizes.segments(published(dim, heads), "float32")}
    layer = segments["layer.0"]
    assert sum(math.prod(tensor.shape) for tensor in layer.tensors) == layer_count
    assert f"layer.{heads - 1}" in segments and f"layer.{heads}" not in segments
