"""Options and formulas: all that the engine says of itself before it takes any memory."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from coscheduler import config, demo
from coscheduler.config import DeviceSettings, Settings
from coscheduler.core.model import Line, Option, RunLine, total_bytes
from coscheduler.engines.transcription import checkpoint, footprint, offer
from coscheduler.engines.transcription.checkpoint import AlignerModel, WhisperModel
from coscheduler.engines.transcription.engine import TranscriptionEngine
from coscheduler.engines.transcription.offer import Choice
from coscheduler.engines.transcription.placement import Part, Placement, placements
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


def on_a_card(models: Path, tmp_path: Path, **transcription: Any) -> tuple[Option, ...]:
    settings = settings_for(models, tmp_path, **transcription)
    device = settings.device.model_copy(update={"device": "cuda"})
    engine = TranscriptionEngine(settings.model_copy(update={"device": device}))
    return engine.describe().options


def text_lines(model: WhisperModel, compute_type: str, batch_size: int) -> list[RunLine]:
    lines = footprint.run_lines(
        footprint.Models(model, (), 0), footprint.Place("cuda", 3600), compute_type, batch_size, 5
    )
    return [line for line in lines if line.phase == "text"]


def test_options_are_types_times_batches_times_placements_in_the_order_of_the_config(
    models: Path, tmp_path: Path
) -> None:
    found = options(models, tmp_path, compute_types=["float32", "int8"], batch_sizes=[4, 1])
    assert [option.name for option in found] == [
        f"{kind}, batch {size}{in_use}"
        for kind in ("float32", "int8")
        for size in (4, 1)
        for in_use in ("", ", aligners in use")
    ]
    assert [option.quality_tier for option in found] == [0] * 4 + [1] * 4
    assert len({option.settings_json for option in found}) == 8
    assert [found[0].family == option.family for option in found] == [True] * 2 + [False] * 6


def test_a_smaller_batch_takes_less_for_long_recordings_and_never_more(
    models: Path, tmp_path: Path
) -> None:
    large, _, small, _ = options(models, tmp_path, batch_sizes=[8, 1])
    assert large.resident == small.resident
    assert large.peak_bytes(600_000) > small.peak_bytes(600_000) + 50 * MIB
    for duration_ms in (0, 1, 29_999, 30_000, 30_001, 3_600_000):
        assert large.peak_bytes(duration_ms) >= small.peak_bytes(duration_ms)


def test_half_precision_is_single_on_the_cpu(models: Path, tmp_path: Path) -> None:
    types = ["float16", "float32", "int8_float16", "int8"]
    found = options(models, tmp_path, compute_types=types, batch_sizes=[1], aligners={})
    assert [option.name for option in found] == ["float32, batch 1", "int8, batch 1"]


def test_a_card_computes_what_is_configured(models: Path, tmp_path: Path) -> None:
    found = on_a_card(models, tmp_path, compute_types=["float16", "int8_float16"])
    assert found[0].name == "float16, batch 8"
    assert [option.quality_tier for option in found] == [0] * 9 + [1] * 9
    assert all(line.line is not Line.HIDDEN_STATE for option in found for line in option.run)


def test_the_recording_itself_is_no_device_memory(models: Path, tmp_path: Path) -> None:
    (option,) = options(models, tmp_path, batch_sizes=[1], aligners={})
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


def test_an_aligner_in_use_counts_only_while_words_are_timed() -> None:
    option = placed(footprint.Models(BASE, (WAV2VEC2_BASE,), 0), "cpu", Part.ALIGNERS)
    assert [line.line for line in option.resident] == [Line.WEIGHTS]
    weights = [line for line in option.run if line.line is Line.ALIGNER]
    assert [line.phase for line in weights] == ["words/wav2vec2-base"]
    # Measured for this shape: 472 MiB of scratch on 30 s, 81 on 5 s.
    for duration_ms, scratch_mib in ((30_000, 472), (5_000, 81)):
        held = {line.line: line.bytes for line in option.run_lines(duration_ms)}
        assert held[Line.ALIGNER] == 360 * MIB
        assert abs(held[Line.WORKSPACE] - scratch_mib * MIB) < 16 * MIB


def placed(models: footprint.Models, device: Literal["cpu", "cuda"], *in_use: Part) -> Option:
    choice = Choice("float32", 1, Placement(frozenset(in_use)))
    return offer.option(models, choice, 5, DeviceSettings(device=device), 3_600_000)


def test_what_is_held_is_resident_and_what_is_not_is_a_line_of_its_phase() -> None:
    models = footprint.Models(BASE, (WAV2VEC2_BASE,), 33 * MIB)
    held, none = placed(models, "cuda"), placed(models, "cuda", *Part)
    whisper = footprint.weight_bytes(BASE, "float32")
    assert {line.line: line.bytes for line in held.resident} == {
        Line.WEIGHTS: whisper + footprint.VAD_WEIGHT_BYTES,
        Line.ALIGNER: 360 * MIB,
        Line.DIARIZER: 33 * MIB,
    }
    assert total_bytes(none.resident) == footprint.VAD_WEIGHT_BYTES
    come = {line.phase: (line.line, line.fixed_bytes) for line in none.run if line not in held.run}
    assert come == {
        "load": (Line.WEIGHTS, whisper),
        "text": (Line.WEIGHTS, whisper),
        "words/wav2vec2-base": (Line.ALIGNER, 360 * MIB),
        "speakers": (Line.DIARIZER, 33 * MIB),
    }
    assert none.host_bytes == whisper + 393 * MIB and held.host_bytes == 0
    assert none.run_ms_fixed > held.run_ms_fixed == 0
    assert none.name == "float32, batch 1, parked"


def test_a_part_of_a_few_bytes_always_stays() -> None:
    tiny = footprint.Models(BASE, (WAV2VEC2_BASE,), 1572)
    assert tiny.parts == {Part.WHISPER, Part.ALIGNERS}
    assert replace(tiny, aligners=(), diarizer_bytes=33 * MIB).parts == {
        Part.WHISPER,
        Part.DIARIZER,
    }


def test_windows_with_a_prompt_are_fewer_where_the_cache_counts() -> None:
    def windows(model: WhisperModel, kind: str) -> list[int]:
        return [footprint.prompted_count(model, kind, 5, count) for count in (1, 2, 4, 8)]

    assert windows(LARGE, "float16") == [1, 1, 2, 5]
    assert windows(BASE, "float32") == [1, 1, 3, 7]
    longest = footprint.cache_bytes(LARGE, "float16", 5, 448)
    assert longest - footprint.cache_bytes(LARGE, "float16", 5) == 5 * 224 * 2 * 32 * 1280 * 2
    tiny = replace(BASE, hidden_dim=384, head_count=6, decoder_layer_count=4)
    assert windows(tiny, "float32") == [1, 2, 4, 8], "its encoder takes more"


def test_the_small_diarizer_is_known_by_its_config_and_takes_less(tmp_path: Path) -> None:
    shipped = Path(demo.__file__).parent / "trained" / "diarizer-demo"
    assert checkpoint.is_small_diarizer(shipped)
    assert not checkpoint.is_small_diarizer(tmp_path) and not checkpoint.is_small_diarizer(None)
    small, other = (
        placed(footprint.Models(BASE, (), MIB, is_small), "cpu").run[-1].at(60_000).bytes
        for is_small in (True, False)
    )
    # Measured: 33 to 37 MiB for a minute.
    assert small == pytest.approx(37 * MIB, abs=8 * MIB) and other > small + 100 * MIB


def test_a_run_brings_one_of_the_aligners_and_holding_takes_all_of_them() -> None:
    french = replace(WAV2VEC2_BASE, name="french", parameter_bytes=60 * MIB)
    models = footprint.Models(BASE, (WAV2VEC2_BASE, french), 0)
    in_use = Placement(frozenset({Part.ALIGNERS}))
    assert footprint.moved_bytes(models, "float32", in_use) == 360 * MIB
    assert {line.line: line.bytes for line in placed(models, "cpu").resident}[Line.ALIGNER] == (
        420 * MIB
    )


@pytest.mark.parametrize(
    ("there", "device", "labels"),
    [
        (set(Part), "cpu", ["", "diarizer in use", "aligners and diarizer in use"]),
        (set(Part), "cuda", ["", "diarizer in use", "aligners and diarizer in use", "parked"]),
        ({Part.WHISPER}, "cpu", [""]),
        ({Part.WHISPER}, "cuda", ["", "parked"]),
        ({Part.WHISPER, Part.DIARIZER}, "cpu", ["", "diarizer in use"]),
    ],
)
def test_placements_go_from_most_held_to_least(
    there: set[Part], device: str, labels: list[str]
) -> None:
    assert [found.label for found in placements(frozenset(there), device)] == labels


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
