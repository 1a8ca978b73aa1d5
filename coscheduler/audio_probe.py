"""Decode an untrusted recording in a process of its own: `python -m coscheduler.audio_probe`.

    python -m coscheduler.audio_probe PATH DURATION_MS_MIN DURATION_MS_MAX

prints one JSON object and exits 0, whatever the file holds: {"ok": {...}} with the fields of
`audio.ProbedAudio`, or {"error": {"reason", "message", "numbers"}}. Any other exit means that the
decoder was killed (a limit, or a fault in a codec): the caller should call the file unreadable.
"""

import json
import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: no pool, little address space

from coscheduler import audio
from coscheduler.errors import InvalidInput

ADDRESS_SPACE_BYTES_MAX = 2 * 1024**3
CPU_SECONDS_MIN = 60
REALTIME_FACTOR_MIN = 50  # a decoder slower than this many times real time is taken to be stuck
OPEN_FILES_MAX = 64


def main(arguments: list[str]) -> int:
    """Probe the file named by `arguments` (path, least and greatest duration in ms)."""
    path, duration_ms_min, duration_ms_max = Path(arguments[0]), *map(int, arguments[1:3])
    _limit(CPU_SECONDS_MIN + duration_ms_max // 1000 // REALTIME_FACTOR_MIN)
    print(json.dumps(_answer(path, duration_ms_min, duration_ms_max)))
    return 0


def _answer(path: Path, duration_ms_min: int, duration_ms_max: int) -> dict[str, Any]:
    try:
        return {"ok": asdict(audio.probe(path, duration_ms_min, duration_ms_max))}
    except InvalidInput as error:
        return {
            "error": {
                "reason": error.reason, "message": error.message, "numbers": error.numbers,
            }
        }  # fmt: skip
    except MemoryError:
        message = f"decoding the recording takes more than {ADDRESS_SPACE_BYTES_MAX} bytes"
        return {"error": {"reason": "AUDIO_UNREADABLE", "message": message, "numbers": {}}}


def _limit(cpu_seconds: int) -> None:
    """Fence this process in for good: address space, CPU time, files, no core dump, no writing."""
    for kind, value in (
        (resource.RLIMIT_AS, ADDRESS_SPACE_BYTES_MAX),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_NOFILE, OPEN_FILES_MAX),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (allowed, allowed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
