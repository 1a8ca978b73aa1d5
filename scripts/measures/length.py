"""Memory and word times of a short and of a long recording: does the length matter?

Both are silence with the same clip of speech in it a few times, also across the joints of what is
read at once. The shipped models; speech is found by Silero.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from coscheduler import audio, config, demo
from coscheduler.core.model import Option, StageKind
from coscheduler.engines.base import Task
from coscheduler.engines.peak import PeakSampler
from coscheduler.engines.streaming import heap
from coscheduler.engines.transcription.engine import TranscriptionEngine
from coscheduler.procfs import anonymous_bytes

RATE_HZ = 16_000
CLIP = Path(demo.__file__).parent / "planning.flac"
TRAINED = Path(demo.__file__).parent / "trained"
BLOCK_SECONDS = 600
CLOSE_SECONDS = 0.1
Words = list[dict[str, Any]]


def main(arguments: list[str]) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/measure length", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--minutes", type=float, nargs="+", default=[10.0, 600.0])
    parser.add_argument("--clips", type=int, default=6, help="in each recording")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    heap.share_one_arena()
    engine = _engine(chosen.threads)
    option, base = engine.describe().options[0], anonymous_bytes(os.getpid())
    engine.load(option, lambda done, total: None)
    found = [_row(engine, option, base, minutes, chosen.clips) for minutes in chosen.minutes]
    for row in found:
        print(json.dumps(row) if chosen.json else _line(row))
    return 0


def _engine(threads: int) -> TranscriptionEngine:
    settings = config.parse(
        {
            "device": {"threads": threads},
            "store": {"data_dir": tempfile.gettempdir()},
            "transcription": {
                "model": str(TRAINED / "whisper-demo"),
                "aligners": {"en": str(TRAINED / "aligner-demo")},
                "batch_sizes": [1],
            },
        },
        base_dir=Path.cwd(),
    )
    engine = TranscriptionEngine(settings)
    engine.start()
    return engine


def _row(
    engine: TranscriptionEngine, option: Option, base: int, minutes: float, clip_count: int
) -> dict[str, Any]:
    """One recording: bytes above the context by phase, and the clips' words."""
    seconds = round(60 * minutes)
    clip = audio.read_mono(CLIP, RATE_HZ)
    starts = clip_starts(seconds, len(clip) / RATE_HZ, clip_count)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording.flac"
        _write(path, _blocks(clip, starts, seconds))
        begun = time.process_time()
        phases, words = _run(engine, path, Path(folder), 1000 * seconds, base)
    return {
        "minutes": minutes,
        "predicted_bytes": option.peak_bytes(1000 * seconds),
        "measured_bytes": max(phases.values()),
        "phases": phases,
        "cpu_s": round(time.process_time() - begun),
        **compared(words, starts, len(clip) / RATE_HZ),
    }


def _run(
    engine: TranscriptionEngine, path: Path, folder: Path, duration_ms: int, base: int
) -> tuple[dict[str, int], Words]:
    parameters = {"vad_method": "silero", "language": "en"}
    task = Task("jobs/m", StageKind.TRANSCRIBE, parameters, path, folder, duration_ms)
    phases: dict[str, int] = defaultdict(int)
    slices = engine.slices(task)
    while True:
        with PeakSampler() as peak:
            try:
                piece = next(slices)
            except StopIteration:
                break
        phases[piece.note] = max(phases[piece.note], peak.highest_bytes() - base)
    transcript = json.loads((folder / "transcript.json").read_text(encoding="utf-8"))
    return phases, transcript["word_segments"]


def clip_starts(seconds: int, clip_seconds: float, count: int) -> list[float]:
    """Evenly spread but for a third of a second, the first and the last within the recording."""
    step = (seconds - clip_seconds - 6) / max(1, count - 1)
    return [round(3 + index * step + 0.31 * (index % 3), 2) for index in range(count)]


def _blocks(clip: Any, starts: list[float], seconds: int) -> Iterator[Any]:
    """The recording in pieces: float32 at 16 kHz."""
    place = 0
    for start in [*starts, float(seconds)]:
        end = int(start * RATE_HZ)
        while place < end:
            size = min(BLOCK_SECONDS * RATE_HZ, end - place)
            yield np.zeros(size, np.float32)
            place += size
        if start < seconds:
            yield clip
            place += len(clip)


def _write(path: Path, blocks: Iterator[Any]) -> None:
    with av.open(str(path), "w", format="flac") as output:
        stream: Any = output.add_stream("flac", rate=RATE_HZ, layout="mono")
        place = 0
        for block in blocks:
            rows = (np.clip(block, -1, 1) * 32767).astype(np.int16)
            for first in range(0, len(rows), 10 * RATE_HZ):
                part = rows[first : first + 10 * RATE_HZ]
                frame = av.AudioFrame.from_ndarray(part[None], "s16", "mono")
                frame.sample_rate, frame.pts = RATE_HZ, place
                place += len(part)
                output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def compared(words: Words, starts: list[float], clip_seconds: float) -> dict[str, Any]:
    """Each clip's words against those of the first: the text, and times from the clip's start."""
    clips = [
        [(w["word"], w["start"] - start) for w in words if _is_in(w, start, clip_seconds)]
        for start in starts
    ]
    same = [clip for clip in clips if [w for w, _ in clip] == [w for w, _ in clips[0]]]
    apart = [
        abs(mine - first)
        for clip in same[1:]
        for (_, mine), (_, first) in zip(clip, clips[0], strict=True)
    ]
    return {
        "clips": len(starts),
        "clips_with_the_same_words": len(same),
        "words_in_a_clip": len(clips[0]),
        "words_elsewhere": len(words) - sum(map(len, clips)),
        "median_apart_s": round(statistics.median(apart), 3) if apart else None,
        "close_words": sum(value <= CLOSE_SECONDS for value in apart),
        "compared_words": len(apart),
    }


def _is_in(word: dict[str, Any], start: float, clip_seconds: float) -> bool:
    return "start" in word and start - 1 <= word["start"] < start + clip_seconds + 1


def _line(row: dict[str, Any]) -> str:
    """For people."""
    mib = 2**20
    return (
        f"{row['minutes']:g} min: predicted {row['predicted_bytes'] / mib:.1f} MiB, measured "
        f"{row['measured_bytes'] / mib:.1f} MiB; the same words in "
        f"{row['clips_with_the_same_words']} of {row['clips']} clips, {row['close_words']} of "
        f"{row['compared_words']} words within {CLOSE_SECONDS} s of the first clip's"
    )
