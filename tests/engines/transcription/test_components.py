"""Models that stay, or come and go: the order of what is asked of them, and the busy case."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from coscheduler.config import Settings
from coscheduler.core.model import Line, LineBytes, StageKind
from coscheduler.engines.base import Task
from coscheduler.engines.transcription import words
from coscheduler.engines.transcription.components import Component, File, Parked, Ram
from coscheduler.engines.transcription.engine import TranscriptionEngine, place
from coscheduler.engines.transcription.placement import HELD, Part, Placement
from coscheduler.errors import EngineFault
from tests.engines.transcription.conftest import settings_for

PARKED = Placement(frozenset(Part))


class Recorded:
    """Stands in for ctranslate2.models.Whisper on a card: says what is asked of it."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls
        self.model_is_loaded = True
        self.is_busy = False

    def load_model(self, keep_cache: bool = False) -> None:
        self._calls.append(f"load, keep_cache={keep_cache}")
        self.model_is_loaded = True

    def unload_model(self, to_cpu: bool = False) -> None:
        self._calls.append(f"unload, to_cpu={to_cpu}")
        self.model_is_loaded = self.is_busy


def component(source: Any, calls: list[str]) -> Component[Any]:
    return Component(source, Line.WEIGHTS, 7, lambda: calls.append("give back"))


def parked(calls: list[str]) -> tuple[Recorded, Component[Any]]:
    whisper = Recorded(calls)
    made = component(Parked(whisper), calls)
    made.place(is_held=True)
    return whisper, made


def test_whisper_is_parked_when_it_is_not_held_and_comes_back_to_be_used() -> None:
    calls: list[str] = []
    whisper, made = parked(calls)
    assert calls == [] and made.held == (LineBytes(Line.WEIGHTS, 7),)
    made.place(is_held=False)
    assert calls == ["unload, to_cpu=True", "give back"] and not made.held
    with made.use() as used:
        assert used is whisper and whisper.model_is_loaded and made.held
        calls.append("text")
    assert calls[2:] == ["load, keep_cache=True", "text", "unload, to_cpu=True", "give back"]
    made.place(is_held=True)
    assert whisper.model_is_loaded and calls[-1] == "load, keep_cache=True"


def test_what_is_in_use_leaves_when_its_phase_is_over() -> None:
    calls: list[str] = []
    whisper, made = parked(calls)
    with made.use():
        made.place(is_held=False)
        assert whisper.model_is_loaded and calls == []
    assert not whisper.model_is_loaded
    with made.use():
        made.place(is_held=True)
    assert whisper.model_is_loaded


def test_a_busy_whisper_that_keeps_its_weights_is_an_error_and_is_told_as_there() -> None:
    calls: list[str] = []
    whisper, made = parked(calls)
    whisper.is_busy = True
    with pytest.raises(EngineFault) as caught:
        made.place(is_held=False)
    assert caught.value.reason == "UNLOAD_INCOMPLETE"
    made.place(is_held=True)
    assert made.held == (LineBytes(Line.WEIGHTS, 7),)


def test_what_goes_leaves_before_anything_comes() -> None:
    calls: list[str] = []
    whisper = component(Parked(Recorded(calls)), calls)
    whisper.place(is_held=True)
    aligner = component(File(lambda: calls.append("read")), calls)
    parts = {Part.WHISPER: (whisper,), Part.ALIGNERS: (aligner,), Part.DIARIZER: ()}
    place(parts, Placement(frozenset({Part.WHISPER})))
    assert calls == ["unload, to_cpu=True", "give back", "read"]


def test_a_part_that_cannot_be_read_is_as_it_was_and_an_aligner_is_no_hindrance() -> None:
    def missing() -> None:
        raise EngineFault("MODEL_MISSING", "there is no model file")

    broken, calls = component(File(missing), []), list[str]()
    whisper = component(Parked(Recorded(calls)), calls)
    place({Part.WHISPER: (whisper,), Part.ALIGNERS: (broken,)}, HELD)
    assert whisper.held and not broken.held
    with pytest.raises(EngineFault):
        place({Part.DIARIZER: (broken,)}, HELD)


def test_a_cancel_lets_what_is_in_use_leave() -> None:
    calls: list[str] = []
    _, made = parked(calls)
    made.place(is_held=False)
    with pytest.raises(GeneratorExit), made.use():
        raise GeneratorExit
    assert not made.held


def test_weights_in_ram_are_copied_once_and_come_back_equal() -> None:
    model = torch.nn.Linear(4, 3)
    before = model.weight.detach().clone()
    move = words.InRam()
    aligner = words.Aligner(model, {}, "cpu")
    source = Ram(lambda: aligner, move)
    made = component(source, [])
    with made.use():
        pass
    first = model.weight.data_ptr()
    with made.use() as used:
        assert used is aligner and torch.equal(model.weight, before)
    assert model.weight.data_ptr() == first


def transcript(engine: TranscriptionEngine, recording: Path, folder: Path) -> Any:
    task = Task("jobs/1", StageKind.TRANSCRIBE, {}, recording, folder, 8_000)
    for _ in engine.slices(task):
        pass
    return json.loads((folder / "transcript.json").read_text(encoding="utf-8"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_card_parked_and_back_frees_the_weights_and_changes_no_word(
    models: Path, clip: Path, tmp_path: Path
) -> None:
    settings = settings_for(models, tmp_path, batch_sizes=[1])
    device = settings.device.model_copy(update={"device": "cuda"})
    engine = TranscriptionEngine(Settings.model_validate({**dict(settings), "device": device}))
    engine.start()
    held, *_, least = engine.describe().options
    assert least.name.endswith("parked")
    engine.load(held, lambda done, total: None)
    free = torch.cuda.mem_get_info()[0]
    expected = transcript(engine, clip, tmp_path)
    engine.resize(least)
    assert engine.held() == least.resident
    assert torch.cuda.mem_get_info()[0] > free
    assert transcript(engine, clip, tmp_path) == expected
    engine.resize(held)
    assert engine.held() == held.resident and transcript(engine, clip, tmp_path) == expected
