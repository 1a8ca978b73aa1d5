"""The analysis engine: a GGUF model, a capped KV cache, answers as JSON.

A task: read the transcript (`request.py`); if it does not fit the context, read it in pieces
(`reading.py`); each call decodes a prompt in chunks of `n_batch` tokens and draws an answer in
slices of 32 tokens (`answering.py`); write it with its citations (`result.py`). The context is put
back to its fresh state after every task, however the task ended.
"""

import ctypes
import logging
import os
from collections.abc import Callable, Generator
from contextlib import closing
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
from coscheduler.engines.base import OnProgress, Slice, StageResult, Task
from coscheduler.errors import EngineFault, Refused

if TYPE_CHECKING:
    from coscheduler.engines.analysis import native

log = logging.getLogger(__name__)


@dataclass
class _Loaded:
    """What `load` holds."""

    option: Option
    choice: options.Choice
    model: "native.Model"
    chat: ChatFormat
    weights_bytes: int
    context: "native.Context | None" = None
    kv_bytes: int = 0
    compute_bytes: int = 0


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
        settings = self._settings
        sizes_of, found = survey.options_of(settings, self._device)
        return EngineDescription(
            engine=self.name,
            model=settings.model.name,
            options=tuple(
                options.option(choice, size, sizes_of, settings, self._device)
                for choice, size in found
            ),
            context_bytes=options.CONTEXT_BYTES[self._device.device],
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
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an abort would start a debugger and wait
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

    def _open_context(self) -> "native.Context":
        """Make the context of the loaded option and note its sizes.

        It is missing after a load, and where making it again failed at the end of a task.
        """
        from coscheduler.engines.analysis import native

        loaded, journal = self._need_loaded(), self._started()
        spec = native.ContextSpec(
            loaded.choice.n_ctx,
            loaded.choice.n_batch,
            loaded.choice.kv_type,
            self._device.threads,
            offload=self._device.device == "cuda",
        )
        loaded.context = native.Context(loaded.model, spec, journal)
        caches = (journal.buffers("KV"), journal.buffers("RS"))  # attention, recurrent state
        loaded.kv_bytes = sum(self._on_device(buffers) for buffers in caches)
        loaded.compute_bytes = self._on_device(journal.buffers("compute"))
        return loaded.context

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
        """Answer one task; writes `analysis.json`. Answers about pieces are kept in the task's
        `resume_dir`, and an attempt after an interruption goes on from there.

        Raises InvalidInput PARAMETER_INVALID / TEMPLATE_UNKNOWN / TEMPLATE_INVALID /
        VARIABLE_UNKNOWN / TRANSCRIPT_INVALID, EngineFault TRANSCRIPT_TOO_LONG (where the policy is
        to refuse), PIECE_TOO_SMALL, OUTPUT_TRUNCATED, OUTPUT_INVALID or DECODE_FAILED.
        """
        from coscheduler.engines.analysis import answering, reading, request, result
        from coscheduler.engines.analysis.kept import Kept

        loaded = self._need_loaded()
        choice = loaded.choice
        asked = request.of_task(task, loaded.model, loaded.chat, choice.n_ctx)
        context = loaded.context or self._open_context()
        conversation = answering.Conversation(loaded.model, context, choice.n_batch)
        kept = Kept(task.resume_dir, self._identity())
        read = reading.Reading(asked, conversation, kept)
        self._is_running = True
        try:
            with closing(read.run()) as steps:
                yield from steps
        finally:
            self._renew_context()
        return result.save(task, asked, read.outcome)

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
