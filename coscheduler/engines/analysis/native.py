"""llama.cpp by its C functions: a journal of its log, a model, a context.

The library is brittle: using anything after it was freed, or from two threads, ends the process.
Here every handle has one owner, `close` may be called twice, and a closed handle raises
RuntimeError instead. So does any use by another thread than the one that opened the library.

The high-level `Llama` class is not used: it allocates a score for every token of a batch, reserves
logits for a whole batch, ignores unknown options, and redirects file descriptors while loading.
"""

import ctypes
import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import llama_cpp.llama_cpp as api
import numpy as np
import numpy.typing as npt
from llama_cpp import _ggml

from coscheduler.engines.analysis.footprint import Cache
from coscheduler.errors import EngineFault

log = logging.getLogger("coscheduler.engines.analysis.llama")

KV_TYPE_CODES = {
    "f16": api.GGML_TYPE_F16,
    "q8_0": api.GGML_TYPE_Q8_0,
    "q4_0": api.GGML_TYPE_Q4_0,
}
JOURNAL_LINES_MAX = 512
# ggml's levels: 1 debug, 2 info, 3 warning, 4 error. One step lower here: it warns about every
# context, and an error that matters becomes an EngineFault with its text.
_LEVELS = {3: logging.INFO, 4: logging.WARNING}
_DEBUG, _ERROR, _CONTINUED = 1, 4, 5
_NO_DEVICES = (ctypes.c_void_p * 1)(None)  # a list that is empty: its end comes first
_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size =\s*([\d.]+) MiB")
_CACHE = re.compile(r"llama_(?:kv_cache|memory_recurrent)\w*: size =\s*([\d.]+) MiB")
_KV_CACHE = re.compile(
    r"llama_kv_cache: size =\s*[\d.]+ MiB \(\s*(\d+) cells,\s*(\d+) layers.*"
    r" K \(\w+\):\s*([\d.]+) MiB, V \(\w+\):\s*([\d.]+) MiB"
)
_STATE = re.compile(r"llama_memory_recurrent: size =\s*([\d.]+) MiB")
MIB = 1024 * 1024
_owner = 0  # the thread that opened the library: it knows no locks
_GPU_DEVICE = 1  # GGML_BACKEND_DEVICE_TYPE_GPU; 0 is the CPU


class Journal:
    """The library's log: forwarded to `logging`, its last lines kept."""

    current: ClassVar["Journal | None"] = None  # the library has one sink for the whole process

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=JOURNAL_LINES_MAX)
        self.first_error = ""
        self.begin()

    def begin(self) -> None:
        """Become the sink and forget the lines, before a call whose lines are to be read."""
        Journal.current = self
        self.lines.clear()
        self.first_error = ""

    def write(self, level: int, line: str) -> None:
        """Keep a line and pass it on; a graph's debug lines, thousands, would push out the rest."""
        if level != _DEBUG:
            self.lines.append(line)
        if level == _ERROR and not self.first_error:  # the cause; later ones say what it broke
            self.first_error = line
        log.log(_LEVELS.get(level, logging.DEBUG), "%s", line)

    def buffers(self, kind: str) -> dict[str, int]:
        """Bytes of the buffers of a kind ("model", "KV", "compute", ...) by device."""
        found: dict[str, int] = {}
        for line in self.lines:
            match = _BUFFER.search(line)
            if match is not None and match[2] == kind:
                found[match[1]] = found.get(match[1], 0) + _mebibytes(match[3])
        return found

    def cache_bytes(self) -> int:
        """Bytes of all caches of a context, also where nothing was allocated for them."""
        return self._sum(_CACHE)

    def state_bytes(self) -> int:
        """Bytes of recurrent state, which does not grow with the context."""
        return self._sum(_STATE)

    def caches(self) -> tuple[Cache, ...]:
        """The KV caches of a context; layers with a sliding window have one of their own."""
        matches = (_KV_CACHE.search(line) for line in self.lines)
        return tuple(
            Cache(int(match[1]), int(match[2]), _mebibytes(match[3]), _mebibytes(match[4]))
            for match in matches
            if match is not None and int(match[2])
        )

    def _sum(self, pattern: re.Pattern[str]) -> int:
        matches = (pattern.search(line) for line in self.lines)
        return sum(_mebibytes(match[1]) for match in matches if match is not None)


def _mebibytes(text: str) -> int:
    return round(float(text) * MIB)


@api.llama_log_callback  # type: ignore[untyped-decorator]
def _sink(level: int, text: bytes | None, _user: object) -> None:
    """Get every line of the library, which keeps this address: hence a function of the module."""
    line = (text or b"").decode("utf-8", errors="replace").strip()
    if Journal.current is not None and line and level != _CONTINUED:  # dots of progress
        Journal.current.write(level, line)


def open_library() -> Journal:
    """Take over the log, then initialise the library, which belongs to this thread from now on.

    May be called again.
    """
    global _owner
    _owner = threading.get_ident()
    journal = Journal()
    api.llama_log_set(_sink, ctypes.c_void_p(0))
    api.llama_backend_init()
    return journal


