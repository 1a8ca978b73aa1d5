"""The analysis engine: a GGUF model, a capped KV cache, answers as JSON or in a conversation.

A task: read the transcript (`request.py`); if it does not fit the context, read it in pieces
(`reading.py`); each call decodes a prompt in chunks of `n_batch` tokens and draws an answer in
slices of 32 tokens (`answering.py`); write it with its citations (`result.py`). Conversations
(`chatting.py`) draw in the same way. The context, which is the KV cache, is there only while
something runs: between runs the engine holds the weights alone, and what is worth keeping of a
sequence is kept in files (`states.py`).
"""

import ctypes
import logging
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

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
from coscheduler.engines.analysis import options, survey
from coscheduler.engines.analysis.chat import ChatFormat
from coscheduler.engines.analysis.journal import Journal
from coscheduler.engines.base import Mailbox, OnProgress, Slice, StageResult, Task
from coscheduler.errors import EngineFault, Refused

if TYPE_CHECKING:
    from coscheduler.engines.analysis import native, sequences
    from coscheduler.engines.analysis.states import States

log = logging.getLogger(__name__)


@dataclass
class _Loaded:
    """What `load` holds."""

    option: Option
    choice: options.Choice
    model: "native.Model"
    chat: ChatFormat
    weights_bytes: int


@dataclass
class _Run:
    """What a run holds beside it."""

    context: "sequences.Context"
    kv_bytes: int
    compute_bytes: int


