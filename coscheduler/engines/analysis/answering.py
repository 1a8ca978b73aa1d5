"""Calls of the model: prompts in, answers out, in slices, several at once on one context.

Calls of one task share the beginning of their prompts, what a template says before the transcript.
It is decoded by itself; the chunks in which tokens are decoded are the same whether it was still in
the cache or not, and so are the answers.
"""

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jsonschema

from coscheduler.engines.analysis import closing
from coscheduler.engines.analysis import schema as schemas
from coscheduler.engines.analysis.native import Model
from coscheduler.engines.analysis.options import DECODE_TOKENS_PER_SLICE
from coscheduler.engines.analysis.sampling import Sampler, Sampling
from coscheduler.engines.analysis.sequences import Context
from coscheduler.engines.analysis.states import States
from coscheduler.errors import EngineFault


@dataclass(frozen=True)
class Call:
    """What is asked. `prompt` holds token ids, the first `shared_count` of which other calls of the
    task begin with too. Without a schema the answer is free text.
    """

    prompt: tuple[int, ...]
    shared_count: int
    tokens_max: int
    sampling: Sampling
    schema: dict[str, Any] | None

    @property
    def size(self) -> int:
        """Tokens that the context must hold at most."""
        return len(self.prompt) + self.tokens_max

    @property
    def shared(self) -> tuple[int, ...]:
        """The beginning that other calls have too."""
        return self.prompt[: self.shared_count]


@dataclass
class Answer:
    """What was drawn so far. `finish`: "stop" when the model ended it, "length" when it was cut."""

    data: bytearray = field(default_factory=bytearray)
    tokens: list[int] = field(default_factory=list)
    finish: str = "length"

    @property
    def token_count(self) -> int:
        """Tokens drawn."""
        return len(self.tokens)

    @property
    def text(self) -> str:
        """The bytes as text; a character cut in two is left out, damaged ones are replaced."""
        text = self.data.decode("utf-8", "replace")
        return text.rstrip("\ufffd") if self.finish == "length" else text

    def value(self, schema: dict[str, Any] | None) -> Any | None:
        """The answer as JSON that the schema accepts; None when it was cut before anything whole.

        Raises EngineFault OUTPUT_INVALID.
        """
        if schema is None:
            return {"text": self.text.strip()}
        if self.finish == "length":
            return closing.closed(self.text, schema)
        try:
            value = json.loads(self.text)
            jsonschema.validate(value, schema)
        except (json.JSONDecodeError, jsonschema.ValidationError) as error:
            raise EngineFault("OUTPUT_INVALID", f"the answer breaks its schema: {error}") from None
        return value


class Drawing:
    """One call in one sequence of a context: first its prompt is read, then the answer is drawn.

    The sequence holds the first `held` tokens of prompt and answer already. An answer that has
    tokens is gone on with.
    """

    def __init__(
        self, model: Model, context: Context, call: Call, answer: Answer, sequence: int, held: int
    ) -> None:
        """Raises EngineFault GRAMMAR_INVALID, SCHEMA_UNSUPPORTED."""
        self.call = call
        self.answer = answer
        self.sequence = sequence
        self.held = held
        self.is_done = False
        self._model = model
        self._context = context
        grammar = schemas.grammar(call.schema) if call.schema is not None else None
        self._sampler = Sampler(model, call.sampling, grammar, answer.tokens)

    def close(self) -> None:
        """Free the sampler; nothing is drawn any more."""
        self.is_done = True
        self._sampler.close()

    @property
    def known(self) -> tuple[int, ...]:
        """Prompt and answer; all of it but the newest token is in the cache while it is written."""
        return (*self.call.prompt, *self.answer.tokens)

    @property
    def is_reading(self) -> bool:
        """Whether the prompt, or an answer that is gone on with, is not in the cache yet."""
        return self.held < len(self.call.prompt) + max(0, len(self.answer.tokens) - 1)

    @property
    def done(self) -> int:
        """Tokens read and drawn."""
        return self.held if self.is_reading else len(self.call.prompt) + self.answer.token_count

    def read(self, n_batch: int) -> None:
        """Decode the next chunk, none across the end of what is shared or of the prompt; behind
        the last one, draw.
        """
        ends = (self.call.shared_count, len(self.call.prompt), len(self.known))
        end = min(next(end for end in ends if end > self.held), self.held + n_batch)
        self._context.decode(self.known[self.held : end], self.sequence)
        self.held = end
        if end == len(self.known):
            self.draw(-1)

    @property
    def newest(self) -> int:
        """The token that was drawn last, to be decoded next."""
        return self.answer.tokens[-1]

    def draw(self, row: int) -> None:
        """Draw the token that follows, by this row of logits."""
        token = self._sampler.sample(self._context, row)
        if self._model.is_end(token):
            self.answer.finish = "stop"
            self.close()
            return
        self.answer.data += self._model.piece(token)
        self.answer.tokens.append(token)
        if len(self.answer.tokens) >= self.call.tokens_max:
            self.close()


def no_report() -> None:
    """For those who want to know nothing within a slice."""


