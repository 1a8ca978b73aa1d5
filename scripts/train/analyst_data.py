"""Meetings for the language model: transcripts as the engine shows them, and the right answers.

Every part of an answer that stands in the transcript is written with its place there, so that
training can say where to look. Words that no text has are put in the place of some, so that the
model learns to copy and not to choose from a list.
"""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from train import sentences
from train.sentences import Sentence, Split

ASKED = {
    "actions": "List the action items of this transcript.",
    "summary": "Summarise this transcript.",
}
ANSWER, BOS, END = "<|answer|>", "<|bos|>", "<|end|>"
INVENTED_SHARE, NOISE_SHARE = 0.3, 0.2
MISHEARD_RATE = 0.06  # of the words of tasks, dates and things in such a meeting
CITES_MAX, TOPICS_MAX, DECISIONS_MAX, POINTS_MAX = 3, 3, 2, 5
_DECIDED = re.compile(r"We decided to (?P<what>.+?)\.?$")
_POINTS = ("found a problem", "next meeting is", "meet again on", "The price went", "Our goal is")
_ONSETS = ("b", "br", "d", "dr", "f", "g", "gl", "k", "kr", "l", "m", "n", "p", "pl", "r", "s",
           "st", "t", "tr", "v", "w", "z")  # fmt: skip
_VOWELS, _CODAS = ("a", "e", "i", "o", "u", "ai", "oo"), ("", "n", "l", "r", "s", "x", "m", "k")

Span = tuple[int, int]  # of characters


@dataclass(frozen=True)
class Line:
    """One numbered line of a transcript. Spans count from the start of `text`."""

    number: int
    speaker: str
    text: str
    spans: tuple[tuple[Sentence, dict[str, Span]], ...]

    @property
    def head(self) -> str:
        """What stands before the text."""
        return f"[{self.number}] {self.speaker}: " if self.speaker else f"[{self.number}] "


@dataclass
class Document:
    """A prompt and its answer; `copies` pairs spans of the answer with spans of the prompt."""

    prompt: str
    answer: str
    copies: tuple[tuple[Span, Span], ...]

    @property
    def text(self) -> str:
        """All that the model sees in training."""
        return f"{BOS}{self.prompt}{ANSWER}{self.answer}{END}"


@dataclass
class _Writer:
    """Text that grows, and where its parts were copied from."""

    text: str = ""
    copies: list[tuple[Span, Span]] = field(default_factory=list)

    def put(self, text: str) -> None:
        self.text += text

    def copy(self, text: str, source: Span) -> None:
        """A JSON string's inside that stands in the prompt."""
        self.copies.append(((len(self.text), len(self.text) + len(text)), source))
        self.text += text


def document(
    rng: np.random.Generator, split: Split, kind: str, line_count: int, is_invented: bool = False
) -> Document:
    """A meeting of so many lines, asked for its actions or its summary."""
    lines = meeting(rng, split, line_count, is_invented)
    prompt, starts = _prompt(rng, kind, lines)
    writer = _Writer()
    (_write_actions if kind == "actions" else _write_summary)(writer, lines, starts)
    return Document(prompt, writer.text, tuple(writer.copies))


def meeting(
    rng: np.random.Generator,
    split: Split,
    line_count: int,
    is_invented: bool,
    noise_share: float = NOISE_SHARE,
) -> list[Line]:
    """The lines; speakers are labels, names, or not told apart. So many of all meetings have
    misheard words.
    """
    speakers = _speakers(rng, split if is_invented else None)
    other_words = _other_words(rng, split) if is_invented else {}
    first = int(rng.integers(300)) if rng.random() < 0.2 else 0
    noise = MISHEARD_RATE if rng.random() < noise_share else 0.0
    is_plain = rng.random() < 0.1
    return [
        _line(
            rng, split, first + index, speakers[rng.integers(len(speakers))], other_words, noise,
            is_plain,
        )
        for index in range(line_count)
    ]  # fmt: skip


def _speakers(rng: np.random.Generator, invented: Split | None) -> list[str]:
    count = int(rng.choice((2, 2, 2, 3, 4)))
    style = rng.random()
    if style < 0.5:
        return [f"SPEAKER_{index:02d}" for index in range(count)]
    if style < 0.65:
        return [""]
    names = list(rng.choice(sentences.NAMES, count, replace=False))
    if invented:
        names = [invented_word(rng, invented).capitalize() for _ in names]
    return [name.upper() for name in names] if style < 0.75 else names


def _other_words(rng: np.random.Generator, split: Split) -> dict[str, str]:
    """Invented words in the place of about half of the names and things, the same all along."""
    pool = (*sentences.NAMES, *sentences.THINGS, *sentences.GROUPS, *sentences.TOPICS)
    return {
        word: invented_word(rng, split).capitalize() if word[0].isupper() else
        invented_word(rng, split)
        for word in pool
        if rng.random() < 0.5
    }  # fmt: skip


