"""Measure the demonstration's speech models on recordings that nobody trained on.

    python scripts/train evaluate
    python scripts/train evaluate --json --recordings 1 --no-separation
    python scripts/train evaluate --demo

The sentences are held out by their hash, backgrounds come from the pools for tests, new voices are
in no training data. Every recording goes through the transcription engine as a job would; where
there is a separation model, what it makes of the loud ones does too. Columns: word errors over
words; mean and 90th percentile of how far the starts of recognised words are off; share of the
spoken time that has another speaker or none.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from coscheduler import audio
from coscheduler.engines.transcription.engine import TranscriptionEngine
from train import (
    demo_meeting,
    listening,
    meetings,
    scores,
    separator_restored,
    sounds,
    speech,
)
from train.meetings import Background, Meeting
from train.scores import WordErrors
from train.speech import Samples

SEED = 20_000  # no training draws from it
SECONDS = 60.0
LOUD_SNR_DB = 5.0
RATE_HZ = 16_000  # of the separation model
SILENCE = Background()
RECORDING = listening.TRAINED.parent / "planning.flac"


@dataclass(frozen=True)
class Case:
    """A kind of recording. `voices` None: two of the training voices that differ."""

    name: str
    background: Background = SILENCE
    voices: tuple[str, ...] | None = None
    separated: bool = False


@dataclass(frozen=True)
class Row:
    """What was measured of a case."""

    name: str
    words: int
    word_error_rate: float
    start_error_ms: float
    start_error_ms_p90: float
    speaker_error: float
    real_time_factor: float


def cases(with_separation: bool) -> Iterator[Case]:
    """All that is measured."""
    yield Case("clean, seen voices", voices=speech.TRAIN_VOICES[::4])
    yield Case("clean, new voices", voices=speech.NEW_VOICES)
    yield Case("meeting, 20 dB", Background(("noise", "music", "beeps"), 20.0))
    yield Case("meeting, new voices, 20 dB", Background(sounds.KINDS, 20.0), speech.NEW_VOICES[:2])
    for kind in sounds.KINDS:
        loud = Case(f"{kind}, {LOUD_SNR_DB:.0f} dB", Background((kind,), LOUD_SNR_DB))
        yield loud
        if with_separation:
            yield replace(loud, name=f"{loud.name}, separated", separated=True)


def main(arguments: list[str]) -> int:
    """Print a table, or JSON."""
    options = _parser().parse_args(arguments)
    if options.demo:
        return _show(options, [demo_row(options.models, options.compute_type, options.threads)])
    model = options.models / "sam-audio-demo"
    with_separation = model.exists() and not options.no_separation
    rows = []
    with listening.opened(options.models, options.compute_type, options.threads) as engine:
        for case in cases(with_separation):
            made = [recording(case, index) for index in range(options.recordings)]
            separate = _by_trained_part if options.fast_separation else _separated
            heard = [separate(one, model) if case.separated else one.mixture for one in made]
            rows.append(measured(engine, case.name, made, heard))
    return _show(options, rows)


def _show(options: argparse.Namespace, rows: list[Row]) -> int:
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        Console().print(_table(rows))
    return 0


def demo_row(models: Path, compute_type: str, threads: int) -> Row:
    """The demonstration's recording as it lies in the repository; needs no espeak-ng."""
    samples = audio.read_mono(RECORDING, speech.RATE_HZ)
    turns = demo_meeting.read_turns(RECORDING)
    made = Meeting(samples, np.zeros_like(samples), speech.RATE_HZ, (), turns)
    with listening.opened(models, compute_type, threads) as engine:
        return measured(engine, RECORDING.name, [made], [samples])


def recording(case: Case, index: int, seconds: float = SECONDS) -> Meeting:
    """Recording `index` of a case, at the rate that its first reader wants."""
    rng = np.random.default_rng([SEED, index])
    pair = meetings.two_voices(rng)
    voices = tuple(speech.draw_voice(rng, (name,)) for name in case.voices or ()) or pair
    rate_hz = RATE_HZ if case.separated else speech.RATE_HZ
    return meetings.make(rng, seconds, voices, case.background, rate_hz)


def measured(
    engine: TranscriptionEngine, name: str, made: list[Meeting], heard: list[Samples]
) -> Row:
    """Transcribe `heard` and count it against what was said in `made`."""
    errors, starts, speakers, started = WordErrors(0, 0), [], [], time.process_time()
    for one, samples in zip(made, heard, strict=True):
        written = listening.transcribe(engine, samples, one.rate_hz)
        errors += scores.word_errors(one.text, written.text)
        said = [word for turn in one.turns for word in turn.words]
        starts += scores.start_errors_ms(said, written.words)
        speakers.append(scores.speaker_error(one.turns, written.labels))
    seconds = sum(len(one.speech) / one.rate_hz for one in made)
    return Row(
        name,
        errors.words,
        round(errors.rate, 4),
        round(float(np.mean(starts)), 1) if starts else 0.0,
        round(float(np.percentile(starts, 90)), 1) if starts else 0.0,
        round(float(np.mean(speakers)), 4),
        round((time.process_time() - started) / seconds, 3),
    )


def _separated(one: Meeting, model: Path) -> Samples:
    """What the separation model makes of the prompt "speech"."""
    from coscheduler.separation import SamAudio  # it needs torch, and seconds

    with SamAudio.load(model) as separator:
        target: Samples = np.asarray(separator.separate(one.mixture, "speech").target, np.float32)
        return target.reshape(-1)


def _by_trained_part(one: Meeting, model: Path) -> Samples:
    """The same by one pass of what was trained, to which the engine's steps converge."""
    net, spread = separator_restored.restored(model)
    return separator_restored.speech_of(net, spread, one.mixture)


def _table(rows: list[Row]) -> Table:
    table = Table("recording", "words", "word errors", "start, ms", "p90, ms", "speaker", "CPU s/s")
    for row in rows:
        table.add_row(
            row.name,
            str(row.words),
            f"{100 * row.word_error_rate:.1f} %",
            f"{row.start_error_ms:.0f}",
            f"{row.start_error_ms_p90:.0f}",
            f"{100 * row.speaker_error:.1f} %",
            f"{row.real_time_factor:.2f}",
        )
    return table


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python scripts/train evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--models", type=Path, default=listening.TRAINED, help="their folder")
    made.add_argument("--demo", action="store_true", help="the demonstration's recording alone")
    made.add_argument("--recordings", type=int, default=3, help="of 60 s, of each kind")
    made.add_argument("--compute-type", choices=("float32", "int8"), default="float32")
    made.add_argument("--no-separation", action="store_true", help="transcribe the mixtures only")
    made.add_argument(
        "--fast-separation", action="store_true", help="one pass of the trained part, no engine"
    )
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--json", action="store_true", help="print JSON, for programs")
    return made
