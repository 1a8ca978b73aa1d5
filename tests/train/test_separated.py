"""What the recogniser learns separated speech from: the trained part back out of an export, and the
pool of windows.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.train import on_path

with on_path():
    from train import corpus, separated, separator_export, separator_restored, sounds, windows
    from train.separator_codec import BANDS
    from train.separator_net import Separator
    from train.speech import RATE_HZ, Samples
    from train.windows import Window

SPREAD = torch.linspace(0.2, 0.05, BANDS)


@pytest.fixture(scope="module")
def untrained() -> Separator:
    torch.manual_seed(0)
    return Separator(layers=2).eval()


def a_sound(seconds: float) -> Samples:
    clip: Samples = np.float32(0.05) * sounds.clip("music", "test", 1, seconds)
    return clip


def test_the_trained_part_comes_back_from_the_files(untrained: Separator, tmp_path: Path) -> None:
    torch.save(separator_export.tensors(untrained, SPREAD, 1.0), tmp_path / "checkpoint.pt")
    back, spread = separator_restored.restored(tmp_path)
    torch.testing.assert_close(spread, SPREAD)
    latents, classes = torch.randn(2, 40, BANDS), torch.tensor([0, 2])
    with torch.inference_mode():
        wanted, found = untrained(latents, classes), back(latents, classes)
    error = (found - wanted).norm() / wanted.norm()
    assert float(error) < 0.02  # matrices were rounded to bfloat16


@pytest.mark.parametrize("seconds", [1.0, 7.3])
def test_windows_are_joined_over_the_whole_length(untrained: Separator, seconds: float) -> None:
    mixture = a_sound(seconds)
    found = separator_restored.speech_of(untrained, SPREAD, mixture)
    assert found.shape == mixture.shape and found.dtype == np.float32
    assert np.isfinite(found).all()
    blocks = found[: len(found) // 800 * 800].reshape(-1, 800)
    assert (np.square(blocks).mean(axis=1) > 0).all()


def test_a_pool_is_made_once_and_keeps_what_was_said(
    tmp_path: Path, untrained: Separator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(separated, "PART", 2)
    monkeypatch.setattr(separator_restored, "restored", lambda folder: (untrained, SPREAD))
    drawn: list[Window] = []
    original = windows.draw

    def remembered(*arguments: Any) -> Window:
        drawn.append(original(*arguments))
        return drawn[-1]

    monkeypatch.setattr(windows, "draw", remembered)
    data = small_corpus()
    pool = separated.open_or_make(tmp_path, data, 3)
    assert len(drawn) == len(pool.pieces) == 4, "two whole parts"
    assert [len(piece) for piece in pool.pieces] == [len(one.samples) for one in drawn]
    assert list(pool.said) == [one.sentences for one in drawn]
    again = separated.open_or_make(tmp_path, data, 3)
    assert len(drawn) == 4 and again.said == pool.said
    window = again.draw(np.random.default_rng(0))
    assert window.sentences in pool.said and np.abs(window.samples).max() <= 1.0


def small_corpus() -> corpus.Corpus:
    rng = np.random.default_rng(0)
    words = [("Thank", 0.1, 0.4), ("you.", 0.4, 0.9)]
    index = ({"first": 0, "count": RATE_HZ, "words": words},)
    pcm = (rng.standard_normal(RATE_HZ) * 3000).astype(np.int16)
    clips = (rng.standard_normal((2, RATE_HZ)) * 3000).astype(np.int16)
    return corpus.Corpus(pcm, index, dict.fromkeys(sounds.KINDS, clips))
