"""A context of llama.cpp by its C functions: a KV cache shared out among sequences.

Each sequence is one text that is read or written; all take cells of the same cache. Logits are kept
for the last token of each sequence that is decoded, no more.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as api
import numpy as np
import numpy.typing as npt

from coscheduler.engines.analysis.journal import Journal
from coscheduler.engines.analysis.library import alive
from coscheduler.engines.analysis.native import Model
from coscheduler.errors import EngineFault

KV_TYPE_CODES = {
    "f16": api.GGML_TYPE_F16,
    "q8_0": api.GGML_TYPE_Q8_0,
    "q4_0": api.GGML_TYPE_Q4_0,
}


@dataclass(frozen=True)
class ContextSpec:
    """The size of a context. `n_batch` tokens are decoded in one call, as one micro-batch."""

    n_ctx: int
    n_batch: int
    kv_type: str
    threads: int
    offload: bool = False
    sequence_count: int = 1
    flash_attention: bool = True  # where the library can; False: never


class Context:
    """A KV cache with its compute buffers. Sequences are numbered from 0."""

    def __init__(self, model: Model, spec: ContextSpec, journal: Journal) -> None:
        """Allocate. Raises EngineFault CONTEXT_FAILED; nothing is held then."""
        journal.begin()
        self.vocab_size = model.vocab_size
        self.sequence_count = spec.sequence_count
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

    def decode(self, tokens: Sequence[int], sequence: int = 0) -> None:
        """Append at most `n_batch` tokens to one sequence; logits row -1 is then for the next one.

        Raises EngineFault DECODE_FAILED with a code.
        """
        wanted = [False] * (len(tokens) - 1) + [True]
        self._decode(tokens, [sequence] * len(tokens), wanted)

    def decode_each(self, tokens: Sequence[int], sequences: Sequence[int]) -> None:
        """Append one token to each of several sequences; logits row i is then for the i-th of them.

        Raises EngineFault DECODE_FAILED with a code.
        """
        self._decode(tokens, sequences, [True] * len(tokens))

    def _decode(
        self, tokens: Sequence[int], sequences: Sequence[int], wanted: Sequence[bool]
    ) -> None:
        count = len(tokens)
        ids = (ctypes.c_int32 * count)(*sequences)
        pointer = ctypes.POINTER(ctypes.c_int32)
        each = [ctypes.cast(ctypes.addressof(ids) + 4 * place, pointer) for place in range(count)]
        batch: Any = api.llama_batch()  # no positions: the library counts each sequence's own
        batch.n_tokens = count
        batch.token = (api.llama_token * count)(*tokens)
        batch.n_seq_id = (ctypes.c_int32 * count)(*[1] * count)
        batch.seq_id = (pointer * count)(*each)
        batch.logits = (ctypes.c_int8 * count)(*wanted)
        code = api.llama_decode(self.handle, batch)
        if code != 0:
            raise EngineFault(
                "DECODE_FAILED", f"llama.cpp could not decode {count} tokens", code=code
            )

    def rewind(self, count: int, sequence: int = 0) -> bool:
        """Keep the first `count` tokens of a sequence and drop the rest.

        False where the cache cannot do that (recurrent state; a window that has moved on): the
        sequence is empty then.
        """
        memory = api.llama_get_memory(self.handle)
        kept = count > 0 and api.llama_memory_seq_rm(memory, sequence, count, -1)
        if kept and api.llama_memory_seq_pos_min(memory, sequence) == 0:
            return True
        if self.sequence_count == 1:
            api.llama_memory_clear(memory, True)
        else:
            api.llama_memory_seq_rm(memory, sequence, -1, -1)
        return False

    def share(self, source: int, target: int) -> None:
        """Let an empty sequence begin with all that another holds; it takes no cells for that."""
        memory = api.llama_get_memory(self.handle)
        api.llama_memory_seq_cp(memory, source, target, -1, -1)

    def state_bytes(self, sequence: int = 0) -> int:
        """What `save` would write: the sequence's cells, and a little more."""
        return int(api.llama_state_seq_get_size(self.handle, sequence))

    def save(self, path: Path, sequence: int = 0) -> bool:
        """Write the state of a sequence to a file, layer by layer; False where that fails."""
        written = api.llama_state_seq_save_file(self.handle, bytes(path), sequence, None, 0)
        return bool(written)

    def restore(self, path: Path, sequence: int = 0) -> bool:
        """Bring a saved state back into an empty sequence; False where the library refuses it, as
        for another KV type or too few cells: the sequence is empty then.
        """
        count = ctypes.c_size_t()
        none = (api.llama_token * 1)()
        if api.llama_state_seq_load_file(
            self.handle, bytes(path), sequence, none, 0, ctypes.byref(count)
        ):
            return True
        self.rewind(0, sequence)
        return False

    def forget(self) -> None:
        """Empty the KV cache and zero it, so that nothing of a task is left."""
        api.llama_memory_clear(api.llama_get_memory(self.handle), True)

    def logits(self, row: int = -1) -> npt.NDArray[np.float32]:
        """Scores of the next token, float32 [vocab_size]: a view until the next decode."""
        pointer = api.llama_get_logits_ith(self.handle, row)
        return np.ctypeslib.as_array(pointer, shape=(self.vocab_size,))


def _context_params(spec: ContextSpec) -> Any:
    flash = api.LLAMA_FLASH_ATTN_TYPE_AUTO
    params = api.llama_context_default_params()
    params.n_ctx = spec.n_ctx
    params.n_batch = params.n_ubatch = spec.n_batch
    params.n_seq_max = spec.sequence_count
    params.kv_unified = True  # one cache for all sequences: each may take what the others leave
    params.n_outputs_max = spec.sequence_count  # else logits are reserved for the whole batch
    params.n_threads = params.n_threads_batch = spec.threads
    params.flash_attn_type = flash if spec.flash_attention else api.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.type_k = params.type_v = KV_TYPE_CODES[spec.kv_type]
    params.offload_kqv = params.op_offload = spec.offload
    params.swa_full = False
    params.no_perf = True
    return params
