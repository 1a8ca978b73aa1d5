"""The analysis engine: a GGUF model, a capped KV cache, answers as JSON.

A task in four steps: read the transcript and render the prompt; refuse it with numbers if it does
not fit the context; decode the prompt in chunks of `n_batch` tokens; draw the answer in slices of
32 tokens. The context is put back to its fresh state after every task, however the task ended.
"""

import ctypes
import json
import logging
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jsonschema

from coscheduler.config import AnalysisSettings, Settings
from coscheduler.core.model import (
    EngineDescription,
    EngineName,
    Line,
    LineBytes,
    Lines,
    Option,
    Segment,
)
from coscheduler.engines.analysis import catalogue, closing, dry_run, footprint, header, options
from coscheduler.engines.analysis import transcript as transcripts
from coscheduler.engines.analysis.chat import ChatFormat
from coscheduler.engines.base import OnProgress, OutputFile, Slice, StageResult, Task
from coscheduler.errors import EngineFault, Refused
from coscheduler.stages import AnalyzeParameters

if TYPE_CHECKING:
    from coscheduler.engines.analysis import native

log = logging.getLogger(__name__)

OUTPUT_NAME = "analysis.json"
CONTEXT_BYTES = {"cpu": 24 * 1024 * 1024, "cuda": 400 * 1024 * 1024}  # until it has been measured


@dataclass
class _Loaded:
    """What `load` holds. `context` is None only between closing one and opening the next."""

    option: Option
    choice: options.Choice
    model: "native.Model"
    chat: ChatFormat
    weights_bytes: int
    context: "native.Context | None" = None
    kv_bytes: int = 0
    compute_bytes: int = 0


@dataclass(frozen=True)
class _Request:
    """One task, ready to decode."""

    template: catalogue.Template
    language: str
    prompt: list[int]
    tokens_max: int
    seed: int
    is_empty: bool


@dataclass
class _Answer:
    """What was drawn so far. `finish`: "stop" when the model ended it, "length" when it was cut."""

    data: bytearray
    token_count: int = 0
    finish: str = "length"

    @property
    def text(self) -> str:
        """The bytes as text; a character cut in two is left out, damaged ones are replaced."""
        text = self.data.decode("utf-8", "replace")
        return text.rstrip("\ufffd") if self.finish == "length" else text


