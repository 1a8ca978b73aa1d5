"""How a voice sounds, as a vector, and which vectors are one voice. Plain numpy and scipy."""

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

SAMPLE_RATE_HZ = 16_000
SPEAKERS_MAX = 8  # where nobody says how many there are
FRAME, HOP, N_FFT = 400, 160, 512
BAND_COUNT, CEPSTRUM_COUNT = 40, 24
_SAMPLES_MIN = 3200
_JUDGED_SECONDS_MIN = 1.0
_SHARE_MIN = 0.05
_LOUD_DB = 25.0  # below the loudest frame; what is softer is pause or background
_FLOOR = 1e-4  # of the loudest band: silence is as soft in all recordings
_PITCH_FRAME = 1024
_LAG_MIN, _LAG_MAX = SAMPLE_RATE_HZ // 400, SAMPLE_RATE_HZ // 65
_VOICED = 0.4  # of the energy, at the best lag

Array = NDArray[np.float32]
Stretch = tuple[int, int]  # from sample to sample


def clustered(
    stretches: list[Stretch],
    vectors: Array,
    threshold: float,
    least: int = 1,
    most: int | None = None,
) -> list[int]:
    """A label for each of `vectors` [N, D].

    Ward's clusters of the stretches that are long enough to judge by, as many as there can be with
    at least `threshold` between any two of their means and a twentieth of the time in each; but at
    least `least` and at most `most`. The short stretches go to the nearest mean.
    """
    seconds = np.array([end - start for start, end in stretches]) / SAMPLE_RATE_HZ
    judged = seconds >= min(_JUDGED_SECONDS_MIN, float(np.median(seconds)))
    sound, weights = vectors[judged], seconds[judged]
    tree = linkage(sound, "ward") if len(sound) > 1 else None
    means = sound.mean(0, keepdims=True)
    for count in range(min(least, len(sound)), min(most or SPEAKERS_MAX, len(sound)) + 1):
        if tree is None or count < 2:
            continue
        labels = fcluster(tree, count, "maxclust")
        found = [labels == label for label in sorted(set(labels))]
        wider = np.stack([sound[chosen].mean(0) for chosen in found])
        share = min(weights[chosen].sum() for chosen in found) / weights.sum()
        apart = share >= _SHARE_MIN and pdist(wider).min() >= threshold
        if apart or count <= least:
            means = wider
    distances = np.linalg.norm(vectors[:, None] - means[None], axis=2)
    return [int(label) for label in distances.argmin(1)]


def statistics(samples: Array) -> Array:
    """What a stretch of speech sounds like, whatever is said: float32 [2 CEPSTRUM_COUNT + 3].

    Means and deviations of the mel cepstrum without its first coefficient, the level; median and
    deviation of the pitch in octaves, and how much is voiced.
    """
    padded = np.pad(samples, (0, max(0, _SAMPLES_MIN - len(samples))))
    mel = _log_mel(padded)
    level = mel.mean(1)
    loud = mel[level > level.max() - _LOUD_DB / 10 * np.log(10)]
    cepstrum = scipy.fft.dct(loud, norm="ortho")[:, 1 : 1 + CEPSTRUM_COUNT]
    parts = [cepstrum.mean(0), cepstrum.std(0), _pitch(padded)]
    return np.concatenate(parts).astype(np.float32)


def _log_mel(samples: Array) -> Array:
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP]
    spectrum = scipy.fft.rfft(frames * np.hanning(FRAME).astype(np.float32), N_FFT)
    power = np.square(np.abs(spectrum)) @ _bands().T
    return np.asarray(np.log(power + _FLOOR * power.max() + 1e-12), np.float32)


def _bands() -> Array:
    """Triangles, evenly spaced on the mel scale (O'Shaughnessy 1987): [BAND_COUNT, bins]."""
    edges_mel = np.linspace(_mel(60.0), _mel(7600.0), BAND_COUNT + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)
    hz = np.fft.rfftfreq(N_FFT, 1 / SAMPLE_RATE_HZ)
    rising = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.clip(np.minimum(rising, falling), 0, None), np.float32)


def _mel(hz: float) -> float:
    return float(2595 * np.log10(1 + hz / 700))


def _pitch(samples: Array) -> NDArray[np.float64]:
    """Median and deviation of log2 of the pitch in Hz, and the share of voiced frames, by
    autocorrelation; 0 octaves stand for 128 Hz.
    """
    frames = np.lib.stride_tricks.sliding_window_view(samples, _PITCH_FRAME)[:: 2 * HOP]
    frames = frames - frames.mean(1, keepdims=True)
    power = np.square(np.abs(scipy.fft.rfft(frames, 2 * _PITCH_FRAME)))
    correlation = scipy.fft.irfft(power)[:, :_LAG_MAX] / (power.mean(1, keepdims=True) + 1e-9)
    lags = correlation[:, _LAG_MIN:].argmax(1) + _LAG_MIN
    best = np.take_along_axis(correlation, lags[:, None], 1)[:, 0] / (correlation[:, 0] + 1e-9)
    voiced = best > _VOICED
    if not voiced.any():
        return np.zeros(3)
    octaves = np.log2(SAMPLE_RATE_HZ / lags[voiced] / 128)
    return np.array([np.median(octaves), octaves.std(), voiced.mean()])