def invented_word(rng: np.random.Generator, split: Split) -> str:
    """A word of two or three syllables; no word is of both splits."""
    while True:
        word = "".join(
            str(rng.choice(_ONSETS)) + str(rng.choice(_VOWELS)) + str(rng.choice(_CODAS))
            for _ in range(int(rng.integers(2, 4)))
        )
        if word not in sentences.words() and sentences.split_of(word) == split:
            return word


def _line(
    rng: np.random.Generator, split: Split, number: int, speaker: str,
    other_words: dict[str, str], noise: float, is_plain: bool,
) -> Line:  # fmt: skip
    text, spans = "", []
    for _ in range(int(rng.choice((1, 1, 1, 2)))):
        sentence = sentences.draw(rng, split)
        said, places = _said(rng, sentence, other_words, noise)
        if is_plain:
            said = said.replace("?", "").replace(".", "")
        start = len(text) + 1 if text else 0
        text = f"{text} {said}" if text else said
        moved = {name: (start + a, start + b) for name, (a, b) in places.items()}
        spans.append((sentence, moved))
    return Line(number, speaker, text, tuple(spans))


def _said(
    rng: np.random.Generator, sentence: Sentence, other_words: dict[str, str], noise: float
) -> tuple[str, dict[str, Span]]:
    """The sentence as it was written down, and where the fillers of its slots are in it."""
    parts = _parts(sentence)
    text, places = "", {}
    for part, slot in parts:
        changed = re.sub(r"\w+", lambda match: other_words.get(match[0], match[0]), part)
        if noise and slot in ("task", "due", "thing"):
            changed = _misheard(rng, changed, noise)
        if slot and slot not in places:
            places[slot] = (len(text), len(text) + len(changed))
        text += changed
    return text, places


def _parts(sentence: Sentence) -> list[tuple[str, str]]:
    """The template cut at its slots: (text, slot or "")."""
    pieces = re.split(r"\{(\w+)\}", sentence.template)
    fillers = iter(sentence.slots)
    parts: list[tuple[str, str]] = []
    for index, piece in enumerate(pieces):
        parts.append((next(fillers)[1], piece) if index % 2 else (piece, ""))
    return [(text, slot) for text, slot in parts if text]


def _misheard(rng: np.random.Generator, text: str, noise: float) -> str:
    """Some words taken for others, as a recogniser does."""
    words = sentences.words()
    return " ".join(
        words[rng.integers(len(words))] if rng.random() < noise else word
        for word in text.split(" ")
    )


def _prompt(
    rng: np.random.Generator, kind: str, lines: Sequence[Line]
) -> tuple[str, dict[int, int]]:
    """What the chat template makes of the engine's messages; where each line starts in it."""
    prompt = ASKED[kind] + "\n\n"
    if rng.random() < 0.08:
        count = int(rng.integers(2, 9))
        prompt += f"(Part {rng.integers(1, count + 1)} of {count} of the transcript.)\n\n"
    starts = {}
    for line in lines:
        starts[line.number] = len(prompt)
        prompt += line.head + line.text + "\n"
    return prompt.rstrip("\n") + "\n", starts


# ---- answers ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Action:
    """A task as it was given; spans are those of the prompt, None for what was not said."""

    owner: str
    task: str
    due: str
    number: int
    owner_at: Span | None
    task_at: Span
    due_at: Span | None
    number_at: Span


def actions_of(lines: Sequence[Line], starts: dict[int, int]) -> list[Action]:
    """All tasks that somebody took on or was given, in order."""
    return [
        _action(line, sentence.template, places, starts[line.number])
        for line in lines
        for sentence, places in line.spans
        if "task" in places
    ]


def _action(line: Line, template: str, places: dict[str, Span], start: int) -> Action:
    body = start + len(line.head)
    number_at = (start + 1, start + 1 + len(str(line.number)))
    speaker_at = (number_at[1] + 2, number_at[1] + 2 + len(line.speaker))

    def at(slot: str) -> Span | None:
        return (body + places[slot][0], body + places[slot][1]) if slot in places else None

    def text(slot: str) -> str:
        return line.text[slice(*places[slot])] if slot in places else ""

    by_speaker = template.startswith("I will")
    owner = line.speaker if by_speaker else text("name")
    owner_at = (speaker_at if line.speaker else None) if by_speaker else at("name")
    task_at = at("task")
    assert task_at is not None
    return Action(
        owner, text("task"), text("due"), line.number, owner_at, task_at, at("due"), number_at
    )


def _write_actions(writer: _Writer, lines: Sequence[Line], starts: dict[int, int]) -> None:
    writer.put('{"actions":[')
    for index, action in enumerate(actions_of(lines, starts)[:40]):
        writer.put('{"owner":"' if index == 0 else ',{"owner":"')
        _copy(writer, action.owner, action.owner_at)
        writer.put('","task":"')
        _copy(writer, action.task, action.task_at)
        writer.put('","due":"')
        _copy(writer, action.due, action.due_at)
        writer.put('","cites":[')
        _copy(writer, str(action.number), action.number_at)
        writer.put("]}")
    writer.put("]}")


