"""What is said in the meetings: English sentences from a grammar of templates.

A sentence is a template with its slots filled. All of them are made from WORDS; which of them a
model may learn from is decided by a hash of the sentence alone (`split`), short ones included, so
that no held-out sentence stands in any training text, whatever the seeds.
"""

import functools
import hashlib
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "test"]
TEST_PERCENT = 10

NAMES = (
    "Anna", "Peter", "Maria", "David", "Laura", "Thomas", "Julia", "Martin", "Sarah", "Kevin",
    "Emma", "Oscar",
)  # fmt: skip
VERBS = (
    "send", "write", "review", "check", "update", "finish", "prepare", "print", "share", "copy",
    "sign", "order", "read", "test", "present", "find",
)  # fmt: skip
THINGS = (
    "report", "budget", "contract", "invoice", "survey", "proposal", "agenda", "schedule",
    "manual", "offer", "design", "website", "database", "plan", "software", "newsletter",
    "presentation", "summary", "form", "list",
)  # fmt: skip
GROUPS = ("customer", "supplier", "team", "bank", "office", "director", "lawyer", "factory")
WHOLE_TASKS = (
    "book the room", "book a flight", "fix the printer", "fix the server", "clean the kitchen",
    "call a taxi", "open the window", "close the account", "buy new chairs", "pay the rent",
    "train the new colleagues", "move the boxes", "cancel the order", "answer the questions",
    "take the notes", "organize the party", "hire a driver", "count the votes", "set up the camera",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
MONTHS = ("January", "March", "April", "June", "August", "October", "December")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "tenth", "twelfth")
NUMBERS = (
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "fifteen", "twenty", "thirty", "forty", "fifty",
)  # fmt: skip
QUALITIES = (
    "ready", "late", "expensive", "important", "difficult", "broken", "perfect", "wrong",
    "too long", "too slow", "much better", "almost done", "very simple", "not clear",
)  # fmt: skip
TOPICS = ("sales", "security", "marketing", "travel", "training", "safety", "holidays", "quality")
UNITS = ("hours", "days", "weeks", "months", "percent", "people")

WILL_BY = "I will {task} by {due}."
CAN_YOU_BY = "{name}, can you {task} by {due}?"
SOMEONE_WILL = "{name} will {task}."
TASK_TEMPLATES = (
    WILL_BY, WILL_BY, WILL_BY,
    CAN_YOU_BY, CAN_YOU_BY, CAN_YOU_BY,
    SOMEONE_WILL, SOMEONE_WILL,
    "I will {task}.",
    "{name}, can you {task}?",
    "{name} will {task} by {due}.",
)  # fmt: skip
TALK_TEMPLATES = (
    "Good morning {name}.",
    "Good afternoon {name}, how are you?",
    "Thank you {name}.",
    "Welcome to the {topic} meeting, {name}.",
    "Today we talk about {topic} and {topic}.",
    "Let us start with {topic}.",
    "The next topic is {topic}.",
    "The {thing} is {quality}.",
    "I think that the {thing} is {quality}.",
    "Why is the {thing} {quality}?",
    "The {group} says the {thing} is {quality}.",
    "The {thing} was {quality} last {day}.",
    "We have {number} new customers this week.",
    "We need {number} more {unit} for the {thing}.",
    "The {thing} costs {number} hundred dollars.",
    "The {thing} took {number} {unit}.",
    "The price went up by {number} percent.",
    "The price went down by {number} percent in {month}.",
    "The next meeting is on {day} at {number}.",
    "The meeting is in room {number}.",
    "We meet again on the {ordinal} of {month}.",
    "The {thing} starts on the {ordinal} of {month}.",
    "{name} is on holiday until {day}.",
    "{name} found a problem in the {thing}.",
    "Who has the {thing} for the {group}?",
    "Did you talk to the {group}, {name}?",
    "Yes, I talked to the {group} on {day}.",
    "No, the {group} wants another {thing}.",
    "We decided to keep the {thing}.",
    "We decided to change the {thing} in {month}.",
    "I agree with {name}.",
    "That is a good idea, {name}.",
    "Can everyone see the {thing}?",
    "The {group} was happy about the {thing}.",
    "There are {number} questions about the {thing}.",
    "Our goal is {number} percent in {month}.",
)  # fmt: skip
_SLOT = re.compile(r"\{(\w+)\}")
_TASK_SHAPES = ("{verb} the {thing}", "{verb} the {thing}", "{verb} the {thing} for the {group}",
                "call the {group}", "pay the {group}", "{whole}")  # fmt: skip
_DUE_SHAPES = ("{day}", "{day}", "{day}", "tomorrow", "tonight", "noon", "next week", "next {day}",
               "the end of {month}", "the {ordinal} of {month}")  # fmt: skip
_FILLERS = {
    "name": NAMES, "verb": VERBS, "thing": THINGS, "group": GROUPS, "whole": WHOLE_TASKS,
    "day": DAYS, "month": MONTHS, "ordinal": ORDINALS, "number": NUMBERS, "quality": QUALITIES,
    "topic": TOPICS, "unit": UNITS, "task": _TASK_SHAPES, "due": _DUE_SHAPES,
}  # fmt: skip


@dataclass(frozen=True)
class Sentence:
    """A sentence and what fills the outer slots of its template, in order; `template` says which.

    Task sentences have `task`, and where they are there, `name` and `due` without their prefix.
    """

    text: str
    template: str
    slots: tuple[tuple[str, str], ...]

    def slot(self, name: str) -> str:
        """The first filler of a slot; empty without one."""
        return dict(reversed(self.slots)).get(name, "")


def draw(
    rng: np.random.Generator, split: Split, templates: tuple[str, ...] | None = None
) -> Sentence:
    """A sentence of this split: of a task about half the time, or of the given templates."""
    while True:
        pool = templates or (TASK_TEMPLATES if rng.random() < 0.5 else TALK_TEMPLATES)
        sentence = _filled(pool[rng.integers(len(pool))], rng)
        if split_of(sentence.text) == split:
            return sentence


def split_of(text: str) -> Split:
    """Which split a sentence belongs to, by its words alone (case and punctuation aside)."""
    digest = hashlib.sha256(normalised(text).encode()).digest()
    return "test" if int.from_bytes(digest[:4], "big") % 100 < TEST_PERCENT else "train"


def normalised(text: str) -> str:
    """Lower case words with single spaces between them, as word errors are counted."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


@functools.cache
def words() -> tuple[str, ...]:
    """All distinct words that sentences are made of, sorted."""
    fillers = [text for pool in _FILLERS.values() for text in pool]
    texts = [_SLOT.sub(" ", text) for text in (*TASK_TEMPLATES, *TALK_TEMPLATES, *fillers)]
    return tuple(sorted({word for text in texts for word in normalised(text).split()}))


def _filled(template: str, rng: np.random.Generator) -> Sentence:
    slots: list[tuple[str, str]] = []

    def fill(match: re.Match[str]) -> str:
        slots.append((match[1], _text(match[1], rng)))
        return slots[-1][1]

    return Sentence(_SLOT.sub(fill, template), template, tuple(slots))


def _text(slot: str, rng: np.random.Generator) -> str:
    """A filler of `slot`, the slots within it filled as well."""
    pool = _FILLERS[slot]
    return _SLOT.sub(lambda match: _text(match[1], rng), pool[rng.integers(len(pool))])
