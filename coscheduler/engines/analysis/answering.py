"""One task in four steps.

1. Read the transcript, render the prompt and count it; refuse what does not fit, with the numbers.
2. Decode the prompt in chunks of `n_batch` tokens, a slice each.
3. Draw the answer in slices of 32 tokens, under the grammar of the template's schema.
4. Close it if it was cut at its limit, check it against the schema, write `analysis.json`.
"""

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import jsonschema

from coscheduler import stages
from coscheduler.engines.analysis import catalogue, closing
from coscheduler.engines.analysis import transcript as transcripts
from coscheduler.engines.analysis.chat import ChatFormat
from coscheduler.engines.analysis.native import Context, Model
from coscheduler.engines.analysis.options import DECODE_TOKENS_PER_SLICE
from coscheduler.engines.analysis.sampling import Sampler, Sampling
from coscheduler.engines.base import OutputFile, StageResult, Task
from coscheduler.errors import EngineFault

OUTPUT_NAME = "analysis.json"


@dataclass(frozen=True)
class Request:
    """One task, ready to decode. `prompt` holds token ids."""

    template: catalogue.Template
    language: str
    is_silent: bool
    prompt: list[int]
    tokens_max: int
    seed: int
    n_ctx: int


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


def request_for(task: Task, model: Model, chat: ChatFormat, n_ctx: int) -> Request:
    """Step 1. Raises InvalidInput for bad parameters or transcripts, EngineFault
    TRANSCRIPT_TOO_LONG.
    """
    parameters = stages.parse(task.stage, dict(task.parameters))
    assert isinstance(parameters, stages.AnalyzeParameters)
    template = catalogue.load(parameters.template or catalogue.CUSTOM)
    transcript = transcripts.read(task.input_path)
    text = chat.prompt(template.messages(transcript, parameters.prompt))
    add_special = not chat.starts_with_bos(text)
    prompt = model.tokenize(text, add_special=add_special, parse_special=True)
    _check_fits(len(prompt), parameters.tokens_max, n_ctx)
    return Request(
        template=template,
        language=transcript.language,
        is_silent=not transcript.turns,
        prompt=prompt,
        tokens_max=parameters.tokens_max,
        seed=parameters.seed,
        n_ctx=n_ctx,
    )


def _check_fits(tokens: int, tokens_max: int, n_ctx: int) -> None:
    if tokens + tokens_max > n_ctx:
        raise EngineFault(
            "TRANSCRIPT_TOO_LONG",
            f"the prompt has {tokens} tokens and the answer may take {tokens_max}; "
            f"the context holds {n_ctx}",
            tokens=tokens,
            tokens_max=tokens_max,
            n_ctx=n_ctx,
        )


def read_prompt(context: Context, request: Request, n_batch: int) -> Iterator[int]:
    """Step 2. Yields the number of tokens done, after each chunk."""
    for start in range(0, len(request.prompt), n_batch):
        chunk = request.prompt[start : start + n_batch]
        context.decode(chunk)
        yield start + len(chunk)


def write_answer(
    model: Model, context: Context, request: Request, answer: Answer
) -> Generator[int]:
    """Step 3. Draws into `answer` until the model ends it or the limit is reached; yields the
    number of tokens drawn, after each slice.
    """
    template = request.template
    sampling = Sampling(template.temperature, template.top_k, template.top_p, request.seed)
    sampler = Sampler(model, sampling, template.grammar)
    try:
        while answer.token_count < request.tokens_max:
            token = sampler.sample(context)
            if model.is_end(token):
                answer.finish = "stop"
                return
            answer.data += model.piece(token)
            answer.token_count += 1
            if answer.token_count < request.tokens_max:
                context.decode([token])
            if answer.token_count % DECODE_TOKENS_PER_SLICE == 0:
                yield answer.token_count
    finally:
        sampler.close()


def save(task: Task, request: Request, answer: Answer) -> StageResult:
    """Step 4. Raises EngineFault OUTPUT_TRUNCATED or OUTPUT_INVALID."""
    tokens = {"prompt": len(request.prompt), "completion": answer.token_count}
    document = {
        "template": request.template.name,
        "template_version": request.template.version,
        "language": request.language,
        "result": _value(request, answer),
        "tokens": tokens,
        "finish": answer.finish,
    }
    text = json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    (task.output_dir / OUTPUT_NAME).write_text(text, encoding="utf-8")
    return StageResult(
        files=(OutputFile("analysis", OUTPUT_NAME, "application/json"),),
        notes=tuple(_notes(request, answer)),
        numbers={f"{kind}_tokens": count for kind, count in tokens.items()}
        | {"n_ctx": request.n_ctx},
    )


def _value(request: Request, answer: Answer) -> Any:
    """The answer as JSON that the template's schema accepts."""
    schema = request.template.schema
    if schema is None:
        return {"text": answer.text.strip()}
    if answer.finish == "length":
        return _closed(request, answer, schema)
    try:
        value = json.loads(answer.text)
        jsonschema.validate(value, schema)
    except (json.JSONDecodeError, jsonschema.ValidationError) as error:
        raise EngineFault(
            "OUTPUT_INVALID",
            f"the answer breaks the schema of {request.template.name!r}: {error}",
        ) from None
    return value


def _closed(request: Request, answer: Answer, schema: dict[str, Any]) -> Any:
    value = closing.closed(answer.text, schema)
    if value is None:
        raise EngineFault(
            "OUTPUT_TRUNCATED",
            f"{request.tokens_max} tokens are too few for template {request.template.name!r}: "
            "nothing whole was written; raise tokens_max",
            tokens_max=request.tokens_max,
            completion_tokens=answer.token_count,
        )
    return value


def _notes(request: Request, answer: Answer) -> Iterator[str]:
    if answer.finish == "length":
        yield (
            f"The answer reached its limit of {request.tokens_max} tokens and was closed there; "
            "what was not whole is left out."
        )
    if request.is_silent:
        yield "The transcript holds no speech."