class Round:
    """Several drawings side by side; `slice` does a bit of each that is due."""

    def __init__(self, context: Context, n_batch: int) -> None:
        self._context = context
        self._n_batch = n_batch
        self._has_read = False

    def slice(self, drawings: Sequence[Drawing], on_token: Callable[[], None] = no_report) -> None:
        """One chunk of a prompt, or up to 32 tokens of every answer, in turns where both are due.

        Raises EngineFault DECODE_FAILED.
        """
        open_ones = [drawing for drawing in drawings if not drawing.is_done]
        readers = [drawing for drawing in open_ones if drawing.is_reading]
        writers = [drawing for drawing in open_ones if not drawing.is_reading]
        if readers and not (writers and self._has_read):
            self._has_read = True
            readers[0].read(self._n_batch)
            on_token()
        else:
            self._has_read = False
            self._write(writers, on_token)

    def _write(self, writers: Sequence[Drawing], on_token: Callable[[], None]) -> None:
        """The first answer ends its 32 tokens where others would have counted them too: slices
        depend on the place in the answer alone.
        """
        while open_ones := [drawing for drawing in writers if not drawing.is_done]:
            tokens = [drawing.newest for drawing in open_ones]
            self._context.decode_each(tokens, [drawing.sequence for drawing in open_ones])
            for row, drawing in enumerate(open_ones):
                drawing.held += 1
                drawing.draw(row)
            on_token()
            if open_ones[0].answer.token_count % DECODE_TOKENS_PER_SLICE == 0:
                return


@dataclass
class Attempt:
    """A call and its answer; one that is interrupted is saved under its key ("": it is not)."""

    call: Call
    answer: Answer = field(default_factory=Answer)
    key: str = ""


class Conversation:
    """Calls one after the other, or several at once, on a context that is theirs meanwhile."""

    def __init__(self, model: Model, context: Context, n_batch: int, states: States) -> None:
        self._model = model
        self._context = context
        self._n_batch = n_batch
        self._states = states
        self._shared: tuple[int, ...] = ()  # what sequence 0 begins with

    @property
    def sequence_count(self) -> int:
        """Calls that may be made side by side, as far as their sizes fit the context."""
        return self._context.sequence_count

    def answer(self, *attempts: Attempt) -> Generator[int]:
        """Draw each answer until the model ends it or its limit is reached. The prompts begin with
        the same shared tokens.

        Yields the number of tokens done, those of the prompts included, after each slice. What was
        drawn when the generator is closed is gone on with by the next call of the same attempts, to
        the same end. Raises EngineFault DECODE_FAILED, GRAMMAR_INVALID or SCHEMA_UNSUPPORTED.
        """
        held = self._resumed(attempts)
        if held is None:
            yield from self._read_shared(attempts[0].call.shared)
            held = self._spread(attempts)
        drawings: list[Drawing] = []
        try:
            for sequence, attempt in enumerate(attempts):
                call, answer = attempt.call, attempt.answer
                drawing = Drawing(
                    self._model, self._context, call, answer, sequence, held[sequence]
                )
                drawings.append(drawing)
            turns = Round(self._context, self._n_batch)
            while any(not drawing.is_done for drawing in drawings):
                turns.slice(drawings)
                yield sum(drawing.done for drawing in drawings)
        except GeneratorExit:
            self._save(attempts, drawings)
            raise
        finally:
            for drawing in drawings:
                drawing.close()

    def _save(self, attempts: Sequence[Attempt], drawings: Sequence[Drawing]) -> None:
        for attempt, drawing in zip(attempts, drawings, strict=True):
            if attempt.key:
                held = drawing.known[: drawing.held]
                self._states.save(self._context, drawing.sequence, attempt.key, held)

    def _resumed(self, attempts: Sequence[Attempt]) -> list[int] | None:
        """Bring all sequences back as they were when the attempts were interrupted; the number of
        tokens that each holds. None where that is not possible: then all begin anew.
        """
        known = [(*one.call.prompt, *one.answer.tokens) for one in attempts]
        found = [self._states.of(one.key, known[i]) for i, one in enumerate(attempts) if one.key]
        held: list[int] = []
        if len(found) == len(attempts) and all(found):
            self._shared = ()
            for sequence, state in enumerate(found):
                self._context.rewind(0, sequence)
                held.append(self._states.restore(state, self._context, sequence) if state else 0)
        for one in attempts:
            self._states.drop(one.key)
        if held and all(held):
            return held
        for one in attempts:
            one.answer.data.clear()
            one.answer.tokens.clear()
        return None

    def _read_shared(self, shared: tuple[int, ...]) -> Generator[int]:
        """Bring what all prompts begin with into sequence 0: it is there, or saved, or is read."""
        for sequence in range(1, self.sequence_count):
            self._context.rewind(0, sequence)
        done = len(shared) if shared == self._shared else 0
        if not self._context.rewind(done):
            done = self._restored(shared)
        self._shared = ()  # until it is known to be there
        was_missing = done < len(shared)
        while done < len(shared):
            chunk = shared[done : done + self._n_batch]
            self._context.decode(chunk)
            done += len(chunk)
            yield done
        if was_missing:
            self._states.save(self._context, 0, _key_of(shared), shared)
        self._shared = shared

    def _restored(self, shared: tuple[int, ...]) -> int:
        found = self._states.of(_key_of(shared), shared)
        if found is None or found.common_count < len(shared):
            return 0
        return self._states.restore(found, self._context, 0)

    def _spread(self, attempts: Sequence[Attempt]) -> list[int]:
        """Let every sequence begin with what is shared."""
        for sequence in range(1, len(attempts)):
            self._context.share(0, sequence)
        return [len(self._shared)] * len(attempts)


def _key_of(shared: Sequence[int]) -> str:
    return f"beginning:{list(shared)}"
