"""The spoken sentences and sounds that models learn from, made once and then mapped from disk.

A corpus is a folder: `speech.i16` (16 kHz, one utterance after the other), `speech.jsonl` (voice,
place, words with their times) and `<kind>.i16` (clips of CLIP_SECONDS from the training pool). Its
name holds a hash of what made it, so another grammar or generator makes another corpus.
"""

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from train import sentences, sounds, speech
from train.sounds import KINDS, Kind
from train.speech import RATE_HZ, Samples, Spoken, Word

UTTERANCES, CLIPS = 20_000, 400  # of each kind
CLIP_SECONDS = 8
CLIP_LEVEL = 0.1  # root mean square of a stored clip: its peaks fit into 16 bits
_SOURCES = ("sentences.py", "sounds.py", "speech.py")


@dataclass(frozen=True)
class Corpus:
    """A corpus that was opened. Utterances and clips are read from the maps when they are asked."""

    speech: NDArray[np.int16]
    index: tuple[dict[str, Any], ...]
    sounds: dict[str, NDArray[np.int16]]  # by kind: [clips, samples]

    def utterance(self, number: int) -> Spoken:
        """Utterance `number` of `len(index)`."""
        entry = self.index[number]
        samples = self.speech[entry["first"] : entry["first"] + entry["count"]]
        words = tuple(Word(*word) for word in entry["words"])
        return Spoken(_float(samples), RATE_HZ, words)

    def sound(
        self, rng: np.random.Generator, count: int, kinds: tuple[Kind, ...] = KINDS
    ) -> Samples:
        """`count` samples of one of `kinds`, from a place of its own; root mean square about 1."""
        kind = kinds[rng.integers(len(kinds))]
        clip = self.sounds[kind][rng.integers(len(self.sounds[kind]))]
        first = rng.integers(len(clip))
        return _float(np.take(clip, np.arange(first, first + count), mode="wrap")) / CLIP_LEVEL


def open_or_make(
    work: Path, utterances: int = UTTERANCES, clips: int = CLIPS, seed: int = 0
) -> Corpus:
    """The corpus of `utterances` sentences and `clips` of each kind below `work`; made if it is not
    there, which takes 4 ms a sentence and 15 ms a clip.
    """
    folder = work / f"corpus-{utterances}-{clips}-{seed}-{identity()}"
    if not folder.exists():
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work) as scratch, Progress() as progress:
            new = Path(scratch) / "new"
            new.mkdir()
            _write_sounds(new, clips, progress)
            _write_speech(new, utterances, seed, progress)
            new.rename(folder)
    return _open(folder)


def _open(folder: Path) -> Corpus:
    lines = (folder / "speech.jsonl").read_text(encoding="utf-8").splitlines()
    clips: dict[str, NDArray[np.int16]] = {
        kind: np.memmap(folder / f"{kind}.i16", np.int16, "r").reshape(-1, CLIP_SECONDS * RATE_HZ)
        for kind in KINDS
    }
    spoken = np.memmap(folder / "speech.i16", np.int16, "r")
    return Corpus(spoken, tuple(json.loads(line) for line in lines), clips)


def _write_sounds(folder: Path, clips: int, progress: Progress) -> None:
    for kind in KINDS:
        with (folder / f"{kind}.i16").open("wb") as file:
            for index in progress.track(range(clips), description=kind):
                clip = sounds.clip(kind, "train", index, CLIP_SECONDS) * CLIP_LEVEL
                file.write(_pcm(clip).tobytes())


def _write_speech(folder: Path, utterances: int, seed: int, progress: Progress) -> None:
    rng, first = np.random.default_rng(seed), 0
    with (folder / "speech.i16").open("wb") as audio, (folder / "speech.jsonl").open("w") as index:
        for _ in progress.track(range(utterances), description="speech"):
            voice = speech.draw_voice(rng)
            spoken = speech.say(sentences.draw(rng, "train").text, voice)
            words = [(word.text, word.start, word.end) for word in spoken.words]
            count = len(spoken.samples)
            entry = {"voice": voice.name, "first": first, "count": count, "words": words}
            index.write(json.dumps(entry) + "\n")
            audio.write(_pcm(spoken.samples).tobytes())
            first += count


def identity() -> str:
    """A hash of what makes sentences, speech and sounds."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()[:12]


def _pcm(samples: Samples) -> NDArray[np.int16]:
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)


def _float(samples: NDArray[np.int16]) -> Samples:
    return samples.astype(np.float32) / np.float32(32768)
