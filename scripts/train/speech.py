"""Spoken sentences with the times of their words, by libespeak-ng through ctypes.

The library is a single voice machine with global state: one process speaks one sentence at a time,
2-3 ms each. Its voices are formant synthesis, not recordings, so nobody's voice is in the data.
"""

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

LIBRARY = "libespeak-ng.so.1"
NATIVE_RATE_HZ = 22_050
RATE_HZ = 16_000

# This build finds voices by file name only.
ACCENTS = ("gmw/en-US", "gmw/en", "gmw/en-GB-x-rp", "gmw/en-GB-scotland")
VARIANTS = ("m1", "m2", "m3", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f5")
TRAIN_VOICES = tuple(f"{accent}+{variant}" for accent in ACCENTS for variant in VARIANTS)
# Never in training: two variants, and with the last one an accent too.
NEW_VOICES = ("gmw/en-US+f4", "gmw/en+m4", "gmw/en-GB-x-gbcwmd+f4")

_SYNCHRONOUS, _POSITION_CHARACTER, _UTF8 = 2, 1, 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_EVENT_END, _EVENT_WORD = 0, 1
_SILENCE = 0.003  # of full scale; below it a word has ended
_FRAME = NATIVE_RATE_HZ // 100

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Voice:
    """A voice file, words per minute, and pitch and its range (0-99, 50 = the voice's own)."""

    name: str
    words_per_minute: int = 170
    pitch: int = 50
    pitch_range: int = 50


@dataclass(frozen=True)
class Word:
    """A word as it is written, and when it is spoken, in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Spoken:
    """A sentence: float32 [N] at `rate_hz` within -1..1, and its words in order."""

    samples: Samples
    rate_hz: int
    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        """What was said."""
        return " ".join(word.text for word in self.words)


def draw_voice(rng: np.random.Generator, names: tuple[str, ...] = TRAIN_VOICES) -> Voice:
    """A voice of `names` at a rate, pitch and range of its own."""
    return Voice(
        str(rng.choice(names)),
        int(rng.integers(135, 206)),
        int(rng.integers(25, 76)),
        int(rng.integers(30, 71)),
    )


def say(text: str, voice: Voice, rate_hz: int = RATE_HZ) -> Spoken:
    """`text` spoken by `voice`, resampled to `rate_hz`.

    Raises OSError without the library, ValueError for a voice that it does not have.
    """
    samples, starts = _machine().speak(text, voice)
    words = _words(text, starts, samples)
    divisor = np.gcd(rate_hz, NATIVE_RATE_HZ)
    resampled = resample_poly(samples, rate_hz // divisor, NATIVE_RATE_HZ // divisor)
    return Spoken(resampled.astype(np.float32), rate_hz, words)


def _words(text: str, starts: dict[int, float], samples: Samples) -> tuple[Word, ...]:
    """The words of `text` with their times. `starts` has the second at which the word at a place
    in the text begins; words that are spoken as one ("of the") share the interval of the first.
    """
    places, place = [], 0
    for word in text.split():
        place = text.index(word, place)
        places.append((word, place))
        place += len(word)
    begins: list[float] = []
    for _, place in places:
        begins.append(starts.get(place, begins[-1] if begins else 0.0))
    ends = [*begins[1:], len(samples) / NATIVE_RATE_HZ]
    for index in reversed(range(len(ends) - 1)):
        if ends[index] == begins[index]:
            ends[index] = ends[index + 1]
    return tuple(
        Word(word, begin, _audible_end(samples, begin, end))
        for (word, _), begin, end in zip(places, begins, ends, strict=True)
    )


def _audible_end(samples: Samples, begin: float, end: float) -> float:
    """`end` without the silence before it, in steps of 10 ms; at least one step after `begin`."""
    first, last = int(begin * NATIVE_RATE_HZ), int(end * NATIVE_RATE_HZ)
    while last - _FRAME > first and np.abs(samples[last - _FRAME : last]).max() < _SILENCE:
        last -= _FRAME
    return max(last, first + _FRAME) / NATIVE_RATE_HZ


class _Id(ctypes.Union):
    _fields_ = (
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    )


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class _Machine:
    """The library, initialised once for this process."""

    def __init__(self) -> None:
        self._library: Any = ctypes.CDLL(LIBRARY)
        if self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, 0) != NATIVE_RATE_HZ:
            raise OSError(f"{LIBRARY} has no data: install espeak-ng-data")
        self._pieces: list[bytes] = []
        self._starts: dict[int, float] = {}
        self._callback = _Callback(self._take)  # kept alive: the library holds a bare pointer
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, voice: Voice) -> tuple[Samples, dict[int, float]]:
        """Samples at NATIVE_RATE_HZ; the second of each word by its place in the text."""
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise ValueError(f"{LIBRARY} has no voice {voice.name!r}; `espeak-ng --voices` has all")
        self._library.espeak_SetParameter(_RATE, voice.words_per_minute, 0)
        self._library.espeak_SetParameter(_PITCH, voice.pitch, 0)
        self._library.espeak_SetParameter(_RANGE, voice.pitch_range, 0)
        self._pieces, self._starts = [], {}
        encoded = text.encode()
        self._library.espeak_Synth(
            encoded, ctypes.c_size_t(len(encoded) + 1), 0, _POSITION_CHARACTER, 0, _UTF8, None, None
        )
        pcm = np.frombuffer(b"".join(self._pieces), np.int16)
        return pcm.astype(np.float32) / np.float32(32768.0), self._starts

    def _take(self, wave: Any, count: int, events: Any) -> int:
        """What the library calls with every piece of sound."""
        if wave and count:
            self._pieces.append(ctypes.string_at(wave, 2 * count))
        index = 0
        while events[index].type != _EVENT_END:
            event = events[index]
            if event.type == _EVENT_WORD:  # places in the text count from 1
                self._starts.setdefault(event.text_position - 1, event.audio_position / 1000)
            index += 1
        return 0


@functools.cache
def _machine() -> _Machine:
    return _Machine()
