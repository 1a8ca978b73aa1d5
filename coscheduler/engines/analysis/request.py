"""What is asked of the model about a transcript: parameters, template, and prompts as tokens.

The text that a template calls `transcript` is one of five: all lines; the lines of one piece; the
answer so far and the next piece; notes of the oldest turns and the newest lines; or the answers
about several pieces, to be made one. So every template works for every length.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from coscheduler import stages
from coscheduler.engines.analysis import catalogue, citing
from coscheduler.engines.analysis import transcript as transcripts
from coscheduler.engines.analysis.answering import Call
from coscheduler.engines.analysis.catalogue import Template
from coscheduler.engines.analysis.chat import ChatFormat
from coscheduler.engines.analysis.native import Model
from coscheduler.engines.analysis.sampling import Sampling
from coscheduler.engines.analysis.transcript import Transcript, Turn
from coscheduler.engines.base import Task

COUNT_SLACK = 1.25  # counts of lines and of all lines together differ by less
SILENCE = "(no speech was recognised)"


@dataclass(frozen=True)
class Request:
    """One template asked about one transcript, on a model whose context holds `n_ctx` tokens; a
    call about one of many pieces takes at most `piece_size_max` of them.
    """

    parameters: stages.AnalyzeParameters
    template: Template
    variables: Mapping[str, str]
    transcript: Transcript
    model: Model
    chat: ChatFormat
    n_ctx: int
    piece_size_max: int

    @cached_property
    def _shared(self) -> list[int]:
        """The tokens with which every prompt begins, found by comparing two."""
        return _common(self.tokens("[1] A"), self.tokens("(Part"))

    @cached_property
    def room(self) -> int:
        """Tokens that are left in the context for what stands for the transcript and an answer."""
        return self.n_ctx - len(self.tokens("."))

    @property
    def tokens_max(self) -> int:
        """Most tokens of an answer; a template's own number takes at most half of the context."""
        return self.parameters.tokens_max or min(self.template.tokens_max, self.n_ctx // 2)

    @property
    def turns_max(self) -> int:
        """Most turns of one call: where each gets an item of its own, what the list may hold."""
        if not self.template.per_turn:
            return len(self.transcript.turns)
        assert self.template.schema is not None
        (part,) = self.template.schema["properties"].values()
        return int(part["maxItems"])

    @cached_property
    def _counts(self) -> dict[str, int]:
        return {}

    def count(self, text: str) -> int:
        """Tokens of a text within a prompt; texts are counted once, turns are asked for often."""
        if text not in self._counts:
            self._counts[text] = self._count(text)
        return self._counts[text]

    def may_fit(self) -> bool:
        """False when the transcript certainly does not fit one prompt. A prompt that is thrown
        away again would take as much memory as all the pieces after it.
        """
        turns = self.transcript.turns
        return sum(self.count(turn.line + "\n") for turn in turns) <= COUNT_SLACK * self.n_ctx

    def _count(self, text: str) -> int:
        safe = self.chat.defused(text)
        return len(self.model.tokenize(safe, add_special=False, parse_special=True))

    def tokens(self, text: str) -> list[int]:
        """The whole prompt with `text` in place of the transcript. Raises InvalidInput
        TEMPLATE_INVALID, EngineFault CHAT_TEMPLATE_INVALID.
        """
        language, own = self.transcript.language, self.parameters.prompt
        messages = self.template.messages(text, language, own, self.variables)
        prompt = self.chat.prompt(messages)
        add_special = not self.chat.starts_with_bos(prompt)
        return self.model.tokenize(prompt, add_special=add_special, parse_special=True)

    def call(self, text: str, schema: dict[str, Any] | None, tokens_max: int) -> Call:
        """Ask about `text`."""
        prompt, template = self.tokens(text), self.template
        seed = self.parameters.seed
        return Call(
            prompt=tuple(prompt),
            shared_count=len(_common(prompt[:-1], self._shared)),
            tokens_max=tokens_max,
            sampling=Sampling(template.temperature, template.top_k, template.top_p, seed),
            schema=schema,
        )

    def schema_for(self, turns: Sequence[Turn]) -> dict[str, Any] | None:
        """The template's schema for an answer about some turns."""
        schema = self.template.schema
        if schema is not None and self.template.per_turn:
            return citing.one_for_each(schema, len(turns))
        return self.schema_citing({turn.number for turn in turns})

    def schema_citing(self, numbers: Collection[int]) -> dict[str, Any] | None:
        """The template's schema for an answer that may cite the turns of these numbers."""
        schema = self.template.schema
        found: dict[str, Any] | None = schema and citing.narrowed(schema, numbers)
        return found


def of_task(
    task: Task, model: Model, chat: ChatFormat, n_ctx: int, piece_size_max: int | None = None
) -> Request:
    """Read what a task asks. Raises InvalidInput for bad parameters, templates or transcripts."""
    parameters = stages.parse(task.stage, dict(task.parameters))
    assert isinstance(parameters, stages.AnalyzeParameters)
    template = _template(parameters)
    return Request(
        parameters=parameters,
        template=template,
        variables=template.values(parameters.variables),
        transcript=transcripts.read(task.input_path, template.unit),
        model=model,
        chat=chat,
        n_ctx=n_ctx,
        piece_size_max=piece_size_max or n_ctx,
    )


def _template(parameters: stages.AnalyzeParameters) -> Template:
    if parameters.template_text:
        return catalogue.parse(catalogue.OWN, parameters.template_text)
    return catalogue.load(parameters.template or catalogue.CUSTOM)


def whole(turns: Sequence[Turn]) -> str:
    """All lines."""
    return transcripts.text_of(turns) or SILENCE


def part(number: int, count: int, turns: Sequence[Turn]) -> str:
    """One piece."""
    return f"(Part {number} of {count} of the transcript.)\n\n{whole(turns)}"


def next_part(number: int, count: int, so_far: Any, turns: Sequence[Turn]) -> str:
    """The answer so far, and the next piece."""
    return (
        f"(Part {number} of {count} of the transcript. This is the answer to the parts before:)\n\n"
        f"{compact(so_far)}\n\n(Answer anew, for all parts up to this one:)\n\n{whole(turns)}"
    )


def with_notes(notes: Any, turns: Sequence[Turn]) -> str:
    """Notes of the oldest turns, and the newest."""
    kept = "\n".join(
        f"- {note['text']} {''.join(f'[{number}]' for number in note['cites'])}"
        for note in notes["notes"]
    )
    then = f"\n\n(What was said then:)\n\n{whole(turns)}" if turns else ""
    return f"(Notes of what was said before:)\n\n{kept}{then}"


def to_merge(answers: Sequence[Any]) -> str:
    """The answers about several pieces in a row."""
    lines = "\n".join(compact(answer) for answer in answers)
    return (
        f"(The transcript is long. These are the answers about {len(answers)} parts of it, in "
        f"order. Make one answer about the whole of them, and cite as they do:)\n\n{lines}"
    )


def compact(value: Any) -> str:
    """JSON in as few characters as possible."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _common(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """The tokens with which both begin."""
    same: list[int] = []
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        same.append(one)
    return same