def _copy(writer: _Writer, text: str, source: Span | None) -> None:
    if source is not None:
        writer.copy(text, source)


@dataclass(frozen=True)
class _Statement:
    """Text in parts, each with its place in the prompt or None; and the lines it rests on."""

    parts: tuple[tuple[str, Span | None], ...]
    numbers: tuple[tuple[str, Span], ...]


def summary_of(lines: Sequence[Line]) -> list[str]:
    """The statements of the right summary."""
    writer = _Writer()
    _write_summary(writer, lines, {line.number: 0 for line in lines})
    return [statement["text"] for statement in json.loads(writer.text)["summary"]]


def _write_summary(writer: _Writer, lines: Sequence[Line], starts: dict[int, int]) -> None:
    sentences_said = [
        *_topics(lines, starts),
        *_decisions(lines, starts)[:DECISIONS_MAX],
        *_first_task(lines, starts),
    ] or [_Statement((("Nothing was decided.", None),), (_number(lines[0], starts),))]  # fmt: skip
    writer.put('{"summary":[')
    _write_statements(writer, sentences_said)
    writer.put('],"key_points":[')
    _write_statements(writer, _points(lines, starts)[:POINTS_MAX])
    writer.put("]}")


def _write_statements(writer: _Writer, statements: Sequence[_Statement]) -> None:
    for index, statement in enumerate(statements):
        writer.put('{"text":"' if index == 0 else ',{"text":"')
        for text, source in statement.parts:
            if source is None:
                writer.put(text)
            else:
                writer.copy(text, source)
        writer.put('","cites":[')
        for place, (number, source) in enumerate(statement.numbers):
            writer.put("," if place else "")
            writer.copy(number, source)
        writer.put("]}")


def _number(line: Line, starts: dict[int, int]) -> tuple[str, Span]:
    start = starts[line.number] + 1
    return str(line.number), (start, start + len(str(line.number)))


def _topics(lines: Sequence[Line], starts: dict[int, int]) -> list[_Statement]:
    """What the meeting is about, in the order in which it was named."""
    found: dict[str, Span] = {}
    numbers: dict[str, tuple[str, Span]] = {}
    for line in lines:
        body = starts[line.number] + len(line.head)
        for match in re.finditer(_topic_pattern(), line.text):
            for group in match.re.groupindex:
                topic = match[group]
                if topic and topic not in found and len(found) < TOPICS_MAX:
                    found[topic] = (body + match.start(group), body + match.end(group))
                    numbers[str(line.number)] = _number(line, starts)
    if not found:
        return []
    parts: list[tuple[str, Span | None]] = [("The meeting is about ", None)]
    for index, (topic, at) in enumerate(found.items()):
        joint = "" if index == 0 else " and " if index == len(found) - 1 else ", "
        parts += [(joint, None), (topic, at)]
    parts.append((".", None))
    return [_Statement(tuple(part for part in parts if part[0]), tuple(numbers.values()))]


@functools.cache
def _topic_pattern() -> re.Pattern[str]:
    return re.compile(
        r"Welcome to the (?P<a>\w+) meeting|we talk about (?P<b>\w+) and (?P<c>\w+)"
        r"|Let us start with (?P<d>\w+)|The next topic is (?P<e>\w+)"
    )


def _decisions(lines: Sequence[Line], starts: dict[int, int]) -> list[_Statement]:
    found = []
    for line in lines:
        body = starts[line.number] + len(line.head)
        for said, at in _sentences_in(line):
            match = _DECIDED.match(said)
            if match:
                start = body + at + match.start("what")
                what = (match["what"], (start, start + len(match["what"])))
                parts = (("It was decided to ", None), what, (".", None))
                found.append(_Statement(parts, (_number(line, starts),)))
    return found


def _first_task(lines: Sequence[Line], starts: dict[int, int]) -> list[_Statement]:
    for action in actions_of(lines, starts):
        if action.owner_at is not None:
            task = (
                (action.owner, action.owner_at),
                (" will ", None),
                (action.task, action.task_at),
            )
            number = (str(action.number), action.number_at)
            return [_Statement((*task, (".", None)), (number,))]
    return []


def _points(lines: Sequence[Line], starts: dict[int, int]) -> list[_Statement]:
    """Sentences of note, word for word."""
    found = []
    for line in lines:
        body = starts[line.number] + len(line.head)
        for said, at in _sentences_in(line):
            if any(mark in said for mark in _POINTS):
                source = (body + at, body + at + len(said))
                found.append(_Statement(((said, source),), (_number(line, starts),)))
    return found


def _sentences_in(line: Line) -> list[tuple[str, int]]:
    """The sentences of a line and where they start; a line without full stops is one."""
    return [(match[0], match.start()) for match in re.finditer(r"[^ .?][^.?]*[.?]?", line.text)]


def check(document: Document) -> None:
    """Raises AssertionError for an answer that is not JSON or a copy that is not one."""
    json.loads(document.answer)
    for (a, b), (c, d) in document.copies:
        assert document.answer[a:b] == document.prompt[c:d], (document.answer[a:b], c, d)
