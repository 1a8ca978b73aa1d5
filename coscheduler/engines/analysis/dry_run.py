"""Ask llama.cpp itself what a context would take, without allocating it, in a process of its own.

The compute buffer depends on the graph of the architecture, and some architectures keep other
caches than the usual one, so only the library knows. It can build everything with the allocation
left out and report the sizes. A separate process because its log is process-wide, a GPU backend
would take a device context (GPUs are hidden here), and a model that makes it abort must not take
the engine along.

Sizes for a GPU are those of the same graph on the CPU: close, but an estimate.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coscheduler.engines.analysis.footprint import Cache
from coscheduler.engines.analysis.journal import Journal
from coscheduler.engines.forkserver import die_with_parent
from coscheduler.engines.peak import PeakSampler
from coscheduler.errors import EngineFault

if TYPE_CHECKING:
    from coscheduler.engines.analysis import native

SECONDS_MAX = 120


@dataclass(frozen=True)
class Wanted:
    """A context to ask about; `n_batch` tokens are decoded in one call."""

    n_ctx: int
    kv_type: str
    n_batch: int
    sequence_count: int = 1
    flash_attention: bool = True


@dataclass(frozen=True)
class Sizes:
    """What one context would take, bytes, as the library says (rounded to 0.01 MiB).

    `kv_bytes` is the sum of the caches and of `state_bytes`, which recurrent layers keep.
    """

    kv_bytes: int
    compute_bytes: int
    state_bytes: int = 0
    caches: tuple[Cache, ...] = ()


@dataclass(frozen=True)
class Report:
    """`sizes` for each wanted context, None where the library refuses it; tokens of each text."""

    sizes: tuple[Sizes | None, ...]
    token_counts: tuple[int, ...]
    refusal: str = ""  # why the last of the refused contexts was
    peak_bytes: int = 0  # highest anonymous memory of the process that found out


def measure(
    path: Path, contexts: Sequence[Wanted], threads: int, texts: Sequence[str] = ()
) -> Report:
    """Sizes of contexts and lengths of texts, about a second in all.

    Raises EngineFault MODEL_UNSUPPORTED when this llama.cpp cannot build the model, or none of the
    contexts.
    """
    request = {
        "path": str(path),
        "contexts": [asdict(context) for context in contexts],
        "threads": threads,
        "texts": list(texts),
    }
    report = _read(_run(path, json.dumps(request)))
    if contexts and not any(report.sizes):
        raise _unsupported(path, report.refusal)
    return report


def _run(path: Path, request: str) -> str:
    """What the child prints for a request."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "GGML_NO_BACKTRACE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name, str(os.getpid())],
            env=environment,
            input=request,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _unsupported(path, f"no answer within {SECONDS_MAX} s") from None
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2]
        raise _unsupported(path, last or f"exit status {done.returncode}")
    return done.stdout


def _read(text: str) -> Report:
    answer = json.loads(text)
    return Report(
        sizes=tuple(entry and _sizes(entry) for entry in answer["sizes"]),
        token_counts=tuple(answer["token_counts"]),
        refusal=answer["refusal"],
        peak_bytes=answer["peak_bytes"],
    )


def _sizes(entry: dict[str, Any]) -> Sizes:
    caches = tuple(Cache(**cache) for cache in entry.pop("caches"))
    return Sizes(caches=caches, **entry)


def _unsupported(path: Path, why: str) -> EngineFault:
    return EngineFault(
        "MODEL_UNSUPPORTED", f"llama.cpp cannot work with {path}: {why}", path=path, detail=why
    )


def _measure_here(request: dict[str, Any]) -> Report:
    """The child's side. Raises EngineFault MODEL_LOAD_FAILED."""
    from coscheduler.engines.analysis import library, native

    journal = library.open_library()
    spec = native.ModelSpec(Path(request["path"]), use_mmap=False, no_alloc=True)
    model = native.Model(spec, journal)
    sizes: list[Sizes | None] = []
    refusal = ""
    for entry in request["contexts"]:
        try:
            sizes.append(_sizes_here(model, Wanted(**entry), request["threads"], journal))
        except EngineFault as fault:
            sizes.append(None)
            refusal = fault.numbers["detail"]
    counts = [
        len(model.tokenize(text, add_special=False, parse_special=False))
        for text in request["texts"]
    ]
    model.close()
    return Report(tuple(sizes), tuple(counts), refusal)


def _sizes_here(model: "native.Model", wanted: Wanted, threads: int, journal: Journal) -> Sizes:
    """Build one context and read what the library says of it. Raises EngineFault CONTEXT_FAILED."""
    from coscheduler.engines.analysis import sequences

    spec = sequences.ContextSpec(
        wanted.n_ctx,
        wanted.n_batch,
        wanted.kv_type,
        threads,
        sequence_count=wanted.sequence_count,
        flash_attention=wanted.flash_attention,
    )
    context = sequences.Context(model, spec, journal)
    try:
        return Sizes(
            kv_bytes=journal.cache_bytes(),
            compute_bytes=sum(journal.buffers("compute").values()),
            state_bytes=journal.state_bytes(),
            caches=journal.caches(),
        )
    finally:
        context.close()


def main() -> int:
    """Read the request from standard input, print the report as JSON; a fault goes to stderr."""
    die_with_parent(int(sys.argv[1]))
    try:
        with PeakSampler() as peak:
            report = _measure_here(json.load(sys.stdin))
    except EngineFault as fault:
        print(fault.numbers["detail"], file=sys.stderr)
        return 1
    print(json.dumps(asdict(replace(report, peak_bytes=peak.highest_bytes()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
