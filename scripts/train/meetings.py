"""Meetings of two speakers: held-out sentences with pauses, and a background below them."""

from dataclasses import dataclass

import numpy as np

from train import sentences, sounds, speech
from train.sentences import Sentence, Split
from train.speech import Samples, Voice, Word

LEVEL = 0.1  # root mean square of every sentence
_FADE_SECONDS = 0.5


@dataclass(frozen=True)
class Turn:
    """A sentence of a meeting: who says it (0 or 1), and its words with their seconds in it."""

    speaker: int
    text: str
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Meeting:
    """Speech alone and the background alone, float32 [N] at `rate_hz`, and who says what when."""

    speech: Samples
    background: Samples
    rate_hz: int
    voices: tuple[Voice, ...]
    turns: tuple[Turn, ...]

    @property
    def mixture(self) -> Samples:
        """What a microphone hears."""
        clipped: Samples = np.clip(self.speech + self.background, -1.0, 1.0)
        return clipped

    @property
    def text(self) -> str:
        """All that is said."""
        return " ".join(turn.text for turn in self.turns)


@dataclass(frozen=True)
class Background:
    """Sounds of a pool in a row, each `snr_db` below the speech; none of them: silence."""

    kinds: tuple[sounds.Kind, ...] = ()
    snr_db: float = 20.0
    split: Split = "test"


def two_voices(
    rng: np.random.Generator, names: tuple[str, ...] = speech.TRAIN_VOICES
) -> tuple[Voice, Voice]:
    """A man and a woman, or whoever else among `names` differs in the voice's file."""
    first = speech.draw_voice(rng, names)
    while True:
        second = speech.draw_voice(rng, names)
        if second.name.partition("+")[2] != first.name.partition("+")[2]:
            return first, second


def make(
    rng: np.random.Generator,
    seconds: float,
    voices: tuple[Voice, ...],
    background: Background,
    rate_hz: int = speech.RATE_HZ,
) -> Meeting:
    """A meeting of held-out sentences, as many as fit into `seconds`."""
    said: list[tuple[int, Sentence]] = []
    speaker = 0
    for _ in range(int(seconds)):  # a sentence takes more than a second
        said.append((speaker, sentences.draw(rng, "test")))
        speaker = (speaker + int(rng.random() < 0.6)) % len(voices)
    return spoken(rng, said, seconds, voices, background, rate_hz)


def spoken(
    rng: np.random.Generator,
    said: list[tuple[int, Sentence]],
    seconds: float,
    voices: tuple[Voice, ...],
    background: Background,
    rate_hz: int = speech.RATE_HZ,
) -> Meeting:
    """A meeting of the given (speaker, sentence), up to the last that fits into `seconds`."""
    samples = np.zeros(round(seconds * rate_hz), np.float32)
    at, turns = rng.uniform(0.3, 0.6), []
    for speaker, sentence in said:
        one = speech.say(sentence.text, voices[speaker], rate_hz)
        first = round(at * rate_hz)
        if first + len(one.samples) > len(samples):
            break
        level = np.sqrt(np.mean(np.square(one.samples)))
        samples[first : first + len(one.samples)] = one.samples * np.float32(LEVEL / level)
        start = first / rate_hz
        words = tuple(Word(w.text, w.start + start, w.end + start) for w in one.words)
        turns.append(Turn(speaker, sentence.text, words))
        at = start + len(one.samples) / rate_hz + rng.uniform(0.25, 0.8)
    other = _background(rng, len(samples), background, rate_hz)
    return Meeting(samples, other, rate_hz, voices, tuple(turns))


def _background(
    rng: np.random.Generator, count: int, background: Background, rate_hz: int
) -> Samples:
    """The sounds one after the other, each over an equal part."""
    if not background.kinds:
        return np.zeros(count, np.float32)
    edges = np.linspace(0, count, len(background.kinds) + 1).astype(int)
    parts = []
    for kind, first, last in zip(background.kinds, edges[:-1], edges[1:], strict=True):
        index = int(rng.integers(2**31))
        part = sounds.clip(kind, background.split, index, (last - first) / rate_hz, rate_hz)
        parts.append(_faded(part, rate_hz))
    return np.concatenate(parts) * np.float32(LEVEL * 10 ** (-background.snr_db / 20))


def _faded(samples: Samples, rate_hz: int) -> Samples:
    rise = np.linspace(0.0, 1.0, int(_FADE_SECONDS * rate_hz), dtype=np.float32)
    samples[: len(rise)] *= rise
    samples[len(samples) - len(rise) :] *= rise[::-1]
    return samples
