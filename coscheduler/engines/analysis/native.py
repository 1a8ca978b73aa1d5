"""A model of llama.cpp by its C functions: its weights and its tokenizer.

`close` may be called twice, and a closed handle raises RuntimeError instead of ending the process.

The high-level `Llama` class is not used: it allocates a score for every token of a batch, reserves
logits for a whole batch, ignores unknown options, and redirects file descriptors while loading.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as api

from coscheduler.engines.analysis.journal import Journal
from coscheduler.engines.analysis.library import alive
from coscheduler.errors import EngineFault

_NO_DEVICES = (ctypes.c_void_p * 1)(None)  # a list that is empty: its end comes first


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
