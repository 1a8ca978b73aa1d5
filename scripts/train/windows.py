"""Windows of sound as a recogniser meets them: one to three sentences, or none, and a background.

Speech detection cuts a meeting into chunks of some seconds, now and then within a sentence, so a
window may begin or end between any two words, and may hold two speakers.
"""

from dataclasses import dataclass, replace

import numpy as np

from train import sounds
from train.corpus import Corpus
from train.speech import RATE_HZ, Samples, Spoken, Word

LEVEL = 0.1  # root mean square of speech before the gain
_GAIN_DB = (-14.0, 4.0)
_EMPTY_SHARE, _CUT_SHARE, _SPEED_SHARE = 0.04, 0.2, 0.5
_MARGIN_SECONDS = 0.03  # what speech detection leaves around speech


@dataclass(frozen=True)
class Loudness:
    """How often there is a background, how far below the speech in dB, and of which kinds: one
    that is named twice comes twice as often.
    """

    share: float = 0.6
    snr_db: tuple[float, float] = (0.0, 20.0)
    kinds: tuple[sounds.Kind, ...] = sounds.KINDS


LOUD = Loudness()


@dataclass(frozen=True)
class Window:
    """Sound, float32 [N] at 16 kHz, and what is said: sentences of words with their seconds."""

    samples: Samples
    sentences: tuple[tuple[Word, ...], ...]

    @property
    def words(self) -> tuple[Word, ...]:
        """All words in order."""
        return tuple(word for sentence in self.sentences for word in sentence)


def draw(
    corpus: Corpus,
    rng: np.random.Generator,
    seconds_max: float,
    sentences: int,
    loudness: Loudness = LOUD,
) -> Window:
    """A window of up to `seconds_max` and up to `sentences` sentences."""
    if rng.random() < _EMPTY_SHARE:
        return Window(_background(corpus, rng, rng.uniform(1.0, seconds_max)), ())
    window = _joined(corpus, rng, seconds_max, int(rng.integers(1, sentences + 1)))
    samples = window.samples
    if rng.random() < loudness.share:
        other = corpus.sound(rng, len(samples), loudness.kinds)
        samples = sounds.mixed(samples, other, rng.uniform(*loudness.snr_db))
    gain = np.float32(10 ** (rng.uniform(*_GAIN_DB) / 20))
    return replace(window, samples=np.clip(samples * gain, -1.0, 1.0))


def _background(corpus: Corpus, rng: np.random.Generator, seconds: float) -> Samples:
    count = round(seconds * RATE_HZ)
    return corpus.sound(rng, count) * np.float32(10 ** rng.uniform(-3.0, -1.0))


def _joined(corpus: Corpus, rng: np.random.Generator, seconds_max: float, sentences: int) -> Window:
    """Sentences one after the other with pauses, as many of them as fit; at least one."""
    pieces: list[Samples] = []
    said: list[tuple[Word, ...]] = []
    at = 0
    for number in range(sentences):
        spoken = _spoken(corpus, rng)
        silence = _silence(rng.uniform(0.0, 0.4) if number == 0 else rng.uniform(0.15, 0.9))
        count = len(silence) + len(spoken.samples)
        if number and at + count > seconds_max * RATE_HZ:
            break
        pieces += [silence, spoken.samples]
        said.append(_moved(spoken.words, (at + len(silence)) / RATE_HZ))
        at += count
    pieces.append(_silence(rng.uniform(0.0, 0.4)))
    return Window(np.concatenate(pieces), tuple(said))


def _spoken(corpus: Corpus, rng: np.random.Generator) -> Spoken:
    spoken = corpus.utterance(int(rng.integers(len(corpus.index))))
    if rng.random() < _CUT_SHARE:
        spoken = _cut(spoken, rng)
    if rng.random() < _SPEED_SHARE:
        spoken = _stretched(spoken, rng.uniform(0.88, 1.14))
    level = float(np.sqrt(np.mean(np.square(spoken.samples)))) + 1e-6
    return replace(spoken, samples=spoken.samples * np.float32(LEVEL / level))


def _cut(spoken: Spoken, rng: np.random.Generator) -> Spoken:
    """Some words of a sentence that follow each other."""
    first = int(rng.integers(len(spoken.words)))
    last = int(rng.integers(first, len(spoken.words)))
    words = spoken.words
    while first > 0 and words[first].start == words[first - 1].start:
        first -= 1  # "of the" is one
    while last + 1 < len(words) and words[last + 1].start == words[last].start:
        last += 1
    start = max(0.0, words[first].start - _MARGIN_SECONDS)
    end = words[last].end + _MARGIN_SECONDS
    samples = spoken.samples[int(start * RATE_HZ) : int(end * RATE_HZ)]
    return Spoken(samples, RATE_HZ, _moved(words[first : last + 1], -start))


def _stretched(spoken: Spoken, factor: float) -> Spoken:
    """As a tape that runs slower (factor above 1): longer, and lower in pitch and formants."""
    count = len(spoken.samples)
    places = np.arange(int(count * factor)) / factor
    samples = np.interp(places, np.arange(count), spoken.samples).astype(np.float32)
    words = tuple(Word(w.text, w.start * factor, w.end * factor) for w in spoken.words)
    return Spoken(samples, RATE_HZ, words)


def _moved(words: tuple[Word, ...], seconds: float) -> tuple[Word, ...]:
    return tuple(Word(w.text, max(0.0, w.start + seconds), w.end + seconds) for w in words)


def _silence(seconds: float) -> Samples:
    return np.zeros(int(seconds * RATE_HZ), np.float32)