@dataclass(frozen=True)
class ModelSpec:
    """How to load a model. `gpu` None: no GPU is used even if the library can."""

    path: Path
    use_mmap: bool
    gpu: int | None = None
    n_gpu_layers: int = 0
    no_alloc: bool = False


class Model:
    """A loaded model: its weights and its tokenizer."""

    def __init__(
        self,
        spec: ModelSpec,
        journal: Journal,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        """Load. `on_progress` gets a fraction 0..1 and may raise, which stops the load.

        Raises EngineFault MODEL_LOAD_FAILED, or what `on_progress` raised; nothing is held then.
        """
        journal.begin()
        raised: list[BaseException] = []
        params = _model_params(spec)
        callback = _progress_callback(on_progress, raised)
        params.progress_callback = callback
        self._handle = api.llama_model_load_from_file(bytes(spec.path), params)
        if raised:
            self.close()
            raise raised[0]
        if self._handle is None:
            why = journal.first_error or "the library gave no reason"
            raise EngineFault(
                "MODEL_LOAD_FAILED",
                f"llama.cpp cannot load {spec.path}: {why}",
                path=spec.path,
                detail=why,
            )
        self._vocab = api.llama_model_get_vocab(self._handle)
        self.vocab_size: int = api.llama_vocab_n_tokens(self._vocab)

    @property
    def handle(self) -> Any:
        """The C handle. Raises RuntimeError after `close`."""
        return alive(self._handle, "model")

    @property
    def vocab(self) -> Any:
        """The C handle of the vocabulary, owned by the model."""
        alive(self._handle, "model")
        return self._vocab

    def close(self) -> None:
        """Free the weights. No context or sampler of it may be open any more."""
        handle, self._handle = self._handle, None
        if handle is not None:
            api.llama_model_free(handle)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text; the two flags as in llama.cpp."""
        data = text.encode("utf-8")
        room = len(data) + 8
        while True:
            tokens = (api.llama_token * room)()
            count = api.llama_tokenize(
                self.vocab, data, len(data), tokens, room, add_special, parse_special
            )
            if count >= 0:
                return list(tokens[:count])
            room = -count

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes a token stands for; b"" for a control token unless `special`."""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = api.llama_token_to_piece(self.vocab, token, buffer, room, 0, special)
            if size >= 0:
                return buffer.raw[:size]
            room = -size

    def is_end(self, token: int) -> bool:
        """True for the tokens that end an answer."""
        return bool(api.llama_vocab_is_eog(self.vocab, token))

    @property
    def adds_bos(self) -> bool:
        """Whether prompts of this model start with its BOS token."""
        return bool(api.llama_vocab_get_add_bos(self.vocab))

    @property
    def bos_text(self) -> str:
        """The text of the BOS token, "" if there is none."""
        return self._text_of(api.llama_vocab_bos(self.vocab))

    @property
    def eos_text(self) -> str:
        """The text of the EOS token, "" if there is none."""
        return self._text_of(api.llama_vocab_eos(self.vocab))

    def _text_of(self, token: int) -> str:
        return "" if token < 0 else self.piece(token, special=True).decode("utf-8", "replace")

    def control_texts(self) -> tuple[str, ...]:
        """Texts that the tokenizer would read as control tokens, the longest first.

        Some models declare theirs as "user defined"; of those, the ones that look like markup.
        """
        texts = set()
        for token in range(self.vocab_size):
            kind = api.llama_vocab_get_attr(self.vocab, token)
            if kind & (api.LLAMA_TOKEN_ATTR_CONTROL | api.LLAMA_TOKEN_ATTR_USER_DEFINED):
                text = self._text_of(token)
                if kind & api.LLAMA_TOKEN_ATTR_CONTROL or text.startswith("<"):
                    texts.add(text)
        return tuple(sorted(texts - {""}, key=lambda text: (-len(text), text)))

    def chat_template(self) -> str:
        """The Jinja template of the file, "" if it has none."""
        text = api.llama_model_chat_template(self.handle, None)
        return text.decode("utf-8") if text else ""


@dataclass(frozen=True)
class ContextSpec:
    """The size of a context. `n_batch` tokens are decoded in one call, as one micro-batch."""

    n_ctx: int
    n_batch: int
    kv_type: str
    threads: int
    offload: bool = False


class Context:
    """A KV cache with its compute buffers: one sequence, logits of the last token only."""

    def __init__(self, model: Model, spec: ContextSpec, journal: Journal) -> None:
        """Allocate. Raises EngineFault CONTEXT_FAILED; nothing is held then."""
        journal.begin()
        self.vocab_size = model.vocab_size
        self._handle = api.llama_init_from_model(model.handle, _context_params(spec))
        if self._handle is None:
            why = journal.first_error or "the library gave no reason"
            raise EngineFault(
                "CONTEXT_FAILED",
                f"llama.cpp cannot make a context of {spec.n_ctx} tokens in {spec.kv_type}: {why}",
                n_ctx=spec.n_ctx,
                kv_type=spec.kv_type,
                detail=why,
            )

    @property
    def handle(self) -> Any:
        """The C handle. Raises RuntimeError after `close`."""
        return alive(self._handle, "context")

    def close(self) -> None:
        """Free the KV cache and the compute buffers."""
        handle, self._handle = self._handle, None
        if handle is not None:
            api.llama_free(handle)

    def decode(self, tokens: Sequence[int]) -> None:
        """Append at most `n_batch` tokens. Raises EngineFault DECODE_FAILED with a code."""
        array = (api.llama_token * len(tokens))(*tokens)
        code = api.llama_decode(self.handle, api.llama_batch_get_one(array, len(tokens)))
        if code != 0:
            raise EngineFault(
                "DECODE_FAILED", f"llama.cpp could not decode {len(tokens)} tokens", code=code
            )

    def rewind(self, count: int) -> bool:
        """Keep the first `count` tokens and drop the rest.

        False where the cache cannot do that (recurrent state; a window that has moved on): it is
        empty then.
        """
        memory = api.llama_get_memory(self.handle)
        kept = count > 0 and api.llama_memory_seq_rm(memory, 0, count, -1)
        if kept and api.llama_memory_seq_pos_min(memory, 0) == 0:
            return True
        api.llama_memory_clear(memory, True)
        return False

    def forget(self) -> None:
        """Empty the KV cache and zero it, so that nothing of a task is left."""
        api.llama_memory_clear(api.llama_get_memory(self.handle), True)

    def logits(self) -> npt.NDArray[np.float32]:
        """Scores of the next token, float32 [vocab_size]: a view until the next decode."""
        pointer = api.llama_get_logits_ith(self.handle, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.vocab_size,))


