"""Spans, seeds, candidates, residuals and rates, through the engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coscheduler import audio, stages
from coscheduler.core.model import StageKind
from coscheduler.engines.base import StageResult, Task
from coscheduler.engines.separation import ranking
from coscheduler.engines.separation.anchors import Span
from coscheduler.engines.separation.engine import SeparationEngine
from coscheduler.engines.separation.model import ModelFolder
from coscheduler.engines.separation.ranking import Consistency, Judged, judge
from coscheduler.engines.separation.request import Request, anchor_ids
from coscheduler.errors import InvalidInput
from tests.engines.separation.conftest import RATE, finish, noise

MakeTask = Callable[..., Task]


def signal(task: Task, name: str = "target") -> np.ndarray[Any, Any]:
    return audio.read_mono(task.output_dir / f"{name}.wav", RATE)


def separated(engine: SeparationEngine, task: Task) -> tuple[StageResult, np.ndarray[Any, Any]]:
    result, _ = finish(engine, task)
    return result, signal(task)


# ---- parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sign", "start_ms", "end_ms"),
    [
        ("6.3-7.0", "+", 6300, 7000),
        ("+0-0.04", "+", 0, 40),
        (" -1.5-2 ", "-", 1500, 2000),
    ],
)
def test_spans_are_read_from_text(text: str, sign: str, start_ms: int, end_ms: int) -> None:
    span = stages.TimeSpan.model_validate(text)
    assert (span.sign, span.start_ms, span.end_ms) == (sign, start_ms, end_ms)


@pytest.mark.parametrize(
    "spans",
    [
        ["7-6.3"],
        ["5-5"],
        ["late"],
        ["1-2-3"],
        ["*1-2"],
        [{"start_ms": -1, "end_ms": 5}],
        ["0-1"] * 65,
    ],
)
def test_spans_that_are_reversed_or_no_spans_are_refused(spans: list[Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        stages.parse(StageKind.SEPARATE, {"prompt": "a dog", "spans": spans})
    assert caught.value.reason == "PARAMETER_INVALID"
    assert caught.value.numbers["field"].startswith("spans")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("candidates", 0), ("candidates", 17), ("redraws_max", 5), ("seed", -1),
        ("seed", 2**63), ("residual", "none"), ("ranking", "best"), ("sample_rate_hz", 100),
        ("prompt", ""),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        stages.parse(StageKind.SEPARATE, {"prompt": "a dog", field: value})
    assert caught.value.numbers["field"] == field


def test_the_seed_after_the_last_is_zero() -> None:
    assert Request("x", seed=2**63 - 1).seed_of(1) == 0


# ---- spans -------------------------------------------------------------------------------------


def test_later_spans_overwrite_and_cover_their_frames(source: ModelFolder) -> None:
    spans = (Span("+", 0.0, 0.12), Span("-", 0.08, 0.2))
    assert anchor_ids(spans, source.config, 10 * 1920).tolist() == [1, 1, 2, 2, 2, 0, 0, 0, 0, 0]


def test_a_span_may_end_with_the_recording(source: ModelFolder) -> None:
    assert anchor_ids((Span("+", 0.0, 0.1),), source.config, 4800).tolist() == [1, 1, 1]


@pytest.mark.parametrize(("start_s", "end_s"), [(0.1, 0.2), (0.05, 0.101), (100.0, 200.0)])
def test_a_span_outside_the_recording_is_refused(
    source: ModelFolder, start_s: float, end_s: float
) -> None:
    with pytest.raises(InvalidInput) as caught:
        anchor_ids((Span("+", start_s, end_s),), source.config, 4800)
    assert caught.value.reason == "SPAN_OUTSIDE"
    assert caught.value.numbers["duration_ms"] == "100"


def test_spans_reach_every_window_they_lie_in(engine: SeparationEngine, task: MakeTask) -> None:
    """2.4 seconds are two windows of two; the span lies in the last one alone."""
    _, without = separated(engine, task(noise(2.4)))
    _, with_span = separated(engine, task(noise(2.4), spans=["2.1-2.4"]))
    assert not np.array_equal(without[2 * RATE :], with_span[2 * RATE :])
    _, other = separated(engine, task(noise(2.4), spans=["-2.1-2.4"]))
    assert not np.array_equal(other, with_span)


def test_a_span_beyond_the_end_fails_the_task_alone(
    engine: SeparationEngine, task: MakeTask
) -> None:
    with pytest.raises(InvalidInput) as caught:
        finish(engine, task(noise(0.5), spans=["0.2-0.9"]))
    assert caught.value.reason == "SPAN_OUTSIDE"
    finish(engine, task(noise(0.5), spans=["0.2-0.5"]))


# ---- candidates --------------------------------------------------------------------------------


def test_the_best_candidate_is_what_its_seed_gives_alone(
    engine: SeparationEngine, task: MakeTask
) -> None:
    result, best = separated(engine, task(noise(0.5), seed=3, candidates=3))
    assert result.numbers["candidate_count"] == 3
    seed = result.numbers["chosen_seed"]
    assert seed in (3, 4, 5)
    _, alone = separated(engine, task(noise(0.5), seed=seed))
    assert np.array_equal(best, alone)


def test_consistency_is_the_share_of_the_mixture_that_is_rebuilt(source: ModelFolder) -> None:
    mixture = torch.randn(5000)
    target = 0.25 * mixture

    def score(missing: float) -> float:
        ranker = Consistency(source.config, "")
        ranker.add(mixture[:3000], target[:3000], ((0.75 - missing) * mixture)[:3000])
        ranker.add(mixture[3000:], target[3000:], ((0.75 - missing) * mixture)[3000:])
        return ranker.score()

    assert score(0.1) == pytest.approx(20.0, abs=1e-3)
    assert score(0.01) == pytest.approx(40.0, abs=1e-2)
    assert score(0.0) > 100


def test_a_candidate_with_sound_beats_an_empty_one_of_any_score() -> None:
    sound, better, empty = (
        Judged(0, 1.0, 0.1, 0.1), Judged(1, 2.0, 0.1, 0.1), Judged(2, 99.0, 0.1, 1e-6),
    )  # fmt: skip
    assert sound.beats(empty)
    assert not empty.beats(sound)
    assert better.beats(sound)
    assert not sound.beats(Judged(4, 1.0, 0.1, 0.1))


def test_judging_measures_levels_over_all_blocks(
    source: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "BLOCK_SAMPLES", 300)
    signals = torch.stack((torch.full((1000,), 0.2), torch.zeros(1000)))
    judging = judge(Consistency(source.config, ""), 5, torch.full((1000,), 0.1), signals)
    pauses = 0
    while True:
        try:
            next(judging)
            pauses += 1
        except StopIteration as stop:
            judged = stop.value
            break
    assert pauses == 4
    assert judged.seed == 5
    assert judged.mixture_rms == pytest.approx(0.1)
    assert judged.target_rms == pytest.approx(0.2)


def empty_until(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Make every target empty whose seed is below `seed`."""

    def judged(ranker: Any, number: int, mixture: Any, signals: Any) -> Any:
        found = yield from judge(ranker, number, mixture, signals)
        return Judged(number, found.score, found.mixture_rms, 0.0 if number < seed else 0.1)

    monkeypatch.setattr("coscheduler.engines.separation.candidates.judge", judged)


