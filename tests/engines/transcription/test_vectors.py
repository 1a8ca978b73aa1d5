"""What a voice sounds like, and how many voices there are."""

import numpy as np
import pytest

from coscheduler.engines.transcription.vectors import SAMPLE_RATE_HZ, Array, clustered, statistics

PEOPLE = ("A", "B", "A", "A", "B", "B", "A", "B")


def heard(apart: float, seconds: float = 2.0) -> tuple[list[tuple[int, int]], Array]:
    """Stretches of PEOPLE, whose vectors are `apart` on average."""
    rng = np.random.default_rng(0)
    size = int(seconds * SAMPLE_RATE_HZ)
    stretches = [(2 * n * size, (2 * n + 1) * size) for n in range(len(PEOPLE))]
    centres = {"A": np.zeros(6), "B": np.array([apart, 0, 0, 0, 0, 0])}
    rows = [centres[who] + 0.5 * rng.standard_normal(6) for who in PEOPLE]
    return stretches, np.array(rows, np.float32)


def matches(labels: list[int]) -> bool:
    return labels in ([int(who == "A") for who in PEOPLE], [int(who == "B") for who in PEOPLE])


def test_voices_that_are_far_apart_are_told_apart() -> None:
    assert matches(clustered(*heard(8.0), threshold=4.0))


def test_voices_that_are_alike_are_one_unless_two_are_asked_for() -> None:
    stretches, vectors = heard(3.0)
    assert set(clustered(stretches, vectors, threshold=4.0)) == {0}
    assert matches(clustered(stretches, vectors, 4.0, least=2))


def test_there_are_never_more_than_asked_for() -> None:
    stretches, vectors = heard(8.0)
    assert set(clustered(stretches, vectors, 4.0, least=1, most=1)) == {0}
    assert len(set(clustered(stretches, vectors, 0.01, least=1, most=3))) == 3


def test_a_cluster_that_hardly_speaks_is_none() -> None:
    stretches, vectors = heard(8.0, seconds=4.0)
    vectors[3] = 30.0
    stretches[3] = (stretches[3][0], stretches[3][0] + SAMPLE_RATE_HZ // 2)
    assert len(set(clustered(stretches, vectors, 4.0))) == 2


@pytest.mark.parametrize("count", [1, 2])
def test_few_stretches_are_enough(count: int) -> None:
    stretches, vectors = heard(8.0)
    labels = clustered(stretches[:count], vectors[:count], 4.0)
    assert len(labels) == count


def buzz(hz: float, seconds: float = 1.0) -> Array:
    """A voice: pulses at `hz`."""
    places = np.arange(int(seconds * SAMPLE_RATE_HZ)) * hz / SAMPLE_RATE_HZ
    return np.asarray(0.3 * np.sin(2 * np.pi * places) + 0.2 * np.sin(4 * np.pi * places), "f")


def test_statistics_hear_the_pitch_and_not_the_level() -> None:
    low, high, soft = (
        statistics(buzz(128.0)),
        statistics(buzz(256.0)),
        statistics(0.1 * buzz(128.0)),
    )
    assert low[-3] == pytest.approx(0.0, abs=0.1) and high[-3] == pytest.approx(1.0, abs=0.1)
    np.testing.assert_allclose(low, soft, atol=0.05)


@pytest.mark.parametrize("samples", [np.zeros(10, "f"), np.zeros(16_000, "f")])
def test_statistics_of_nothing_are_numbers(samples: Array) -> None:
    assert np.isfinite(statistics(samples)).all()
