"""Options and formulas: all that the engine says of itself before it takes any memory."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coscheduler import config
from coscheduler.config import Settings
from coscheduler.core.model import Line, Option, RunLine, total_bytes
from coscheduler.engines.transcription import footprint
from coscheduler.engines.transcription.checkpoint import AlignerModel, WhisperModel
from coscheduler.engines.transcription.engine import TranscriptionEngine
from coscheduler.errors import EngineFault, Refused
from tests.engines.transcription.conftest import settings_for

MIB = 1024 * 1024
# 74 M parameters: OpenAI's "base". 1.55 G: "large-v3".
BASE = WhisperModel(
    "base", 290_000_000, 71_000_000, 100_000, 1_600_000, 512, 8, 6, 6, 51_865, 80, 1500
)
LARGE = WhisperModel(
    "large-v3", 3_090_000_000, 1_535_000_000, 700_000, 8_000_000, 1280, 20, 32, 32, 51_866, 128,
    1500,
)  # fmt: skip
WAV2VEC2_BASE = AlignerModel("wav2vec2-base", 360 * MIB, (512,) * 7, (5, 2, 2, 2, 2, 2, 2), False)


def options(models: Path, tmp_path: Path, **transcription: Any) -> tuple[Option, ...]:
    return TranscriptionEngine(settings_for(models, tmp_path, **transcription)).describe().options


def text_lines(model: WhisperModel, compute_type: str, batch_size: int) -> list[RunLine]:
    lines = footprint.run_lines(
        footprint.Models(model, (), 0), footprint.Place("cuda", 3600), compute_type, batch_size, 5
    )
    return [line for line in lines if line.phase == "text"]


def test_options_are_types_times_batches_in_the_order_of_the_config(
    models: Path, tmp_path: Path
) -> None:
    found = options(models, tmp_path, compute_types=["float32", "int8"], batch_sizes=[4, 1])
    assert [option.name for option in found] == [
        "float32, batch 4", "float32, batch 1", "int8, batch 4", "int8, batch 1",
    ]  # fmt: skip
    assert [option.quality_tier for option in found] == [0, 0, 1, 1]
    assert len({option.settings_json for option in found}) == 4


def test_a_smaller_batch_takes_less_for_long_recordings_and_never_more(
    models: Path, tmp_path: Path
) -> None:
    large, small = options(models, tmp_path, batch_sizes=[8, 1])
    assert large.resident == small.resident
    assert large.peak_bytes(600_000) > small.peak_bytes(600_000) + 50 * MIB
    for duration_ms in (0, 1, 29_999, 30_000, 30_001, 3_600_000):
        assert large.peak_bytes(duration_ms) >= small.peak_bytes(duration_ms)


def test_half_precision_is_single_on_the_cpu(models: Path, tmp_path: Path) -> None:
    types = ["float16", "float32", "int8_float16", "int8"]
    found = options(models, tmp_path, compute_types=types, batch_sizes=[1])
    assert [option.name for option in found] == ["float32, batch 1", "int8, batch 1"]


def test_a_card_computes_what_is_configured(models: Path, tmp_path: Path) -> None:
    settings = settings_for(models, tmp_path, compute_types=["float16", "int8_float16"])
    device = settings.device.model_copy(update={"device": "cuda"})
    engine = TranscriptionEngine(settings.model_copy(update={"device": device}))
    found = engine.describe().options
    assert found[0].name == "float16, batch 8"
    assert [option.quality_tier for option in found] == [0, 0, 0, 1, 1, 1]
    assert all(line.line is not Line.HIDDEN_STATE for option in found for line in option.run)


def test_the_recording_itself_is_no_device_memory(models: Path, tmp_path: Path) -> None:
    (option,) = options(models, tmp_path, batch_sizes=[1])
    assert option.peak_bytes(36_000_000) - option.peak_bytes(600_000) < 256 * MIB  # 10 h, 10 min


def test_weights_of_known_models_have_their_known_sizes() -> None:
    assert footprint.weight_bytes(LARGE, "float16") == pytest.approx(3_090_000_000, rel=0.01)
    assert footprint.weight_bytes(LARGE, "int8_float16") == pytest.approx(1_550_000_000, rel=0.01)
    assert footprint.weight_bytes(BASE, "float32") == pytest.approx(290_000_000, rel=0.01)


def test_the_cross_attention_of_a_large_model_has_its_known_size() -> None:
    per_item = footprint.cache_bytes(LARGE, "float16", 0)
    assert per_item == 2 * 32 * 1500 * 1280 * 2  # 234 MiB: keys and values, every layer
    assert footprint.cache_bytes(LARGE, "float16", 5) - per_item == 5 * 224 * 2 * 32 * 1280 * 2


@pytest.mark.parametrize(("batch_size", "windows"), [(1, 1), (4, 4)])
def test_text_memory_grows_window_by_window_up_to_the_batch(batch_size: int, windows: int) -> None:
    lines = text_lines(LARGE, "float16", batch_size)
    one = total_bytes(line.at(1) for line in lines)
    assert total_bytes(line.at(30_000) for line in lines) == one
    most = total_bytes(line.at(3_600_000) for line in lines)
    assert most == windows * one


def test_a_window_takes_the_larger_of_encoder_and_decoder() -> None:
    base = total_bytes(line.at(1) for line in text_lines(BASE, "float32", 1))
    spectra = 2 * 4 * 80 * 3000
    assert base == pytest.approx(footprint.encoder_bytes(BASE, "float32") + spectra, abs=100)
    large = total_bytes(line.at(1) for line in text_lines(LARGE, "float16", 1))
    assert large > footprint.cache_bytes(LARGE, "float16", 5)


def test_an_aligner_counts_only_while_words_are_timed() -> None:
    models = footprint.Models(BASE, (WAV2VEC2_BASE,), 0)
    lines = footprint.run_lines(models, footprint.Place("cpu", 3600), "float32", 1, 5)
    weights = [line for line in lines if line.line is Line.WEIGHTS]
    assert [line.phase for line in weights] == ["words/wav2vec2-base"]
    option = Option("x", footprint.resident(models, "float32"), lines, 0, 0, 0, 0)
    # Measured for this shape: 472 MiB of scratch on 30 s, 81 on 5 s.
    for duration_ms, scratch_mib in ((30_000, 472), (5_000, 81)):
        held = {line.line: line.bytes for line in option.run_lines(duration_ms)}
        assert held[Line.WEIGHTS] == 360 * MIB
        assert abs(held[Line.WORKSPACE] - scratch_mib * MIB) < 16 * MIB


def test_a_batch_holds_no_more_windows_than_the_recording_fills() -> None:
    assert [footprint.window_count(ms, 4) for ms in (0, 30_000, 30_001, 90_000, 10**7)] == [
        1, 1, 2, 3, 4,
    ]  # fmt: skip


def test_conversion_while_loading_is_counted_on_the_cpu() -> None:
    models = footprint.Models(BASE, (), 0)
    place = footprint.Place("cpu", 3600)
    load = footprint.run_lines(models, place, "int8", 1, 5)[0]
    assert load.phase == "load"
    assert load.fixed_bytes == BASE.stored_bytes - footprint.weight_bytes(BASE, "int8")


def test_describing_imports_no_torch(models: Path, tmp_path: Path) -> None:
    settings = settings_for(models, tmp_path)
    code = (
        "import sys; from coscheduler.config import Settings; "
        "from coscheduler.engines.transcription.engine import TranscriptionEngine; "
        "TranscriptionEngine(Settings.model_validate_json(sys.argv[1])).describe(); "
        "print(sorted({'torch', 'ctranslate2', 'whisperx', 'pyannote'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, settings.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_model_is_named(models: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineFault) as caught:
        options(models, tmp_path, model="nowhere")
    assert caught.value.reason == "MODEL_MISSING"
    assert caught.value.numbers == {"path": str(models / "nowhere" / "config.json")}


def test_without_a_section_there_is_no_engine() -> None:
    settings: Settings = config.parse({}, Path("/"))
    with pytest.raises(Refused, match="transcription"):
        TranscriptionEngine(settings)
