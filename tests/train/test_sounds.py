"""Noise, beeps and music from seeds."""

import numpy as np
import pytest

from tests.train import on_path

with on_path():
    from train import sounds


@pytest.mark.parametrize("kind", sounds.KINDS)
def test_a_clip_is_the_same_again_and_no_other_of_its_pool(kind: sounds.Kind) -> None:
    clip = sounds.clip(kind, "train", 3, 1.5)
    assert clip.shape == (24_000,) and clip.dtype == np.float32
    assert np.array_equal(clip, sounds.clip(kind, "train", 3, 1.5))
    for other in (sounds.clip(kind, "train", 4, 1.5), sounds.clip(kind, "test", 3, 1.5)):
        assert abs(np.corrcoef(clip, other)[0, 1]) < 0.9
    assert np.sqrt(np.mean(clip**2)) == pytest.approx(1.0, rel=0.01)


def test_a_mixture_has_the_level_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    speech = rng.standard_normal(16_000).astype(np.float32)
    other = sounds.clip("noise", "test", 1, 1.0)
    rest = sounds.mixed(speech, other, 5.0) - speech
    ratio_db = 10 * np.log10(np.mean(speech**2) / np.mean(rest**2))
    assert ratio_db == pytest.approx(5.0, abs=0.01)
