"""SamAudio as a library: limits, one encoding for several prompts, arrays and files."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coscheduler import audio
from coscheduler.engines.base import Task
from coscheduler.engines.separation import choices
from coscheduler.engines.separation.engine import SeparationEngine
from coscheduler.engines.separation.offer import CONTEXT_BYTES, PRECISIONS, Machine
from coscheduler.errors import EngineFault, InvalidInput, Refused
from coscheduler.separation import Recording, SamAudio
from tests.engines.separation.conftest import RATE, finish, noise

MakeTask = Callable[..., Task]


def load(models: Path, **more: object) -> SamAudio:
    given = {"text_encoder": models / "t5", "prepared_dir": models / "prepared", **more}
    return SamAudio.load(models / "sam", **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sam(models: Path) -> Iterator[SamAudio]:
    with load(models, window_ms=2000) as made:
        yield made


def test_it_gives_what_the_engine_gives(
    sam: SamAudio, engine: SeparationEngine, task: MakeTask
) -> None:
    made = task(noise(0.5), prompt="a dog barking", seed=3, spans=["0.1-0.3"])
    finish(engine, made)
    found = sam.separate(made.input_path, "a dog barking", seed=3, spans=["0.1-0.3"])
    assert found.sample_rate_hz == RATE
    for name, samples in (("target", found.target), ("residual", found.residual)):
        written = audio.read_mono(made.output_dir / f"{name}.wav", RATE)
        np.testing.assert_allclose(samples, written, atol=1 / 32768)


def test_several_prompts_share_one_encoding(sam: SamAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = sam.encode(noise(0.5))
    dog, rain = (sam.separate(recording, prompt) for prompt in ("a dog", "loud rain"))
    monkeypatch.setattr(SamAudio, "encode", None)
    again = sam.separate(recording, "a dog")
    assert isinstance(recording, Recording)
    assert np.array_equal(dog.target, again.target)
    assert not np.array_equal(dog.target, rain.target)


def test_candidates_tell_their_scores(sam: SamAudio) -> None:
    found = sam.separate(noise(0.3), "a dog", candidates=3, seed=7)
    assert set(found.scores) == {7, 8, 9}
    assert found.score == max(found.scores.values()) == found.scores[found.seed]


def test_channels_become_their_mean_and_rates_are_changed(sam: SamAudio) -> None:
    left, right = noise(0.2, seed=1), noise(0.2, seed=2)
    both = sam.encode(np.stack((left, right)))
    np.testing.assert_allclose(both.mixture.numpy(), (left + right) / 2, atol=1e-6)
    slow = sam.encode(noise(0.4), sample_rate_hz=RATE // 2)
    assert len(slow.mixture) == pytest.approx(2 * len(noise(0.4)), abs=2)


def test_the_watermark_can_be_declined(sam: SamAudio) -> None:
    recording = sam.encode(noise(0.2))
    marked, plain = (sam.separate(recording, "a dog", watermark=mark) for mark in (True, False))
    assert np.array_equal(sam.separate(recording, "a dog").target, marked.target)
    assert not np.array_equal(marked.target, plain.target)
    assert marked.scores == plain.scores  # what is judged is the sound without it


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros((1, 1, 9), np.float32), "AUDIO_UNREADABLE"),
        (np.full(9999, np.nan, np.float32), "AUDIO_NOT_FINITE"),
        (np.zeros(1, np.float32), "AUDIO_TOO_SHORT"),
    ],
)
def test_samples_that_are_none_are_refused(
    sam: SamAudio, samples: np.ndarray[Any, np.dtype[np.float32]], reason: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        sam.encode(samples)
    assert caught.value.reason == reason


def test_progress_is_told(sam: SamAudio) -> None:
    seen: list[tuple[int, int, str]] = []
    sam.separate(noise(3.0), "a dog", on_progress=lambda *step: seen.append(step))
    assert any("step 16 of 16, window 2 of 2" in note for _, _, note in seen)
    assert all(done <= total for done, total, _ in seen if total)


# ---- memory ------------------------------------------------------------------------------------


def test_without_a_limit_it_is_float32(sam: SamAudio) -> None:
    assert (sam.option.name, sam.reason) == ("float32", "")


def test_the_best_that_fits_is_taken_and_the_reason_told(models: Path) -> None:
    """First fewer resident layers, then a smaller precision."""
    source = choices.open_source(models / "sam", models / "t5")
    offered = choices.options((source,), PRECISIONS, 30_000, Machine("cpu", 1))
    need = {o.name: o.peak_bytes(3_600_000) + CONTEXT_BYTES["cpu"] for o in offered}
    for name in ("float32", "float32:0/4", "int8:0/4"):
        with load(models, memory_limit=f"{need[name]} B") as chosen:
            assert chosen.option.name == name
            assert bool(chosen.reason) == name.startswith("int8")
    assert "float32 takes" in chosen.reason
    least = min(need.values())
    with pytest.raises(Refused) as caught:
        load(models, memory_limit=least - 1)
    assert caught.value.reason == "NEVER_FITS"
    assert caught.value.numbers == {
        "required_bytes": str(least), "available_bytes": str(least - 1),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "error", "reason"),
    [
        ({"precision": "float16"}, InvalidInput, "PRECISION_REFUSED"),
        ({"memory_limit": "a lot"}, InvalidInput, "MEMORY_LIMIT_INVALID"),
        ({"text_encoder": Path("none")}, EngineFault, "MODEL_MISSING"),
    ],
)
def test_wrong_arguments_are_named(
    models: Path, wrong: dict[str, object], error: type[InvalidInput], reason: str
) -> None:
    with pytest.raises(error) as caught:
        load(models, offline=True, **wrong)
    assert caught.value.reason == reason


def test_a_closed_model_says_so(models: Path) -> None:
    sam = load(models)
    recording = sam.encode(noise(0.1))
    sam.close()
    sam.close()
    with pytest.raises(Refused, match="load it again"):
        sam.separate(recording, "a dog")


def test_a_text_encoder_beside_the_checkpoint_is_found(models: Path, tmp_path: Path) -> None:
    for name in ("config.json", "checkpoint.pt"):
        (tmp_path / name).symlink_to(models / "sam" / name)
    (tmp_path / "t5").symlink_to(models / "t5")
    with SamAudio.load(tmp_path, prepared_dir=tmp_path / "p") as sam:
        assert sam.separate(noise(0.1), "a dog").notes == ()
