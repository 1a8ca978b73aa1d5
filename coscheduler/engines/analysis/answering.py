"""One call of the model: a prompt in, an answer out, in slices.

Calls of one task share the beginning of their prompts, what a template says before the transcript.
It is decoded by itself and stays in the KV cache from call to call; the chunks in which tokens are
decoded are the same whether it was still there or not, and so are the answers.
"""

import json
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import jsonschema

from coscheduler.engines.analysis import closing
from coscheduler.engines.analysis import schema as schemas
from coscheduler.engines.analysis.native import Context, Model
from coscheduler.engines.analysis.options import DECODE_TOKENS_PER_SLICE
from coscheduler.engines.analysis.sampling import Sampler, Sampling
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


@dataclass
class Answer:
    """What was drawn so far. `finish`: "stop" when the model ended it, "length" when it was cut."""

    data: bytearray = field(default_factory=bytearray)
    token_count: int = 0
    finish: str = "length"

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


class Conversation:
    """Calls one after the other on a context that belongs to nobody else meanwhile."""

    def __init__(self, model: Model, context: Context, n_batch: int) -> None:
        self._model = model
        self._context = context
        self._n_batch = n_batch
        self._shared: tuple[int, ...] = ()  # what the KV cache begins with

    def answer(self, call: Call, answer: Answer) -> Generator[int]:
        """Draw into `answer` until the model ends it or the limit is reached.

        Yields the number of tokens done, those of the prompt included, after each slice. Raises
        EngineFault DECODE_FAILED.
        """
        yield from self._read(call)
        for drawn in self._write(call, answer):
            yield len(call.prompt) + drawn

    def _read(self, call: Call) -> Generator[int]:
        """Decode the prompt in chunks of `n_batch`, none across the end of what is shared."""
        shared = call.prompt[: call.shared_count]
        done = len(shared) if shared == self._shared else 0
        if not self._context.rewind(done):
            done = 0
        self._shared = ()  # until it is known to be there
        while done < len(call.prompt):
            end = len(shared) if done < len(shared) else len(call.prompt)
            chunk = call.prompt[done : min(done + self._n_batch, end)]
            self._context.decode(chunk)
            done += len(chunk)
            if done >= len(shared):
                self._shared = shared
            yield done

    def _write(self, call: Call, answer: Answer) -> Generator[int]:
        """Draw under the grammar of the schema; yields the number of tokens, after each slice."""
        grammar = schemas.grammar(call.schema) if call.schema is not None else None
        sampler = Sampler(self._model, call.sampling, grammar)
        try:
            while answer.token_count < call.tokens_max:
                token = sampler.sample(self._context)
                if self._model.is_end(token):
                    answer.finish = "stop"
                    return
                answer.data += self._model.piece(token)
                answer.token_count += 1
                if answer.token_count < call.tokens_max:
                    self._context.decode([token])
                if answer.token_count % DECODE_TOKENS_PER_SLICE == 0:
                    yield answer.token_count
        finally:
            sampler.close()