def test_an_empty_target_is_drawn_again_and_noted(
    engine: SeparationEngine, task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_until(monkeypatch, 2)
    result, slices = finish(engine, task(noise(0.3), redraws_max=4))
    assert (result.numbers["candidate_count"], result.numbers["chosen_seed"]) == (3, 2)
    assert result.numbers["empty_count"] == 2
    assert any("empty with 2 of 3 seeds" in note for note in result.notes)
    assert all(piece.done <= piece.total for piece in slices)


def test_redraws_are_bounded_and_none_follow_a_sound(
    engine: SeparationEngine, task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_until(monkeypatch, 99)
    result, _ = finish(engine, task(noise(0.3), redraws_max=1))
    assert result.numbers["candidate_count"] == 2
    assert any("seeds 0, 1" in note for note in result.notes)
    empty_until(monkeypatch, 0)
    result, _ = finish(engine, task(noise(0.3), redraws_max=1))
    assert result.numbers["candidate_count"] == 1


def test_silence_is_not_drawn_again(engine: SeparationEngine, task: MakeTask) -> None:
    result, _ = finish(engine, task(np.zeros(RATE // 4, np.float32), redraws_max=4))
    assert result.numbers["candidate_count"] == 1


# ---- outputs -----------------------------------------------------------------------------------


def test_the_subtracted_residual_adds_up_to_the_recording(
    engine: SeparationEngine, task: MakeTask
) -> None:
    made = task(noise(0.5, level=0.05), residual="mixture-minus-target")
    _, target = separated(engine, made)
    mixture = audio.read_mono(made.input_path, RATE)
    np.testing.assert_allclose(target + signal(made, "residual"), mixture, atol=2 / 32768)
    generated = task(noise(0.5, level=0.05))
    assert np.array_equal(separated(engine, generated)[1], target)
    assert np.abs(target + signal(generated, "residual") - mixture).max() > 0.01


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_the_output_has_the_rate_asked_for(
    engine: SeparationEngine, task: MakeTask, rate_hz: int
) -> None:
    made = task(noise(0.5), sample_rate_hz=rate_hz)
    finish(engine, made)
    for name in ("target", "residual"):
        probed = audio.probe(made.output_dir / f"{name}.wav", 0, 10_000)
        assert (probed.sample_rate_hz, probed.channel_count) == (rate_hz, 1)
        samples = audio.read_mono(made.output_dir / f"{name}.wav", rate_hz)
        assert len(samples) == rate_hz // 2
    plain = task(noise(0.5))
    _, target = separated(engine, plain)
    again = audio.read_mono(made.output_dir / "target.wav", RATE)
    middle = slice(RATE // 8, 3 * RATE // 8)
    low = np.abs(np.fft.rfft(target[middle]))[:500], np.abs(np.fft.rfft(again[middle]))[:500]
    assert np.corrcoef(*low)[0, 1] > 0.98


def test_stereo_is_heard_as_the_mean_of_its_channels(
    engine: SeparationEngine, task: MakeTask, tmp_path: Path
) -> None:
    left, right = noise(0.4, seed=1), noise(0.4, seed=2)
    mean = task(((left + right) / 2).astype(np.float32))
    stereo = task(left)
    write_stereo(stereo.input_path, left, right)
    _, one = separated(engine, mean)
    _, other = separated(engine, stereo)
    assert np.corrcoef(one, other)[0, 1] > 0.999  # the mean of two roundings is no rounded mean


def write_stereo(path: Path, left: Any, right: Any) -> None:
    import wave

    pair = np.stack((left, right), axis=1)
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, RATE, 0, "NONE", ""))
        file.writeframes((pair * 32768).round().astype("<i2").tobytes())