class AnalysisEngine:
    """Implements `coscheduler.engines.base.Engine` for the settings' `[analysis]` section."""

    name = EngineName.ANALYSIS

    def __init__(self, settings: Settings) -> None:
        """Raises Refused ENGINE_NOT_CONFIGURED without an `[analysis]` section."""
        if settings.analysis is None:
            raise Refused("ENGINE_NOT_CONFIGURED", "the config has no [analysis] section")
        self._settings: AnalysisSettings = settings.analysis
        self._device = settings.device
        self._journal: native.Journal | None = None
        self._loaded: _Loaded | None = None
        self._is_running = False

    # -- what it is

    def describe(self) -> EngineDescription:
        """Options from the GGUF header and llama.cpp's dry run; takes no device memory.

        Raises EngineFault MODEL_MISSING, MODEL_CORRUPT, MODEL_UNSUPPORTED, KV_CAP_TOO_SMALL or
        KV_TYPE_UNSUPPORTED.
        """
        settings, on_gpu = self._settings, self._device.device == "cuda"
        sizes_of = footprint.of(header.read(settings.model))
        choices = options.choices(sizes_of, settings, on_gpu)
        sizes = dry_run.measure(
            settings.model,
            [(choice.n_ctx, choice.kv_type) for choice in choices],
            settings.n_batch,
            self._device.threads,
        )
        return EngineDescription(
            engine=self.name,
            model=settings.model.name,
            options=tuple(
                options.option(choice, size, sizes_of, settings, self._device)
                for choice, size in zip(choices, sizes, strict=True)
            ),
            context_bytes=CONTEXT_BYTES[self._device.device],
            segments=(
                Segment("token_embd", sizes_of.embedding_bytes),
                *sizes_of.layers,
                Segment("output", sizes_of.output_bytes),
            ),
        )

    def held(self) -> Lines:
        """Bytes by line as llama.cpp announced them, on the device only."""
        loaded = self._loaded
        if loaded is None:
            return ()
        # On the CPU the compute buffer's pages exist from the first decode to the end of the task.
        has_workspace = self._device.device == "cuda" or self._is_running
        return (
            LineBytes(Line.WEIGHTS, loaded.weights_bytes),
            LineBytes(Line.KV_CACHE, loaded.kv_bytes),
            LineBytes(Line.WORKSPACE, loaded.compute_bytes if has_workspace else 0),
        )

    # -- its life

    def start(self) -> None:
        """Import llama.cpp and initialise it; on a GPU, take the device context.

        Raises EngineFault ENGINE_NOT_INSTALLED or GPU_UNSUPPORTED.
        """
        # GNU OpenMP spins at barriers: with another busy process a decode took 100 times longer.
        # It reads these once, when the library is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        os.environ.setdefault("GOMP_SPINCOUNT", "0")
        try:
            from coscheduler.engines.analysis import native
        except ImportError as error:
            raise EngineFault(
                "ENGINE_NOT_INSTALLED", f"install the extra 'analysis': {error}"
            ) from None
        self._journal = native.open_library()
        if self._device.device == "cuda":
            native.warm_up_gpu(self._device.index)
        _trim()  # what the imports freed must not shrink the figures of the first load

    def load(self, option: Option, on_progress: OnProgress) -> None:
        """Raises EngineFault MODEL_LOAD_FAILED or CONTEXT_FAILED; nothing is held then."""
        from coscheduler.engines.analysis import native

        journal = self._started()
        self.unload()
        choice = options.Choice.of(option)
        is_gpu = self._device.device == "cuda"
        spec = native.ModelSpec(
            self._settings.model,
            self._settings.use_mmap,
            self._device.index if is_gpu else None,
            choice.n_gpu_layers,
        )
        model = native.Model(spec, journal, _percent(on_progress))
        weights_bytes = self._on_device(journal.buffers("model"))
        try:
            chat = ChatFormat(
                model.chat_template(), model.bos_text, model.eos_text, model.control_texts()
            )
            self._loaded = _Loaded(option, choice, model, chat, weights_bytes)
            self._open_context()
        except BaseException:
            self._loaded = None
            model.close()
            _trim()
            raise

    def unload(self) -> None:
        """Free context and weights and hand the pages back."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        if loaded.context is not None:
            loaded.context.close()
        loaded.model.close()
        _trim()

    def _started(self) -> "native.Journal":
        if self._journal is None:
            raise RuntimeError("load before start")
        return self._journal

    def _open_context(self) -> None:
        """Make the context of the loaded option and note its sizes."""
        from coscheduler.engines.analysis import native

        loaded, journal = self._need_loaded(), self._started()
        spec = native.ContextSpec(
            loaded.choice.n_ctx,
            self._settings.n_batch,
            loaded.choice.kv_type,
            self._device.threads,
            offload=self._device.device == "cuda",
        )
        loaded.context = native.Context(loaded.model, spec, journal)
        caches = (journal.buffers("KV"), journal.buffers("RS"))  # attention, recurrent state
        loaded.kv_bytes = sum(self._on_device(buffers) for buffers in caches)
        loaded.compute_bytes = self._on_device(journal.buffers("compute"))

    def _renew_context(self) -> None:
        """Back to the state after `load`.

        On the CPU only a new context gives the touched pages of the compute buffer back; it costs
        the zeroing of the KV cache. On a GPU the buffers are there from the start, zeroing is
        enough.
        """
        loaded = self._need_loaded()
        self._is_running = False
        if loaded.context is None:
            return
        if self._device.device == "cuda":
            loaded.context.forget()
            return
        loaded.context.close()
        loaded.context = None
        _trim()
        self._open_context()

    def _on_device(self, buffers: dict[str, int]) -> int:
        """Sum of the buffers in device memory: on the CPU all that is not a mapped file."""
        if self._device.device == "cpu":
            return sum(size for name, size in buffers.items() if not name.endswith("_Mapped"))
        return sum(
            size
            for name, size in buffers.items()
            if name.startswith("CUDA") and not name.endswith("_Host")
        )

    def _need_loaded(self) -> _Loaded:
        if self._loaded is None:
            raise RuntimeError("nothing is loaded")
        return self._loaded

    # -- its work

    def slices(self, task: Task) -> Generator[Slice, None, StageResult]:
        """Answer one task; writes `analysis.json`.

        Raises InvalidInput TRANSCRIPT_INVALID / TEMPLATE_UNKNOWN, EngineFault TRANSCRIPT_TOO_LONG,
        OUTPUT_TRUNCATED, OUTPUT_INVALID or DECODE_FAILED.
        """
        loaded = self._need_loaded()
        if loaded.context is None:  # the last task ended in an error that took the context along
            self._open_context()
        request = self._request(task)
        total = len(request.prompt) + request.tokens_max
        answer = _Answer(bytearray())
        self._is_running = True
        try:
            for done in self._read_prompt(loaded, request):
                yield Slice(done, total, "reading the transcript")
            for _ in self._write_answer(loaded, request, answer):
                yield Slice(len(request.prompt) + answer.token_count, total, "writing")
        finally:
            self._renew_context()
        return self._result(task, request, answer)

    def _request(self, task: Task) -> _Request:
        loaded = self._need_loaded()
        parameters = AnalyzeParameters.model_validate(dict(task.parameters))
        template = catalogue.load(parameters.template or catalogue.CUSTOM)
        transcript = transcripts.read(task.input_path)
        text = loaded.chat.prompt(template.messages(transcript, parameters.prompt))
        add_special = not loaded.chat.starts_with_bos(text)
        prompt = loaded.model.tokenize(text, add_special=add_special, parse_special=True)
        self._check_fits(len(prompt), parameters.tokens_max, loaded.choice.n_ctx)
        return _Request(
            template,
            transcript.language,
            prompt,
            parameters.tokens_max,
            parameters.seed,
            is_empty=not transcript.turns,
        )

    def _check_fits(self, tokens: int, tokens_max: int, n_ctx: int) -> None:
        if tokens + tokens_max > n_ctx:
            raise EngineFault(
                "TRANSCRIPT_TOO_LONG",
                f"the prompt has {tokens} tokens and the answer may take {tokens_max}; "
                f"the context holds {n_ctx}",
                tokens=tokens,
                tokens_max=tokens_max,
                n_ctx=n_ctx,
            )

    def _read_prompt(self, loaded: _Loaded, request: _Request) -> Generator[int]:
        """Decode the prompt, one chunk for each `next`; yields the tokens done."""
        context = _open(loaded)
        for start in range(0, len(request.prompt), self._settings.n_batch):
            chunk = request.prompt[start : start + self._settings.n_batch]
            context.decode(chunk)
            yield start + len(chunk)

    def _write_answer(self, loaded: _Loaded, request: _Request, answer: _Answer) -> Generator[None]:
        """Draw tokens into `answer` until the model ends it or the limit is reached."""
        from coscheduler.engines.analysis import native

        template, context = request.template, _open(loaded)
        sampling = native.Sampling(
            template.temperature, template.top_k, template.top_p, request.seed
        )
        sampler = native.Sampler(loaded.model, sampling, template.grammar)
        try:
            while answer.token_count < request.tokens_max:
                token = sampler.sample(context)
                if loaded.model.is_end(token):
                    answer.finish = "stop"
                    return
                answer.data += loaded.model.piece(token)
                answer.token_count += 1
                context.decode([token])
                if answer.token_count % options.DECODE_TOKENS_PER_SLICE == 0:
                    yield
        finally:
            sampler.close()

    def _result(self, task: Task, request: _Request, answer: _Answer) -> StageResult:
        template = request.template
        document = {
            "template": template.name,
            "template_version": template.version,
            "language": request.language,
            "result": _value(template, answer, request.tokens_max),
            "tokens": {"prompt": len(request.prompt), "completion": answer.token_count},
            "finish": answer.finish,
        }
        text = json.dumps(document, ensure_ascii=False, indent=2) + "\n"
        (task.output_dir / OUTPUT_NAME).write_text(text, encoding="utf-8")
        return StageResult(
            files=(OutputFile("analysis", OUTPUT_NAME, "application/json"),),
            notes=tuple(_notes(request, answer)),
            numbers={
                "prompt_tokens": len(request.prompt),
                "completion_tokens": answer.token_count,
                "n_ctx": self._need_loaded().choice.n_ctx,
            },
        )


def _percent(on_progress: OnProgress) -> Callable[[float], None]:
    """Report each whole per cent once; llama.cpp calls back for every tensor."""
    reported = -1

    def on_fraction(fraction: float) -> None:
        nonlocal reported
        if int(fraction * 100) > reported:
            reported = int(fraction * 100)
            on_progress(reported, 100)

    return on_fraction


def _open(loaded: _Loaded) -> "native.Context":
    if loaded.context is None:
        raise RuntimeError("the context is closed")
    return loaded.context


def _value(template: catalogue.Template, answer: _Answer, tokens_max: int) -> Any:
    """The answer as JSON that the template's schema accepts."""
    if template.schema is None:
        return {"text": answer.text.strip()}
    if answer.finish == "length":
        value = closing.closed(answer.text, template.schema)
        if value is None:
            raise EngineFault(
                "OUTPUT_TRUNCATED",
                f"{tokens_max} tokens are too few for template {template.name!r}: nothing whole "
                "was written; raise tokens_max",
                tokens_max=tokens_max,
                completion_tokens=answer.token_count,
            )
        return value
    try:
        value = json.loads(answer.text)
        jsonschema.validate(value, template.schema)
    except (json.JSONDecodeError, jsonschema.ValidationError) as error:
        raise EngineFault(
            "OUTPUT_INVALID", f"the answer breaks the schema of {template.name!r}: {error}"
        ) from None
    return value


def _notes(request: _Request, answer: _Answer) -> Generator[str]:
    if answer.finish == "length":
        yield (
            f"The answer reached its limit of {request.tokens_max} tokens and was closed there; "
            "what was not whole is left out."
        )
    if request.is_empty:
        yield "The transcript holds no speech."


def _trim() -> None:
    """Hand freed pages back: the C allocator keeps them otherwise, and the meter counts them."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent outside glibc
    if trim is not None:
        trim(0)