def alive(handle: Any, what: str) -> Any:
    """The handle. Raises RuntimeError when it was closed, or when another thread asks."""
    if threading.get_ident() != _owner:
        raise RuntimeError(f"the {what} belongs to another thread")
    if handle is None:
        raise RuntimeError(f"the {what} is closed")
    return handle


def _progress_callback(
    on_progress: Callable[[float], None] | None, raised: list[BaseException]
) -> Any:
    """A C callback: an exception must not cross C frames, so it is kept and the load is stopped."""

    def on_fraction(fraction: float, _user: object) -> bool:
        if on_progress is None:
            return True
        try:
            on_progress(fraction)
        except BaseException as error:
            raised.append(error)
        return not raised

    return api.llama_progress_callback(on_fraction)


def _model_params(spec: ModelSpec) -> Any:
    params = api.llama_model_default_params()
    params.load_mode = (
        api.LLAMA_LOAD_MODE_MMAP
        if spec.use_mmap and not spec.no_alloc
        else api.LLAMA_LOAD_MODE_NONE
    )
    # Mapped weights stay mapped: repacking would put a second, anonymous copy beside the file.
    params.use_extra_bufts = not spec.use_mmap
    params.no_alloc = spec.no_alloc
    params.split_mode = api.LLAMA_SPLIT_MODE_NONE
    if spec.gpu is None:
        params.n_gpu_layers = 0
        params.devices = ctypes.addressof(_NO_DEVICES)
    else:
        params.n_gpu_layers = spec.n_gpu_layers
        params.main_gpu = spec.gpu
    return params


def _context_params(spec: ContextSpec) -> Any:
    params = api.llama_context_default_params()
    params.n_ctx = spec.n_ctx
    params.n_batch = params.n_ubatch = spec.n_batch
    params.n_seq_max = 1
    params.n_outputs_max = 1  # otherwise logits are reserved for the whole batch
    params.n_threads = params.n_threads_batch = spec.threads
    params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_AUTO
    params.type_k = params.type_v = KV_TYPE_CODES[spec.kv_type]
    params.offload_kqv = params.op_offload = spec.offload
    params.swa_full = False
    params.no_perf = True
    return params


def warm_up_gpu(index: int) -> None:
    """Take the device context of a GPU by asking for its free memory.

    Raises EngineFault GPU_UNSUPPORTED when this build of llama.cpp has no such GPU.
    """
    ggml = _ggml.libggml
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    ggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    size_pointer = ctypes.POINTER(ctypes.c_size_t)
    ggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, size_pointer, size_pointer]
    ggml.ggml_backend_dev_memory.restype = None
    devices = [ggml.ggml_backend_dev_get(number) for number in range(ggml.ggml_backend_dev_count())]
    gpus = [device for device in devices if ggml.ggml_backend_dev_type(device) == _GPU_DEVICE]
    if index >= len(gpus):
        raise EngineFault(
            "GPU_UNSUPPORTED",
            f"this llama.cpp sees {len(gpus)} GPUs and number {index} is configured; "
            "it must be built with CUDA",
            gpu_count=len(gpus),
            index=index,
        )
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml.ggml_backend_dev_memory(gpus[index], ctypes.byref(free), ctypes.byref(total))
