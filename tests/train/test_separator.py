"""The separator's training: the codec in closed form, and the export that the engine runs as is."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from coscheduler.engines.separation.api import SamAudio, Samples, Separation
from coscheduler.engines.separation.recording import Recording
from tests.train import on_path

with on_path():
    from train import separator, separator_export, sounds
    from train import separator_codec as codec
    from train import separator_data as data
    from train.separator_net import Separator
    from train.separator_scores import estimated, si_sdr_db

SPREAD = torch.linspace(0.2, 0.05, codec.BANDS)
COUNT = 9_000  # no multiple of the hop
INSIDE = slice(codec.HOP, COUNT - 4 * codec.HOP)  # without the ends, where the codec has no overlap


@pytest.fixture(scope="module")
def untrained() -> Any:
    """As training begins: half of the mixture, and a little of everything else."""
    torch.manual_seed(0)
    model = Separator(layers=1)
    with torch.inference_mode():
        model(torch.randn(1, 50, codec.BANDS), torch.tensor([0]))
    return model


@pytest.fixture(scope="module")
def exported(untrained: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SamAudio]:
    folder = tmp_path_factory.mktemp("separator")
    separator_export.export(untrained, SPREAD, float(untrained.level.mean()), folder / "model")
    prepared = folder / "prepared"
    with SamAudio.load(folder / "model", precision="float32", prepared_dir=prepared) as model:
        yield model


@pytest.fixture(scope="module")
def mixture() -> Samples:
    samples: Samples = np.float32(0.05) * sounds.clip("music", "test", 1, 1.0)[:COUNT]
    return samples


def test_the_transform_and_its_transpose_give_the_samples_back() -> None:
    samples = sounds.clip("noise", "test", 0, 0.5)
    back = codec.synthesise(codec.analyse(samples, codec.HOP))
    inside = slice(codec.HOP, -codec.HOP)  # at both ends one half of the overlap is missing
    assert np.abs(back[: len(samples)] - samples)[inside].max() < 1e-5


@pytest.fixture(scope="module")
def recording(exported: SamAudio, mixture: Samples) -> Recording:
    return exported.encode(mixture)


@pytest.fixture(scope="module")
def speech(exported: SamAudio, recording: Recording) -> Separation:
    return exported.separate(recording, "speech")


def test_the_engine_encodes_to_the_levelled_coefficients(
    recording: Recording, mixture: Samples
) -> None:
    frames = COUNT // codec.HOP - 1  # the last ones see the mirror image behind the end
    expected = codec.analyse(mixture)[:frames] / SPREAD
    torch.testing.assert_close(recording.features[:frames], expected, atol=1e-4, rtol=1e-3)


def test_the_engine_separates_as_the_trained_part_does(
    speech: Separation, untrained: Any, mixture: Samples
) -> None:
    expected = codec.synthesise(estimated(untrained, SPREAD, codec.analyse(mixture)))
    assert si_sdr_db(speech.target[INSIDE], expected[INSIDE]) > 30
    assert len(speech.target) == COUNT


def test_target_and_residual_are_the_mixture_within_the_bands(
    speech: Separation, mixture: Samples
) -> None:
    kept = codec.synthesise(codec.analyse(mixture))
    assert si_sdr_db((speech.target + speech.residual)[INSIDE], kept[INSIDE]) > 30


def test_neither_the_noise_nor_other_words_for_it_have_a_say(
    exported: SamAudio, recording: Recording, speech: Separation
) -> None:
    same = exported.separate(recording, "A person speaking", seed=1)
    assert si_sdr_db(same.target, speech.target) > 40


def test_the_prompt_decides(exported: SamAudio, recording: Recording, speech: Separation) -> None:
    other = exported.separate(recording, "beeps")
    assert si_sdr_db(other.target, speech.target) < 20


def test_a_batch_asks_for_what_is_in_its_mixtures() -> None:
    generator = torch.Generator().manual_seed(1)
    by_class = {
        name: torch.randn(400, codec.BANDS, generator=generator).half() for name in data.CLASSES
    }
    pools = data.Pools(by_class)
    batch = pools.batch(np.random.default_rng(3), 12, 100)
    rest = batch.mixture - batch.target
    present = batch.target.square().sum((1, 2)) > 0
    shares = rest.square().sum((1, 2)) / batch.mixture.square().sum((1, 2))
    assert batch.mixture.shape == (12, 100, codec.BANDS)
    assert (batch.classes == 0).sum() >= 5
    assert (shares[present] < 0.9).all()
    assert (shares[~present] == 1).all()
    again = pools.batch(np.random.default_rng(3), 12, 100)
    assert torch.equal(again.mixture, batch.mixture)


def test_the_error_counts_against_the_target_or_where_it_is_silent_the_mixture() -> None:
    mixture = torch.ones(2, 4, codec.BANDS)
    target = torch.stack((0.5 * mixture[0], torch.zeros_like(mixture[0])))
    perfect = separator._error_db(target, target, mixture)
    nothing_done = separator._error_db(mixture, target, mixture)
    assert float(perfect) == pytest.approx(-30, abs=1e-4)
    assert float(nothing_done) == pytest.approx(10 * np.log10(1.001), abs=1e-4)  # 0 dB in both rows