class AnalysisEngine:
    """Implements `coscheduler.engines.base.Engine` for the settings' `[analysis]` section."""

    name = EngineName.ANALYSIS

    def __init__(self, settings: Settings) -> None:
        """Raises Refused ENGINE_NOT_CONFIGURED without an `[analysis]` section."""
        if settings.analysis is None:
            raise Refused("ENGINE_NOT_CONFIGURED", "the config has no [analysis] section")
        self._settings: AnalysisSettings = settings.analysis
        self._device = settings.device
        self._journal: Journal | None = None
        self._loaded: _Loaded | None = None
        self._run: _Run | None = None

    # -- what it is

    def describe(self) -> EngineDescription:
        """Options from the GGUF header and llama.cpp's dry run; takes no device memory.

        Raises EngineFault MODEL_MISSING, MODEL_CORRUPT, MODEL_UNSUPPORTED, KV_CAP_TOO_SMALL or
        KV_TYPE_UNSUPPORTED.
        """
        settings = self._settings
        known = survey.options_of(settings, self._device)
        return EngineDescription(
            engine=self.name,
            model=settings.model.name,
            options=tuple(
                options.option(choice, size, known.model, settings, self._device)
                for choice, size in known.found
            ),
            context_bytes=options.CONTEXT_BYTES[self._device.device],
            segments=(
                Segment("token_embd", known.model.embedding_bytes),
                *known.model.layers,
                Segment("output", known.model.output_bytes),
            ),
            survey_bytes=known.peak_bytes,
        )

    def held(self) -> Lines:
        """Bytes by line as llama.cpp announced them, on the device only."""
        loaded = self._loaded
        if loaded is None:
            return ()
        run = self._run
        return (
            LineBytes(Line.WEIGHTS, loaded.weights_bytes),
            LineBytes(Line.KV_CACHE, run.kv_bytes if run else 0),
            LineBytes(Line.WORKSPACE, run.compute_bytes if run else 0),
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
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an abort would start a debugger and wait
        try:
            from coscheduler.engines.analysis import library
        except ImportError as error:
            raise EngineFault(
                "ENGINE_NOT_INSTALLED", f"install the extra 'analysis': {error}"
            ) from None
        self._journal = library.open_library()
        if self._device.device == "cuda":
            library.warm_up_gpu(self._device.index)
        _trim()  # what the imports freed must not shrink the figures of the first load

    def load(self, option: Option, on_progress: OnProgress) -> None:
        """Raises EngineFault MODEL_LOAD_FAILED; nothing is held then."""
        from coscheduler.engines.analysis import native

        journal = self._started()
        self.unload()
        choice = options.Choice.of(option)
        is_gpu = self._device.device == "cuda"
        spec = native.ModelSpec(
            self._settings.model,
            choice.is_mapped,
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
        except BaseException:
            model.close()
            _trim()
            raise

    def switch(self, option: Option) -> None:
        """Run with another context from now on."""
        loaded, choice = self._need_loaded(), options.Choice.of(option)
        assert choice.base == loaded.choice.base
        loaded.option, loaded.choice = option, choice

    def unload(self) -> None:
        """Free the weights and hand the pages back."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.model.close()
            _trim()

    def _started(self) -> "Journal":
        if self._journal is None:
            raise RuntimeError("load before start")
        return self._journal

    @contextmanager
    def _context(self) -> "Iterator[sequences.Context]":
        """The KV cache and the compute buffers, for as long as the block lasts.

        Raises EngineFault CONTEXT_FAILED.
        """
        from coscheduler.engines.analysis import sequences

        loaded, journal = self._need_loaded(), self._started()
        context = sequences.Context(loaded.model, self._context_spec(), journal)
        caches = (journal.buffers("KV"), journal.buffers("RS"))  # attention, recurrent state
        self._run = _Run(
            context,
            sum(self._on_device(buffers) for buffers in caches),
            self._on_device(journal.buffers("compute")),
        )
        try:
            yield context
        finally:
            self._run = None
            context.close()
            _trim()

    def _context_spec(self) -> "sequences.ContextSpec":
        from coscheduler.engines.analysis import sequences

        choice = self._need_loaded().choice
        return sequences.ContextSpec(
            choice.n_ctx,
            choice.n_batch,
            choice.kv_type,
            self._device.threads,
            offload=self._device.device == "cuda",
            sequence_count=choice.sequence_count,
            flash_attention=not choice.is_safe,
        )

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
        """Answer one task; writes `analysis.json`. Answers about pieces are kept in the task's
        `resume_dir`, and an attempt after an interruption goes on from there.

        Raises InvalidInput PARAMETER_INVALID / TEMPLATE_UNKNOWN / TEMPLATE_INVALID /
        VARIABLE_UNKNOWN / TRANSCRIPT_INVALID, EngineFault TRANSCRIPT_TOO_LONG (where the policy is
        to refuse), PIECE_TOO_SMALL, OUTPUT_TRUNCATED, OUTPUT_INVALID or DECODE_FAILED.
        """
        from coscheduler.engines.analysis import answering, reading, request, result
        from coscheduler.engines.analysis.kept import Kept

        loaded, states = self._need_loaded(), self._states()
        choice = loaded.choice
        share = max(self._settings.piece_tokens_max, choice.n_ctx // choice.sequence_count)
        size_max = min(choice.n_ctx, share)
        asked = request.of_task(task, loaded.model, loaded.chat, choice.n_ctx, size_max)
        kept = Kept(task.resume_dir, self._identity())
        with self._context() as context:
            conversation = answering.Conversation(loaded.model, context, choice.n_batch, states)
            read = reading.Reading(asked, conversation, kept)
            with closing(read.run()) as steps:
                yield from steps
        return result.save(task, asked, read.outcome)

    def chat(self, mail: Mailbox, expected_count: int) -> Generator[Slice, None, StageResult]:
        """Hold conversations; see `base.ChattingEngine`. Raises EngineFault CONTEXT_FAILED or
        DECODE_FAILED; what is wrong with one request is told to that one.
        """
        from coscheduler.engines.analysis.chatting import Chatting

        loaded, states = self._need_loaded(), self._states()
        choice = loaded.choice
        with self._context() as context:
            chatting = Chatting(
                loaded.model, loaded.chat, context, choice.n_ctx, choice.n_batch, states, mail
            )
            with closing(chatting.run(expected_count)) as steps:
                yield from steps
        numbers = {"answers": chatting.answer_count, "completion_tokens": chatting.token_count}
        return StageResult(files=(), numbers=numbers)

    def _states(self) -> "States":
        from coscheduler.engines.analysis.states import States

        folder = self._settings.session_dir
        return States(folder, int(self._settings.session_bytes_max), self._identity())

    def _identity(self) -> dict[str, Any]:
        """All that decides an answer beside the question."""
        model = self._settings.model
        return asdict(self._need_loaded().choice) | {
            "model": model.name,
            "size_bytes": model.stat().st_size,
            "modified_ns": model.stat().st_mtime_ns,
            "device": self._device.device,
            "threads": self._device.threads,
        }


def _percent(on_progress: OnProgress) -> Callable[[float], None]:
    """Report each whole per cent once; llama.cpp calls back for every tensor."""
    reported = -1

    def on_fraction(fraction: float) -> None:
        nonlocal reported
        if int(fraction * 100) > reported:
            reported = int(fraction * 100)
            on_progress(reported, 100)

    return on_fraction


def _trim() -> None:
    """Hand freed pages back: the C allocator keeps them otherwise, and the meter counts them."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent outside glibc
    if trim is not None:
        trim(0)
