"""Describe one engine of a config: `python -m ...describe PARENT_PID CONFIG ENGINE`.

A process of its own, because a file that breaks a reader must break nothing else.

The answer is one JSON object on the last line of standard output: {"model", "context_bytes",
"options": [{"name", "peak_bytes", "host_bytes", "quality_tier"}]}, peaks for a recording of the
given length; or {"error": {"kind", "reason", "message", "numbers"}}.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from coscheduler import config
from coscheduler.core.model import EngineName
from coscheduler.engines.forkserver import die_with_parent
from coscheduler.errors import CoschedulerError, EngineFault

SECONDS_MAX = 300
DURATION_MS = 600_000


def ask(path: Path, engine: EngineName) -> dict[str, Any]:
    """The answer of such a process; one that died without a word is an error, too."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(os.getpid()), str(path), str(engine)],
        capture_output=True, encoding="utf-8", errors="replace", timeout=SECONDS_MAX, check=False,
    )  # fmt: skip
    try:
        told: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    except json.JSONDecodeError:
        last = done.stderr.strip().rpartition("\n")[2]
        fault = EngineFault(
            "ENGINE_CRASHED", f"describing it ended with status {done.returncode}: {last}"
        )
        return _error(fault)
    return told


def answer(path: Path, engine: EngineName) -> dict[str, Any]:
    """The engine as it describes itself, from headers alone."""
    from coscheduler.engines.host import make_engine

    try:
        found = make_engine(engine, config.load(path)).describe()
    except CoschedulerError as error:
        return _error(error)
    except ImportError as error:
        text = f"there is no {error.name}: pip install 'coscheduler[{engine}]'"
        return _error(EngineFault("LIBRARY_MISSING", text, missing=error.name))
    return {
        "model": found.model,
        "context_bytes": found.context_bytes,
        "options": [
            {
                "name": option.name,
                "peak_bytes": option.peak_bytes(DURATION_MS),
                "host_bytes": option.host_bytes,
                "quality_tier": option.quality_tier,
            }
            for option in found.options
        ],
    }


def _error(error: CoschedulerError) -> dict[str, Any]:
    parts = {"kind": error.kind, "reason": error.reason, "message": error.message}
    return {"error": {**parts, "numbers": error.numbers}}


def main() -> None:
    """Answer, also when a library prints something of its own before."""
    parent, path, engine = sys.argv[1:]
    die_with_parent(int(parent))
    print("\n" + json.dumps(answer(Path(path), EngineName(engine))), flush=True)


if __name__ == "__main__":
    main()
