"""How often the language model finds what was said, from what the recogniser wrote down.

Example: python scripts/train analyst_heard --meetings 10
         python scripts/train analyst_heard --model .train/analyst.gguf --json

Meetings of 60 s, spoken by two voices that differ over sounds from the test pools, in sentences
that no model has learned from. They go through the transcription engine and then, as a job would,
through the template `actions`. Mistakes of recogniser, diarizer and language model all count.
Needs libespeak-ng.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from train import analyst_scores, listening, meetings, sentences, sounds
from train.meetings import Background, Meeting
from train.scores import Label, WordErrors, word_errors
from train.sentences import Sentence

SEED = 80_000  # no training draws from it
SECONDS, SNR_DB = 60.0, 15.0
Item = tuple[str, str, str]  # owner, task, due: in lower case, without punctuation


@dataclass
class Found:
    """Counts over some meetings; an item is right when owner, task and due are."""

    tasks: int = 0
    written: int = 0
    owner: int = 0
    task: int = 0
    due: int = 0
    items: int = 0

    def count(self, wanted: Sequence[Item], answer: Sequence[Item]) -> None:
        """Each wanted item against the answer's best of the same or of part of it."""
        self.tasks += len(wanted)
        self.written += len(answer)
        for item in wanted:
            alike = [other for other in answer if other[1] == item[1]]
            self.task += bool(alike)
            self.owner += any(other[0] == item[0] for other in alike)
            self.due += any(other[2] == item[2] for other in alike)
            self.items += item in answer


def main(arguments: list[str]) -> int:
    """Print the scores."""
    options = _parser().parse_args(arguments)
    spoken = [_meeting(index) for index in range(options.meetings)]
    errors, heard = WordErrors(0, 0), []
    with listening.opened(options.models, threads=options.threads) as engine:
        for said, meeting in track(spoken, "recognising", transient=True):
            written = listening.transcribe(engine, meeting.mixture, meeting.rate_hz, diarize=True)
            errors += word_errors(meeting.text, written.text)
            heard.append((_wanted(said, meeting, written.labels), written.transcript))
    model = options.model or options.models / "llm-demo" / "analyst-q8_0.gguf"
    found = Found()
    with analyst_scores.opened(model, threads=options.threads) as analyst:
        for wanted, transcript in track(heard, "analysing", transient=True):
            answer = analyst_scores.ask(analyst, "actions", transcript)
            found.count(
                wanted, [_item(action) for action in (answer or {"actions": []})["actions"]]
            )
    print(_told(found, errors, options.json))
    return 0


def _meeting(index: int) -> tuple[list[tuple[int, Sentence]], Meeting]:
    """What is said by whom, and the sound; the last sentences may not have fitted into it."""
    rng = np.random.default_rng([SEED, index])
    said = [(int(rng.integers(2)), sentences.draw(rng, "test")) for _ in range(int(SECONDS))]
    background = Background(sounds.KINDS, SNR_DB)
    return said, meetings.spoken(rng, said, SECONDS, meetings.two_voices(rng), background)


def _wanted(
    said: Sequence[tuple[int, Sentence]], meeting: Meeting, labels: Sequence[Label]
) -> list[Item]:
    """The tasks of what was spoken; who says "I" is known by the label that the transcript has."""
    label_of = _labels_of_people(meeting, labels)
    items = []
    for (speaker, sentence), _ in zip(said, meeting.turns, strict=False):
        if task := sentence.slot("task"):
            owner = sentence.slot("name") or label_of.get(speaker, "")
            items.append(_normalised(owner, task, sentence.slot("due")))
    return items


def _labels_of_people(meeting: Meeting, labels: Sequence[Label]) -> dict[int, str]:
    """For each person the label that most of their words have."""
    words: dict[int, Counter[str]] = {turn.speaker: Counter() for turn in meeting.turns}
    for turn in meeting.turns:
        for word in turn.words:
            middle = (word.start + word.end) / 2
            words[turn.speaker].update(
                label.speaker for label in labels if label.start <= middle <= label.end
            )
    return {person: found.most_common(1)[0][0] for person, found in words.items() if found}


def _item(action: dict[str, Any]) -> Item:
    return _normalised(action["owner"], action["task"], action["due"])


def _normalised(owner: str, task: str, due: str) -> Item:
    first, second, third = (sentences.normalised(part) for part in (owner, task, due))
    return first, second, third


def _told(found: Found, errors: WordErrors, as_json: bool) -> str:
    counts = asdict(found)
    shares = {
        name: round(100 * counts[name] / max(1, found.tasks), 1)
        for name in ("owner", "task", "due", "items")
    }
    shares["precision"] = round(100 * found.items / max(1, found.written), 1)
    shares["word_errors"] = round(100 * errors.rate, 1)
    if as_json:
        return json.dumps({"tasks": found.tasks, **shares})
    told = ", ".join(f"{name} {value} %" for name, value in shares.items())
    return f"{found.tasks} tasks: {told}"


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python scripts/train analyst_heard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--models", type=Path, default=listening.TRAINED, help="their folder")
    made.add_argument("--model", type=Path, help="another language model")
    made.add_argument("--meetings", type=int, default=10, help="of 60 s (%(default)s)")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--json", action="store_true")
    return made
