"""Drawing tokens, under a grammar where there is one.

The random numbers of a token are those of (seed, place in the answer): an answer that was
interrupted goes on as if it had not been.
"""

import ctypes
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import llama_cpp.llama_cpp as api
import numpy as np
import numpy.typing as npt

from coscheduler.engines.analysis.library import alive
from coscheduler.engines.analysis.native import Model
from coscheduler.engines.analysis.sequences import Context
from coscheduler.errors import EngineFault


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Temperature 0 takes the likeliest one."""

    temperature: float
    top_k: int
    top_p: float
    seed: int


_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Sampler:
    """Draws tokens under an optional grammar (GBNF), deterministic for a seed.

    The draw is made freely first and only checked against the grammar; when it is refused, the
    whole vocabulary is filtered and drawn from again. Most draws of a good model pass, and
    filtering a vocabulary of 131,072 tokens costs more than the draw.
    """

    def __init__(
        self, model: Model, sampling: Sampling, grammar: str | None, drawn: Sequence[int] = ()
    ) -> None:
        """Go on behind the tokens in `drawn`.

        Raises EngineFault GRAMMAR_INVALID when llama.cpp cannot read the grammar.
        """
        self._sampling = sampling
        self._count = 0
        self._is_open = True
        self._grammar: Any = None
        if grammar is not None:
            self._grammar = api.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
            if not self._grammar:
                raise EngineFault("GRAMMAR_INVALID", "llama.cpp cannot read the grammar")
        for token in drawn:
            self._note(token)

    def close(self) -> None:
        """Free the grammar."""
        grammar, self._grammar = self._grammar, None
        self._is_open = False
        if grammar:
            api.llama_sampler_free(grammar)

    def sample(self, context: Context, row: int = -1) -> int:
        """The next token, by a row of logits of what `context` has decoded last."""
        alive(self._is_open or None, "sampler")
        with self._chain() as chain:
            token = int(api.llama_sampler_sample(chain, context.handle, row))
            if self._grammar is not None and not self._allows(token):
                token = self._draw_within_grammar(context, row)
        self._note(token)
        return token

    def _note(self, token: int) -> None:
        self._count += 1
        if self._grammar is not None:
            api.llama_sampler_accept(self._grammar, token)

    @contextmanager
    def _chain(self) -> Iterator[Any]:
        chain = _chain(self._sampling, self._count)
        try:
            yield chain
        finally:
            api.llama_sampler_free(chain)

    def _allows(self, token: int) -> bool:
        one = np.zeros(1, dtype=_CANDIDATE)
        one["id"] = token
        array = _candidate_array(one)
        api.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return math.isfinite(array.data[0].logit)

    def _draw_within_grammar(self, context: Context, row: int) -> int:
        candidates = np.zeros(context.vocab_size, dtype=_CANDIDATE)
        candidates["id"] = np.arange(context.vocab_size)
        candidates["logit"] = context.logits(row)
        api.llama_sampler_apply(self._grammar, ctypes.byref(_candidate_array(candidates)))
        allowed = candidates[np.isfinite(candidates["logit"])]
        array = _candidate_array(allowed)
        with self._chain() as chain:
            api.llama_sampler_apply(chain, ctypes.byref(array))
        return int(array.data[array.selected].id)


def _candidate_array(candidates: npt.NDArray[Any]) -> Any:
    """A C view of candidates, which must outlive it; a sampler may point it elsewhere."""
    pointer = candidates.ctypes.data_as(ctypes.POINTER(api.llama_token_data))
    return api.llama_token_data_array(pointer, len(candidates), -1, False)


def _chain(sampling: Sampling, place: int) -> Any:
    """The samplers for the token at this place of an answer."""
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    if sampling.temperature == 0:
        api.llama_sampler_chain_add(chain, api.llama_sampler_init_greedy())
        return chain
    for sampler in (
        api.llama_sampler_init_top_k(sampling.top_k),
        api.llama_sampler_init_top_p(sampling.top_p, 1),
        api.llama_sampler_init_temp(sampling.temperature),
        api.llama_sampler_init_dist(zlib.crc32(f"{sampling.seed}:{place}".encode())),
    ):
        api.llama_sampler_chain_add(chain, sampler)
    return chain
