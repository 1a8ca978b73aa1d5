"""The engine: options, results, limits, cancels, and what it says when something is wrong."""

import hashlib
import itertools
import json
import shutil
import struct
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coscheduler import audio
from coscheduler.config import parse
from coscheduler.core.model import EngineDescription, EngineName, Line, total_bytes
from coscheduler.engines.base import Task
from coscheduler.engines.separation import pacing
from coscheduler.engines.separation.engine import SeparationEngine
from coscheduler.engines.separation.output import notes_on
from coscheduler.engines.separation.ranking import Judged
from coscheduler.engines.separation.separate import Separated
from coscheduler.errors import EngineFault, InvalidInput, Refused
from tests.engines.separation.conftest import RATE, finish, noise, settings_for

MakeTask = Callable[..., Task]
MakeEngine = Callable[..., SeparationEngine]


def digest(task: Task) -> str:
    files = sorted(task.output_dir.iterdir())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def test_target_and_residual_are_as_long_as_the_input(
    engine: SeparationEngine, task: MakeTask
) -> None:
    made = task(noise(1.3)[:-7])
    result, slices = finish(engine, made)
    assert [(f.role, f.filename, f.media_type) for f in result.files] == [
        ("target", "target.wav", "audio/wav"),
        ("residual", "residual.wav", "audio/wav"),
    ]
    assert {path.name for path in made.output_dir.iterdir()} == {"target.wav", "residual.wav"}
    signals = []
    for name in ("target.wav", "residual.wav"):
        with wave.open(str(made.output_dir / name)) as file:
            assert (file.getframerate(), file.getnchannels()) == (RATE, 1)
            assert file.getnframes() == round(1.3 * RATE) - 7
        signals.append(audio.read_mono(made.output_dir / name, RATE))
    target, residual = signals
    assert not np.array_equal(target, residual)
    assert all(np.abs(signal).max() > 1e-3 for signal in signals)
    assert result.numbers["sample_count"] == len(signals[0])
    assert slices


def test_progress_goes_up_to_the_total(engine: SeparationEngine, task: MakeTask) -> None:
    _, slices = finish(engine, task(noise(2.4)))
    known = [piece for piece in slices if piece.total]
    assert known
    assert len({piece.total for piece in known}) == 1
    assert all(a.done <= b.done for a, b in itertools.pairwise(known))
    assert all(0 <= piece.done <= piece.total for piece in known)


def test_the_same_task_gives_the_same_bytes(engine: SeparationEngine, task: MakeTask) -> None:
    first, second, other = (task(noise(1.0), seed=seed) for seed in (5, 5, 6))
    for made in (first, second, other):
        finish(engine, made)
    assert digest(first) == digest(second)
    assert digest(first) != digest(other)


def test_the_prompt_matters(engine: SeparationEngine, task: MakeTask) -> None:
    first, second = task(noise(0.5), "a dog"), task(noise(0.5), "loud rain")
    finish(engine, first)
    finish(engine, second)
    assert digest(first) != digest(second)


def test_a_long_recording_runs_in_windows(engine: SeparationEngine, task: MakeTask) -> None:
    made = task(noise(4.0))
    result, _ = finish(engine, made)
    assert result.numbers["window_count"] == 3  # of 2 s, sharing at least a sixth
    assert len(audio.read_mono(made.output_dir / "target.wav", RATE)) == 4 * RATE


