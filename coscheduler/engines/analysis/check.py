"""What a model needs and what fits, as one JSON object: `python -m ...check`, for the command line.

A process of its own because only a child may load what an engine is made of. The request is read
from standard input; the answer is the report, or {"error": {kind, reason, message, numbers}}.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coscheduler.engines.analysis.samples import EMAIL, TALK, TALK_SECONDS
from coscheduler.engines.forkserver import die_with_parent
from coscheduler.errors import CoschedulerError, EngineFault

if TYPE_CHECKING:
    from coscheduler.engines.analysis import dry_run
    from coscheduler.engines.analysis.footprint import Footprint

THREADS = 1
PROMPT_TOKENS = 400  # what a template says beside the transcript, about
UNLIMITED_BYTES = 2**62
GPU_CONTEXT_BYTES = 400 * 1024 * 1024  # until it has been measured


@dataclass(frozen=True)
class Request:
    """What is asked. `n_ctx` 0: the largest that fits `kv_budget_bytes` (None: no limit). `kv_type`
    "": the finest that fits. `memory_bytes` is what the device has to give, on a GPU or in RAM.
    """

    path: str
    kv_budget_bytes: int | None
    memory_bytes: int
    on_gpu: bool
    n_ctx: int = 0
    kv_type: str = ""
    n_batch: int = 512

    @property
    def cap_bytes(self) -> int:
        """The budget as a number."""
        return UNLIMITED_BYTES if self.kv_budget_bytes is None else self.kv_budget_bytes


@dataclass(frozen=True)
class Work:
    """A piece of work by its tokens. `is_splittable`: it may be read in pieces."""

    what: str
    input_tokens: int
    answer_tokens: int
    is_splittable: bool


def report(request: Request) -> dict[str, Any]:
    """The report, all sizes in bytes.

    Raises EngineFault MODEL_MISSING, MODEL_CORRUPT, MODEL_UNSUPPORTED, KV_CAP_TOO_SMALL or
    KV_TYPE_UNSUPPORTED.
    """
    from coscheduler.engines.analysis import dry_run, footprint, header, survey
    from coscheduler.engines.analysis.footprint import CELLS_STEP

    path = Path(request.path)
    found_header = header.read(path)
    by_header = footprint.of(found_header)
    probe = dry_run.Wanted(survey.PROBE_N_CTX, "f16", request.n_batch)
    guessed = _wanted(by_header, request, request.n_ctx or CELLS_STEP)
    first = dry_run.measure(path, [probe, guessed], THREADS, [TALK, EMAIL])
    model = survey.corrected_by(by_header, probe, first.sizes[0])
    n_ctx, kv_type = _context(model, request)
    wanted = dry_run.Wanted(n_ctx, kv_type, request.n_batch)
    sizes = first.sizes[1]
    if wanted != guessed or sizes is None:  # the header alone suggests another
        (sizes,) = dry_run.measure(path, [wanted], THREADS).sizes
    assert sizes is not None  # one context: it is there, or `measure` has raised
    return {
        "model": path.name,
        "architecture": found_header.architecture,
        "n_ctx": n_ctx,
        "kv_type": kv_type,
        "kv_budget_bytes": request.kv_budget_bytes,
        "kv_bytes": _kv_bytes(model, n_ctx, request.n_batch),
        "n_ctx_fitting": _fitting(model, request),
        "n_ctx_train": model.n_ctx_train,
        "n_batch": request.n_batch,
        "weights_bytes": model.weights_bytes,
        "embedding_bytes": model.embedding_bytes,
        "output_bytes": model.output_bytes,
        "layers": [layer.bytes for layer in model.layers],
        "compute_bytes": sizes.compute_bytes,
        "compute_is_estimate": request.on_gpu,  # measured on the graph for the CPU
        "device": "cuda" if request.on_gpu else "cpu",
        "memory_bytes": request.memory_bytes,
        "layers_fitting": layers_fitting(model, request, n_ctx, kv_type, sizes.compute_bytes),
        "work": [_need(model, request, n_ctx, work) for work in _works(first.token_counts)],
    }


def _wanted(model: "Footprint", request: Request, n_ctx_else: int) -> "dry_run.Wanted":
    """The context to ask about by the header alone; a small one where nothing fits by it."""
    from coscheduler.engines.analysis import dry_run

    try:
        n_ctx, kv_type = _context(model, request)
    except EngineFault:
        n_ctx, kv_type = n_ctx_else, "f16"
    return dry_run.Wanted(n_ctx, kv_type, request.n_batch)


def _context(model: "Footprint", request: Request) -> tuple[int, str]:
    """The context to report: as long as wanted, or as fits, in the finest KV type that fits."""
    from coscheduler.engines.analysis.footprint import CELLS_STEP

    types = _types(model, request)
    floor = request.n_ctx or CELLS_STEP
    for kv_type in types:
        n_ctx = request.n_ctx or _fitting(model, request)[kv_type]
        bytes_needed = model.kv_bytes(n_ctx, kv_type, request.n_batch)
        if n_ctx >= floor and bytes_needed <= request.cap_bytes:
            return n_ctx, kv_type
    needed = min(model.kv_bytes(floor, kv_type, request.n_batch) for kv_type in types)
    raise EngineFault(
        "KV_CAP_TOO_SMALL",
        f"a context of {floor} tokens needs {needed} bytes of KV cache at least; "
        f"the budget is {request.cap_bytes}",
        required_bytes=needed,
        kv_cache_max=request.cap_bytes,
        n_ctx=floor,
    )


def _types(model: "Footprint", request: Request) -> list[str]:
    """The KV types that may be used. Raises EngineFault KV_TYPE_UNSUPPORTED when there is none."""
    from coscheduler.engines.analysis.footprint import KV_TYPES

    asked = [request.kv_type] if request.kv_type else list(KV_TYPES)
    usable = [kv_type for kv_type in asked if model.supports(kv_type)]
    if not usable:
        raise EngineFault(
            "KV_TYPE_UNSUPPORTED",
            f"this model's head size rules out KV type {request.kv_type}; use f16",
            kv_type=request.kv_type,
        )
    return usable


def _kv_bytes(model: "Footprint", n_ctx: int, n_batch: int) -> dict[str, int | None]:
    """KV cache by type; None for a type that this model's heads do not allow."""
    from coscheduler.engines.analysis.footprint import KV_TYPES

    return {
        kv_type: model.kv_bytes(n_ctx, kv_type, n_batch) if model.supports(kv_type) else None
        for kv_type in KV_TYPES
    }


