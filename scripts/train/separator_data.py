"""Mixtures for the separator: pools of latents, mixed anew for every batch.

The codec is linear, so a mixture's latents are the sum of its sources' latents: sounds are
synthesised and transformed once, and a training step only cuts, scales and adds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from train import sentences, sounds, speech
from train import separator_codec as codec

Split = Literal["train", "test"]
CLASSES = ("speech", *sounds.KINDS)
CLIP_SECONDS = 10.0
SNR_DB = (-3.0, 8.0)
GAIN_DB = (-14.0, 4.0)
KIND_SHARES = (0.3, 0.25, 0.45)  # of noise, beeps and music, the hardest one
SECOND_SOUND_SHARE, ABSENT_SHARE, SPEECH_SHARE = 0.15, 0.05, 0.65


@dataclass(frozen=True)
class Batch:
    """Latents, float32 [B, T, bands]: a mixture and what of it is asked for by `classes` [B]."""

    mixture: Tensor
    target: Tensor
    classes: Tensor

    def to(self, device: str) -> "Batch":
        """The batch on a device."""
        return Batch(self.mixture.to(device), self.target.to(device), self.classes.to(device))


class Pools:
    """Coefficients of long recordings by class, float16 [frames, bands]."""

    def __init__(self, by_class: dict[str, Tensor]) -> None:
        self._by_class = by_class

    @classmethod
    def load(cls, path: Path, seed: int, sentence_count: int, clip_count: int) -> "Pools":
        """From `path`, where an earlier call with the same numbers left it; else made anew."""
        key = {"seed": seed, "sentences": sentence_count, "clips": clip_count}
        if path.exists():
            kept = torch.load(path, weights_only=True)
            if kept["key"] == key:
                return cls(kept["pools"])
        pools = {"speech": _speech(seed, sentence_count)}
        pools |= {kind: _sounds(kind, clip_count) for kind in sounds.KINDS}
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"key": key, "pools": pools}, path)
        return cls(pools)

    def spread(self) -> Tensor:
        """Standard deviation of each band of speech, float32 [bands]."""
        return self._by_class["speech"].float().std(dim=0)

    def batch(self, rng: np.random.Generator, rows: int, frames: int) -> Batch:
        """`rows` mixtures of speech and another sound, or two."""
        drawn = [self._mixture(rng, frames) for _ in range(rows)]
        return Batch(
            torch.stack([mixture for mixture, _, _ in drawn]),
            torch.stack([target for _, target, _ in drawn]),
            torch.tensor([number for _, _, number in drawn]),
        )

    def _mixture(self, rng: np.random.Generator, frames: int) -> tuple[Tensor, Tensor, int]:
        order = rng.choice(len(sounds.KINDS), len(sounds.KINDS), replace=False, p=KIND_SHARES)
        kinds = [sounds.KINDS[index] for index in order]
        count = 2 if rng.random() < SECOND_SOUND_SHARE else 1
        voice = self._crop("speech", rng, frames)
        sources = {"speech": voice}
        for kind in kinds[:count]:
            snr = rng.uniform(*SNR_DB) + 3 * (count - 1)
            sources[kind] = _at_level(self._crop(kind, rng, frames), voice, -snr)
        mixture = torch.stack(list(sources.values())).sum(0)
        draw = rng.random()
        wanted = "speech" if draw < SPEECH_SHARE else kinds[0]
        if draw > 1 - ABSENT_SHARE:
            wanted = kinds[2]
        target = sources.get(wanted, torch.zeros_like(mixture))
        gain = 10 ** (rng.uniform(*GAIN_DB) / 20)
        return mixture * gain, target * gain, CLASSES.index(wanted)

    def _crop(self, name: str, rng: np.random.Generator, frames: int) -> Tensor:
        pool = self._by_class[name]
        while True:
            start = int(rng.integers(len(pool) - frames))
            piece = pool[start : start + frames].float()
            if float(piece.square().mean()) > 1e-6:
                return piece * float(rng.choice((-1.0, 1.0)))


def _at_level(piece: Tensor, reference: Tensor, level_db: float) -> Tensor:
    """`piece` scaled to lie `level_db` above the reference's energy."""
    ratio = reference.square().sum() / piece.square().sum().clamp(min=1e-9)
    return piece * (ratio.sqrt() * 10 ** (level_db / 20))


def _speech(seed: int, count: int) -> Tensor:
    """Training sentences one after the other in changing voices, with pauses between them."""
    rng = np.random.default_rng(seed)
    pieces = []
    for _ in range(count):
        spoken = speech.say(sentences.draw(rng, "train").text, speech.draw_voice(rng))
        pause = np.zeros(int(rng.uniform(0.0, 0.5) * codec.RATE_HZ), np.float32)
        samples = spoken.samples * np.float32(10 ** (rng.uniform(-4, 4) / 20))
        pieces.append(codec.analyse(np.concatenate((samples, pause))).half())
    return torch.cat(pieces)


def _sounds(kind: sounds.Kind, count: int) -> Tensor:
    # Levels are set at mixing; as loud as speech, the numbers suit float16.
    clips = (sounds.clip(kind, "train", index, CLIP_SECONDS) for index in range(count))
    return torch.cat([codec.analyse(np.float32(0.1) * clip).half() for clip in clips])


@dataclass(frozen=True)
class Example:
    """A held-out mixture and its speech, samples float32 [N], and how it was made."""

    mixture: sounds.Samples
    target: sounds.Samples
    kind: str
    snr_db: float
    new_voice: bool

    @property
    def interference(self) -> sounds.Samples:
        """What is not speech."""
        return self.mixture - self.target


def examples(seed: int, per_case: int, seconds: float = 5.0) -> list[Example]:
    """Held-out sentences over held-out sounds at 0, 2.5 and 5 dB; every other one in a voice that
    no training had.
    """
    rng = np.random.default_rng((seed, 77))
    made: list[Example] = []
    for kind in sounds.KINDS:
        for snr_db in (0.0, 2.5, 5.0):
            for _ in range(per_case):
                new = len(made) % 2 == 1
                voice = _held_out_speech(rng, seconds, new)
                other = sounds.clip(kind, "test", int(rng.integers(1 << 30)), seconds)
                mixture = sounds.mixed(voice, other, snr_db)
                peak = np.float32(max(1.0, np.abs(mixture).max() / 0.9))
                made.append(Example(mixture / peak, voice / peak, kind, snr_db, new))
    return made


def _held_out_speech(rng: np.random.Generator, seconds: float, new: bool) -> sounds.Samples:
    names = speech.NEW_VOICES if new else speech.TRAIN_VOICES
    voice = speech.draw_voice(rng, names)
    count = round(seconds * codec.RATE_HZ)
    samples = np.zeros(0, np.float32)
    while len(samples) < count:
        spoken = speech.say(sentences.draw(rng, "test").text, voice).samples
        samples = np.concatenate((samples, spoken, np.zeros(4000, np.float32)))
    return samples[:count]