def test_a_cancelled_task_leaves_the_engine_as_it_was(
    engine: SeparationEngine, task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while it encodes, at a layer of either window, while it decodes."""
    reference, after = task(noise(2.4)), task(noise(2.4))
    finish(engine, reference)
    held = engine.held()
    with monkeypatch.context() as patched:
        patched.setattr(pacing, "SLICE_MS", 0)
        for note in ("encoding", "step 1 of 16, window 1", "step 2 of 16, window 2", "decoding"):
            cancelled = task(noise(2.4))
            run = engine.slices(cancelled)
            while note not in next(run).note:
                pass
            run.close()
            assert list(cancelled.output_dir.iterdir()) == []
            assert engine.held() == held
    finish(engine, after)
    assert digest(after) == digest(reference)


def test_the_shortest_recording_that_fills_a_frame(
    engine: SeparationEngine, task: MakeTask
) -> None:
    made = task(noise(1)[:961])
    finish(engine, made)
    assert len(audio.read_mono(made.output_dir / "target.wav", RATE)) == 961


@pytest.mark.parametrize("count", [1, 960])
def test_a_shorter_recording_is_refused_with_numbers(
    engine: SeparationEngine, task: MakeTask, count: int
) -> None:
    with pytest.raises(InvalidInput) as caught:
        finish(engine, task(noise(1)[:count]))
    assert caught.value.reason == "AUDIO_TOO_SHORT"
    assert caught.value.numbers == {"sample_count": str(count), "sample_count_min": "961"}


def test_a_prompt_of_too_many_tokens_is_refused(engine: SeparationEngine, task: MakeTask) -> None:
    with pytest.raises(InvalidInput) as caught:
        finish(engine, task(noise(0.1), prompt="!" * 600))
    assert caught.value.reason == "PROMPT_TOO_LONG"


def test_samples_that_are_not_finite_are_refused(engine: SeparationEngine, task: MakeTask) -> None:
    made = task(noise(0.1))
    samples = noise(0.1)
    samples[100] = np.nan
    body = samples.astype("<f4").tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, RATE, 4 * RATE, 4, 32)
    data = struct.pack("<4sI", b"data", len(body)) + body
    head = struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE")
    made.input_path.write_bytes(head + form + data)
    with pytest.raises(InvalidInput) as caught:
        finish(engine, made)
    assert caught.value.reason == "AUDIO_NOT_FINITE"
    finish(engine, task(noise(0.1)))  # the engine is usable


def test_silence_is_noted_not_refused(engine: SeparationEngine, task: MakeTask) -> None:
    result, _ = finish(engine, task(np.zeros(RATE, np.float32)))
    assert any("silent" in note for note in result.notes)


@pytest.mark.parametrize(
    ("mixture", "targets", "clipped", "words"),
    [
        (0.0, [0.0], 0, ["silent"]),
        (0.1, [1e-5], 0, ["empty (60 dB below the recording) with seed 0"]),
        (0.1, [1e-5, 1e-5], 0, ["with seeds 0, 1"]),
        (0.1, [1e-5, 0.1], 0, ["empty with 1 of 2 seeds; this one has seed 1"]),
        (0.1, [1e-3], 0, []),
        (0.1, [0.1], 3, ["3 samples"]),
    ],
)
def test_notes_say_what_a_listener_would_ask(
    mixture: float, targets: list[float], clipped: int, words: list[str]
) -> None:
    judged = tuple(Judged(seed, 0.0, mixture, target) for seed, target in enumerate(targets))
    separated = Separated(torch.zeros(9), torch.zeros(2, 9), 1, 1, judged, judged[-1])
    notes = notes_on(separated, clipped)
    assert len(notes) == len(words)
    assert all(word in note for word, note in zip(words, notes, strict=True))


def test_a_clean_run_has_nothing_to_note(engine: SeparationEngine, task: MakeTask) -> None:
    result, _ = finish(engine, task(noise(0.5)))
    assert result.notes == ()


def test_nothing_runs_before_a_load(models: Path, task: MakeTask) -> None:
    engine = SeparationEngine(settings_for(models))
    with pytest.raises(EngineFault) as caught:
        next(engine.slices(task(noise(0.1))))
    assert caught.value.reason == "NOT_LOADED"


def test_the_options_are_the_configured_precisions(models: Path) -> None:
    precisions = ["float32", "bfloat16", "int8"]
    engine = SeparationEngine(settings_for(models, precisions=precisions))
    described = engine.describe()
    assert described.engine is EngineName.SEPARATION
    assert described.model == "sam"
    assert [(o.name, o.quality_tier) for o in described.options] == [
        (f"{precision}{kept}", tier)
        for tier, precision in enumerate(precisions)
        for kept in ("", ":1/4", ":0/4")  # of four layers; the others are streamed
    ]
    full, half, quarter = (total_bytes(option.resident) for option in described.options[::3])
    assert quarter < half < full
    assert [s.name for s in described.segments] == [f"layer.{i}" for i in range(4)]
    assert {line.line for line in described.options[0].run_lines(25_000)} <= {
        Line.WEIGHTS,
        Line.WORKSPACE,
        Line.HIDDEN_STATE,
    }


def test_fewer_layers_take_less_memory_and_more_time(models: Path) -> None:
    described = SeparationEngine(settings_for(models)).describe()
    layer = described.segments[0].bytes
    whole, one, none = described.options
    by_line = [{entry.line: entry.bytes for entry in option.resident} for option in (one, none)]
    weights = total_bytes(whole.resident)
    assert by_line == [
        {Line.WEIGHTS: weights - 3 * layer, Line.SLOTS: 2 * layer},
        {Line.WEIGHTS: weights - 4 * layer, Line.SLOTS: 2 * layer},
    ]
    assert whole.run_ms_per_second < one.run_ms_per_second <= none.run_ms_per_second
    assert whole.load_ms == one.load_ms == none.load_ms  # each layer is read from the disk once


def test_a_run_stops_growing_at_its_window(models: Path) -> None:
    option = SeparationEngine(settings_for(models, window_ms=10_000)).describe().options[0]
    assert option.peak_bytes(10_000) == option.peak_bytes(7_200_000)


def test_describing_reads_no_data(models: Path, tmp_path: Path) -> None:
    """The tensors' bytes may be anything: only the table is looked at."""
    (tmp_path / "sam").mkdir()
    shutil.copy(models / "sam" / "config.json", tmp_path / "sam")
    shutil.copytree(models / "t5", tmp_path / "t5")
    content = bytearray((models / "sam" / "checkpoint.pt").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    (tmp_path / "sam" / "checkpoint.pt").write_bytes(content)

    def described(folder: Path) -> EngineDescription:
        found = SeparationEngine(settings_for(folder)).describe()
        return replace(found, options=tuple(replace(o, files=()) for o in found.options))

    assert described(tmp_path) == described(models)


def test_an_option_names_the_file_that_its_load_reads(models: Path, tmp_path: Path) -> None:
    settings = settings_for(models, precisions=["int8"], prepared_dir=str(tmp_path / "prepared"))
    engine = SeparationEngine(settings)
    (before,) = {option.files for option in engine.describe().options}
    assert before == (str(models / "sam" / "checkpoint.pt"),)  # of which the other will be made
    engine.load(engine.describe().options[0], lambda done, total: None)
    (after,) = {option.files for option in engine.describe().options}
    assert after == tuple(map(str, (tmp_path / "prepared").glob("*.int8.prepared")))
    engine.unload()


def test_what_is_held_is_what_the_option_said(make_engine: MakeEngine) -> None:
    engine = make_engine(precisions=["bfloat16"])
    for option in engine.describe().options:
        engine.load(option, lambda done, total: None)
        assert engine.held() == option.resident
    engine.unload()
    assert engine.held() == ()
    engine.unload()


def test_streaming_changes_no_bit_of_the_result(
    engine: SeparationEngine, make_engine: MakeEngine, task: MakeTask
) -> None:
    """Two windows, all resident and everything streamed."""
    whole, streamed = task(noise(3.0)), task(noise(3.0))
    finish(engine, whole)
    other = make_engine(window_ms=2000)
    other.load(other.describe().options[-1], lambda done, total: None)
    finish(other, streamed)
    other.unload()
    for name in ("target.wav", "residual.wav"):
        assert (whole.output_dir / name).read_bytes() == (streamed.output_dir / name).read_bytes()


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_smaller_precisions_separate_too(
    make_engine: MakeEngine, task: MakeTask, precision: str
) -> None:
    engine = make_engine(precisions=[precision])
    made = task(noise(0.5))
    finish(engine, made)
    assert len(audio.read_mono(made.output_dir / "target.wav", RATE)) == RATE // 2


def test_without_its_section_the_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        SeparationEngine(parse({}, tmp_path))
    assert caught.value.reason == "ENGINE_NOT_CONFIGURED"


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineFault) as caught:
        SeparationEngine(settings_for(tmp_path)).describe()
    assert caught.value.reason == "MODEL_MISSING"
    assert caught.value.numbers["file"] == str(tmp_path / "sam" / "config.json")


def test_a_load_that_fails_holds_nothing(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "sam", tmp_path / "sam")
    shutil.copytree(models / "t5", tmp_path / "t5")
    engine = SeparationEngine(settings_for(tmp_path))
    option = engine.describe().options[0]
    (tmp_path / "sam" / "checkpoint.pt").unlink()
    with pytest.raises(EngineFault):
        engine.load(option, lambda done, total: None)
    assert engine.held() == ()
    assert json.loads(option.settings_json) == {
        "dtype": "float32", "model": 0, "cohort": 1, "kept": 4,
    }  # fmt: skip
