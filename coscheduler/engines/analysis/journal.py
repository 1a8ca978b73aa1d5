"""What llama.cpp says of itself: its log, forwarded to `logging`, and the sizes in it."""

import logging
import re
from collections import deque
from typing import ClassVar

from coscheduler.engines.analysis.footprint import Cache

log = logging.getLogger("coscheduler.engines.analysis.llama")

JOURNAL_LINES_MAX = 512
MIB = 1024 * 1024
# ggml's levels: 1 debug, 2 info, 3 warning, 4 error. One step lower here: it warns about every
# context, and an error that matters becomes an EngineFault with its text.
_LEVELS = {3: logging.INFO, 4: logging.WARNING}
_DEBUG, _ERROR = 1, 4
_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size =\s*([\d.]+) MiB")
_CACHE = re.compile(r"llama_(?:kv_cache|memory_recurrent)\w*: size =\s*([\d.]+) MiB")
_KV_CACHE = re.compile(
    r"llama_kv_cache: size =\s*[\d.]+ MiB \(\s*(\d+) cells,\s*(\d+) layers.*"
    r" K \(\w+\):\s*([\d.]+) MiB, V \(\w+\):\s*([\d.]+) MiB"
)
_STATE = re.compile(r"llama_memory_recurrent: size =\s*([\d.]+) MiB")


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
