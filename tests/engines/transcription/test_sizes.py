"""Sizes from config.json alone, against those that the files have."""

import json
from pathlib import Path

import pytest

from coscheduler import config
from coscheduler.demo import tiny_whisper
from coscheduler.engines.transcription import checkpoint, sizes
from coscheduler.engines.transcription.engine import TranscriptionEngine
from coscheduler.planning import stages
from coscheduler.shapes import AlignerShape, TranscriptionShape


def test_whisper_is_what_its_file_holds(models: Path) -> None:
    tokens = json.loads((models / "whisper" / "vocabulary.json").read_text())
    shape = TranscriptionShape(
        d_model=tiny_whisper.HIDDEN_DIM,
        encoder_layers=tiny_whisper.ENCODER_LAYER_COUNT,
        decoder_layers=tiny_whisper.DECODER_LAYER_COUNT,
        encoder_attention_heads=tiny_whisper.HEAD_COUNT,
        encoder_ffn_dim=tiny_whisper.FFN_DIM,
        decoder_ffn_dim=tiny_whisper.FFN_DIM,
        vocab_size=len(tokens),
    )
    written = sizes.whisper(shape, "whisper")
    read = checkpoint.read_whisper(models / "whisper")
    assert written.matrix_count == read.matrix_count
    assert written.matrix_row_count == read.matrix_row_count
    # The demonstration's Whisper has no norms and no biases.
    assert written.other_count == pytest.approx(read.other_count, rel=0.03)
    assert (written.head_count, written.mel_count) == (read.head_count, read.mel_count)
    assert written.audio_position_count == read.audio_position_count


def test_large_v3_as_it_is_published() -> None:
    shape = TranscriptionShape(
        d_model=1280, encoder_layers=32, decoder_layers=32, encoder_attention_heads=20,
        vocab_size=51_866, num_mel_bins=128,
    )  # fmt: skip
    assert sizes.whisper(shape, "large-v3").stored_bytes == pytest.approx(3.09e9, rel=0.005)


def test_an_aligner_is_what_its_file_holds(models: Path) -> None:
    read = checkpoint.read_aligner(models / "aligner")
    shape = AlignerShape(
        parameters=read.parameter_bytes // 4,
        conv_dim=read.conv_dims,
        conv_stride=read.conv_strides,
        feat_extract_norm="layer" if read.has_layer_norms else "group",
    )
    assert sizes.aligner(shape, read.name) == read


def test_a_plan_offers_what_the_engine_offers(models: Path) -> None:
    section = {"model": "whisper", "aligners": {"en": "aligner"}, "compute_types": ["int8"]}
    settings = config.parse({"transcription": section}, models)
    described = TranscriptionEngine(settings).describe()
    (planned,) = stages.offers_of(settings, stages.LINK_BYTES_PER_MS)
    assert (planned.model, planned.context_bytes) == (described.model, described.context_bytes)
    for entry, option in zip(planned.offered, described.options, strict=True):
        assert (entry.option.name, entry.option.resident) == (option.name, option.resident)
        assert (entry.option.run, entry.option.quality_tier) == (option.run, option.quality_tier)
