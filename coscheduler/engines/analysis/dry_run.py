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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coscheduler.engines.forkserver import die_with_parent
from coscheduler.errors import EngineFault

SECONDS_MAX = 120


@dataclass(frozen=True)
class Sizes:
    """What one context would take, bytes, as the library says (rounded to 0.01 MiB)."""

    kv_bytes: int
    compute_bytes: int


def measure(
    path: Path, contexts: Sequence[tuple[int, str]], n_batch: int, threads: int
) -> tuple[Sizes, ...]:
    """Sizes for each (n_ctx, KV type), about a second in all.

    Raises EngineFault MODEL_UNSUPPORTED when this llama.cpp cannot build the model or a context.
    """
    request = {
        "path": str(path),
        "contexts": list(contexts),
        "n_batch": n_batch,
        "threads": threads,
        "parent_pid": os.getpid(),
    }
    command = [sys.executable, "-m", __spec__.name, json.dumps(request)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _unsupported(path, f"no answer within {SECONDS_MAX} s") from None
    if done.returncode != 0:
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise _unsupported(path, last or f"exit status {done.returncode}")
    return tuple(Sizes(**entry) for entry in json.loads(done.stdout))


def _unsupported(path: Path, why: str) -> EngineFault:
    return EngineFault(
        "MODEL_UNSUPPORTED", f"llama.cpp cannot work with {path}: {why}", path=path, detail=why
    )


def _measure_here(request: dict[str, Any]) -> list[Sizes]:
    """The child's side."""
    from coscheduler.engines.analysis import native

    journal = native.open_library()
    spec = native.ModelSpec(Path(request["path"]), use_mmap=False, no_alloc=True)
    model = native.Model(spec, journal)
    sizes = []
    for n_ctx, kv_type in request["contexts"]:
        wanted = native.ContextSpec(n_ctx, request["n_batch"], kv_type, request["threads"])
        context = native.Context(model, wanted, journal)
        sizes.append(Sizes(journal.cache_bytes(), sum(journal.buffers("compute").values())))
        context.close()
    model.close()
    return sizes


def main() -> int:
    """Read the request from the command line, print the sizes as JSON; a fault goes to stderr."""
    request = json.loads(sys.argv[1])
    die_with_parent(request["parent_pid"])
    try:
        sizes = _measure_here(request)
    except EngineFault as fault:
        print(fault.numbers["detail"], file=sys.stderr)
        return 1
    print(json.dumps([asdict(entry) for entry in sizes]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
