"""Make windows of speech as the separator leaves it, for the recogniser to learn from.

    python scripts/train separated --work .train
    python scripts/train separated --work .train --windows 200

Training sentences over sounds of the training pools at 0-15 dB, half of them noise, through the
trained part of the shipped separator with the prompt "speech". They are kept in parts below the
work folder; a run that was stopped goes on with the next part. 0.08 s of one thread a window.
"""

import argparse
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from train import corpus, separator_restored, training, windows
from train.speech import RATE_HZ, Samples, Word
from train.windows import Loudness, Window

MODEL = training.ROOT / "coscheduler" / "demo" / "trained" / "sam-audio-demo"
WINDOWS, PART = 3000, 50
SECONDS_MAX, SENTENCES = 6.4, 3
LOUDNESS = Loudness(0.9, (0.0, 15.0), ("noise", "noise", "beeps", "music"))


@dataclass(frozen=True)
class Pool:
    """Windows that were separated."""

    pieces: tuple[NDArray[np.int16], ...]
    said: tuple[tuple[tuple[Word, ...], ...], ...]

    def draw(self, rng: np.random.Generator) -> Window:
        """One of them, with a gain of its own."""
        number = int(rng.integers(len(self.pieces)))
        gain = 10 ** (rng.uniform(-6.0, 6.0) / 20) / 32768
        samples = self.pieces[number].astype(np.float32) * np.float32(gain)
        return Window(np.clip(samples, -1.0, 1.0), self.said[number])


def open_or_make(work: Path, data: corpus.Corpus, count: int = WINDOWS, seed: int = 0) -> Pool:
    """`count` windows below `work`, whole parts of PART; what is not there is made."""
    folder = work / f"separated-{seed}-{_identity()}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / f"{number:04}.npz" for number in range(-(-count // PART))]
    missing = [(number, path) for number, path in enumerate(parts) if not path.exists()]
    if missing:
        net, spread = separator_restored.restored(MODEL)
        for number, path in track(missing, "separated"):
            rng = np.random.default_rng([seed, number])
            drawn = [windows.draw(data, rng, SECONDS_MAX, SENTENCES, LOUDNESS) for _ in range(PART)]
            heard = [separator_restored.speech_of(net, spread, one.samples) for one in drawn]
            _write(path, drawn, heard)
    return _open(parts)


def _write(path: Path, drawn: list[Window], heard: list[Samples]) -> None:
    """One part, as a whole or not at all."""
    pcm = [np.clip(np.rint(one * 32768), -32768, 32767).astype(np.int16) for one in heard]
    said = [
        [[(word.text, word.start, word.end) for word in sentence] for sentence in one.sentences]
        for one in drawn
    ]
    counts = np.array([len(one) for one in pcm])
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        np.savez(file, pcm=np.concatenate(pcm), counts=counts, said=np.array(json.dumps(said)))
    new.replace(path)


def _open(parts: list[Path]) -> Pool:
    pieces: list[NDArray[np.int16]] = []
    said: list[tuple[tuple[Word, ...], ...]] = []
    for path in parts:
        with np.load(path, allow_pickle=False) as kept:
            pieces += np.split(kept["pcm"], np.cumsum(kept["counts"])[:-1])
            entries = json.loads(str(kept["said"]))
        said += [tuple(tuple(Word(*word) for word in line) for line in one) for one in entries]
    return Pool(tuple(pieces), tuple(said))


def _identity() -> str:
    """Of the separator and of what mixes: another one makes another pool."""
    weights = (MODEL / "checkpoint.pt").read_bytes()
    return hashlib.sha256(weights + corpus.identity().encode()).hexdigest()[:12]


def main(arguments: list[str]) -> int:
    """Make what is missing, and say how much there is."""
    made = argparse.ArgumentParser(
        prog="python scripts/train separated",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--work", type=Path, default=training.ROOT / ".train", help="where to")
    made.add_argument("--windows", type=int, default=WINDOWS, help="how many (%(default)s)")
    made.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    made.add_argument("--seed", type=int, default=0)
    options = made.parse_args(arguments)
    torch.set_num_threads(options.threads)
    data = corpus.open_or_make(options.work)
    pool = open_or_make(options.work, data, options.windows, options.seed)
    seconds = sum(len(piece) for piece in pool.pieces) / RATE_HZ
    print(f"{len(pool.pieces)} windows, {seconds / 3600:.2f} h")
    return 0
