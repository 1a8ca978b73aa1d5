"""Sounds that are not speech: noise, beeps and music, synthesised from seeds.

Training and test draw from pools of seeds that have nothing in common. Everything is float32 [N]
with a root mean square of 1; `mixed` brings it to a level below speech.
"""

import zlib
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Kind = Literal["noise", "beeps", "music"]
Split = Literal["train", "test"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Samples = NDArray[np.float32]
_Array = NDArray[Any]
_Maker = Callable[[np.random.Generator, int, int], _Array]

_BANDS = 12
_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9))
_CHORDS = ((0, 4, 7), (0, 3, 7), (0, 4, 7, 11), (0, 3, 7, 10), (0, 5, 7))
_FADE_SECONDS = 0.008


def clip(kind: Kind, split: Split, index: int, seconds: float, rate_hz: int = 16_000) -> Samples:
    """Sound `index` of a pool: the same arguments give the same samples. RMS 1."""
    key = [zlib.crc32(f"{split} {kind}".encode()), index]
    return make(kind, np.random.default_rng(key), round(seconds * rate_hz), rate_hz)


def make(kind: Kind, rng: np.random.Generator, count: int, rate_hz: int = 16_000) -> Samples:
    """A sound of `count` samples. RMS 1."""
    makers: dict[Kind, _Maker] = {"noise": _noise, "beeps": _beeps, "music": _music}
    return _levelled(makers[kind](rng, count, rate_hz))


def mixed(speech: Samples, other: Samples, snr_db: float) -> Samples:
    """`speech` [N] plus `other` [N], so loud that the speech is `snr_db` above it.

    Both levels are root mean squares over all N samples, as SI-SDR has them.
    """
    speech_rms = np.sqrt(np.mean(np.square(speech, dtype=np.float64)))
    other_rms = np.sqrt(np.mean(np.square(other, dtype=np.float64)))
    scale = speech_rms / max(other_rms, 1e-9) * 10 ** (-snr_db / 20)
    sum_: Samples = speech + other * np.float32(scale)
    return sum_


def _levelled(samples: _Array) -> Samples:
    level = float(np.sqrt(np.mean(samples**2)))
    return np.asarray(samples / max(level, 1e-9), np.float32)


def _noise(rng: np.random.Generator, count: int, rate_hz: int) -> _Array:
    """Gaussian noise with a tilted, uneven spectrum, louder and softer over time; at times with a
    hum of the mains or a motor.
    """
    spectrum = np.fft.rfft(rng.standard_normal(count))
    hz = np.fft.rfftfreq(count, 1 / rate_hz)
    octaves = np.log2(np.maximum(hz, 40.0) / 40.0)
    tilt_db = -rng.uniform(0.0, 8.0) * octaves
    uneven_db = np.interp(octaves, np.linspace(0, octaves[-1], _BANDS), rng.normal(0, 4, _BANDS))
    noise = np.fft.irfft(spectrum * 10 ** ((tilt_db + uneven_db) / 20), count)
    shaped = _levelled(noise) * _swell(rng, count, rate_hz, depth=rng.uniform(0.0, 0.8))
    if rng.random() < 0.3:
        hum = _tone(rng.uniform(45.0, 180.0), count, rate_hz, rng.uniform(0.3, 1.0, 8))
        shaped = shaped + rng.uniform(0.2, 0.8) * _levelled(hum)
    return np.asarray(shaped, np.float64)


def _beeps(rng: np.random.Generator, count: int, rate_hz: int) -> _Array:
    """A device that beeps: a pattern of one to four tones that comes back after a pause."""
    pitches = rng.uniform(350.0, 3200.0, rng.integers(1, 5))
    partials = 1.0 / np.arange(1, 1 + rng.integers(1, 5)) ** rng.uniform(1.0, 3.0)
    seconds, gap = rng.uniform(0.06, 0.4), rng.uniform(0.03, 0.25)
    pause = rng.uniform(0.1, 0.9)
    out = np.zeros(count)
    at, step = int(rng.uniform(0.0, pause) * rate_hz), 0
    while at < count:
        tone = _tone(pitches[step % len(pitches)], int(seconds * rate_hz), rate_hz, partials)
        _add(out, at, _faded(tone, rate_hz))
        step += 1
        at += int((seconds + gap + (pause if step % len(pitches) == 0 else 0.0)) * rate_hz)
    return out


def _music(rng: np.random.Generator, count: int, rate_hz: int) -> _Array:
    """Chords and a melody over them in one key, with decaying notes of a few partials."""
    root = rng.uniform(90.0, 200.0)
    scale = _SCALES[rng.integers(len(_SCALES))]
    beat = rng.uniform(0.22, 0.6)
    partials = 1.0 / np.arange(1, 1 + rng.integers(2, 7)) ** rng.uniform(0.8, 2.0)
    decay = rng.uniform(0.4, 3.0)
    out = np.zeros(count)
    for bar in range(int(count / (4 * beat * rate_hz)) + 1):
        first = int(bar * 4 * beat * rate_hz)
        base = scale[rng.integers(len(scale))]
        for semitone in _CHORDS[rng.integers(len(_CHORDS))]:
            hz = root * 2 ** ((base + semitone) / 12)
            _add(out, first, _note(hz, 4 * beat, rate_hz, partials, decay))
        for quarter in range(4):
            if rng.random() < 0.8:
                hz = 2 * root * 2 ** ((scale[rng.integers(len(scale))]) / 12)
                start = first + int(quarter * beat * rate_hz)
                _add(out, start, 0.8 * _note(hz, beat, rate_hz, partials, decay))
    return out


def _note(hz: float, seconds: float, rate_hz: int, partials: _Array, decay: float) -> _Array:
    count = int(seconds * rate_hz)
    ringing = np.exp(-decay * np.arange(count) / rate_hz)
    return _faded(_tone(hz, count, rate_hz, partials) * ringing, rate_hz)


def _tone(hz: float, count: int, rate_hz: int, partials: _Array) -> _Array:
    """Sum of the harmonics below the Nyquist frequency, weighted by `partials`."""
    phase = 2 * np.pi * hz * np.arange(count) / rate_hz
    out = np.zeros(count)
    for order, weight in enumerate(partials, start=1):
        if order * hz < rate_hz / 2:
            out += weight * np.sin(order * phase)
    return out


def _faded(samples: _Array, rate_hz: int) -> _Array:
    """With a short rise and fall, so that nothing clicks."""
    count = min(int(_FADE_SECONDS * rate_hz), len(samples) // 2)
    rise = np.linspace(0.0, 1.0, count)
    samples[:count] *= rise
    samples[len(samples) - count :] *= rise[::-1]
    return samples


def _swell(rng: np.random.Generator, count: int, rate_hz: int, depth: float) -> _Array:
    """A gain that wanders between 1 - depth and 1 + depth, about once a second."""
    knots = rng.uniform(-1.0, 1.0, count // rate_hz + 2)
    return 1 + depth * np.interp(np.arange(count) / rate_hz, np.arange(len(knots)), knots)


def _add(out: _Array, at: int, samples: _Array) -> None:
    """Add `samples` to `out` from `at` on, as far as they fit."""
    room = max(0, len(out) - at)
    out[at : at + len(samples)] += samples[:room]