def _fitting(model: "Footprint", request: Request) -> dict[str, int]:
    """The largest context within the budget by KV type, at most what the model was trained for."""
    from coscheduler.engines.analysis.footprint import KV_TYPES

    n_ctx_max = model.n_ctx_train or 2**20
    return {
        kv_type: model.n_ctx_fitting(request.cap_bytes, n_ctx_max, kv_type, request.n_batch)
        for kv_type in KV_TYPES
        if model.supports(kv_type)
    }


def layers_fitting(
    model: "Footprint", request: Request, n_ctx: int, kv_type: str, compute_bytes: int
) -> int:
    """How many repeating layers fit the memory beside all else that must be there.

    On a GPU the last layers go there first, each with its part of the KV cache, and a CUDA context
    is counted; in RAM everything is needed at once.
    """
    for count in range(len(model.layers), -1, -1):
        if request.on_gpu:
            offloaded = count + 1 if count else 0  # the output matrix counts as a layer
            first = model.first_offloaded(offloaded)
            kv_bytes = model.kv_bytes(n_ctx, kv_type, request.n_batch, first) if count else 0
            needed = model.offloaded_bytes(offloaded) + kv_bytes + GPU_CONTEXT_BYTES
        else:
            needed = model.embedding_bytes + model.output_bytes + model.vocabulary_bytes
            needed += sum(layer.bytes for layer in model.layers[:count])
            needed += model.kv_bytes(n_ctx, kv_type, request.n_batch)
        if needed + compute_bytes <= request.memory_bytes:
            return count
    return 0


def _works(token_counts: tuple[int, ...]) -> list[Work]:
    talk, email = token_counts
    return [
        Work("10 emails in one batch", 10 * email, 2048, False),
        Work("1 hour of talk", talk * 3600 // TALK_SECONDS, 512, True),
        Work("4 hours of talk", 4 * talk * 3600 // TALK_SECONDS, 512, True),
    ]


def _need(model: "Footprint", request: Request, n_ctx: int, work: Work) -> dict[str, Any]:
    """What a work needs to be read at once, and in how many pieces this context reads it.

    `pieces` is None where it does not fit and may not be split.
    """
    from coscheduler.engines.analysis.footprint import CELLS_STEP

    whole = work.input_tokens + PROMPT_TOKENS + work.answer_tokens
    room = n_ctx - PROMPT_TOKENS - work.answer_tokens
    pieces = -(-work.input_tokens // room) if room > 0 else None
    needed = -(-whole // CELLS_STEP) * CELLS_STEP
    return {
        "what": work.what,
        "tokens": whole,
        "n_ctx": needed,
        "kv_bytes": _kv_bytes(model, needed, request.n_batch),
        "fits": whole <= n_ctx,
        "pieces": pieces if work.is_splittable or pieces == 1 else None,
    }


def main() -> int:
    """Answer the request on standard input. Exit status 1 with an error."""
    die_with_parent(int(sys.argv[1]))
    try:
        answer: dict[str, Any] = report(Request(**json.load(sys.stdin)))
    except ImportError as error:
        fault = EngineFault("ENGINE_NOT_INSTALLED", f"install the extra 'analysis': {error}")
        answer = _error(fault)
    except CoschedulerError as error:
        answer = _error(error)
    print(json.dumps(answer))
    return int("error" in answer)


def _error(error: CoschedulerError) -> dict[str, Any]:
    return {
        "error": {
            "kind": error.kind,
            "reason": error.reason,
            "message": error.message,
            "numbers": error.numbers,
        }
    }


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    sys.exit(main())
