"""What it costs the language model to come back: its weights, and what it had read."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from coscheduler.engines.analysis import library, native, sequences, states
from measures._ratios import ratio

Step = Callable[[], None]


def in_turns(rounds: int, ways: dict[str, tuple[Step, Step]]) -> dict[str, list[float]]:
    """Seconds of each way, round by round; before each its own preparation, not timed."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in sorted(ways, reverse=bool(number % 2)):
            prepare, step = ways[name]
            prepare()
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return times


def told(times: dict[str, list[float]], ours: str, theirs: str) -> dict[str, Any]:
    """Medians, and the ratio of the first to the second."""
    return {
        "medians_s": {name: median(taken) for name, taken in times.items()},
        "ratio": vars(ratio(times[ours], times[theirs])),
        "ratio_of": f"{ours} / {theirs}",
    }


def sessions(model: Path, folder: Path, threads: int, rounds: int, tokens: int) -> dict[str, Any]:
    """A conversation of so many tokens restored from a file, against reading it again."""
    journal = library.open_library()
    loaded = native.Model(native.ModelSpec(model, use_mmap=False), journal)
    n_ctx = -(-(tokens + 256) // 256) * 256
    context = sequences.Context(
        loaded, sequences.ContextSpec(n_ctx, 256, "f16", threads, sequence_count=2), journal
    )
    text = [20 + 7 * index % 200 for index in range(tokens)]
    kept = states.States(folder / "sessions", 2**40, {})

    def read() -> None:
        for start in range(0, tokens, 256):
            context.decode(text[start : start + 256], 0)

    def restore() -> None:
        found = kept.longest(text)
        assert found is not None
        assert kept.restore(found, context, 1) == tokens

    def empty() -> None:
        context.rewind(0, 0)
        context.rewind(0, 1)

    read()
    assert kept.save(context, 0, "session", text)
    size = sum(path.stat().st_size for path in (folder / "sessions").iterdir())
    times = in_turns(rounds, {"restored": (empty, restore), "read_again": (empty, read)})
    context.close()
    loaded.close()
    return told(times, "restored", "read_again") | {"tokens": tokens, "state_bytes": size}


def reloads(model: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Load and read 64 tokens: weights copied or mapped, the file in the page cache or not."""
    journal = library.open_library()

    def come(use_mmap: bool) -> None:
        loaded = native.Model(native.ModelSpec(model, use_mmap=use_mmap), journal)
        spec = sequences.ContextSpec(256, 64, "f16", threads)
        context = sequences.Context(loaded, spec, journal)
        context.decode([20 + index for index in range(64)])
        context.close()
        loaded.close()

    def context_alone() -> None:
        spec = sequences.ContextSpec(256, 64, "f16", threads)
        sequences.Context(resident, spec, journal).close()

    def forget() -> None:
        with model.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def fetch() -> None:
        with model.open("rb") as file:
            while file.read(2**22):
                pass

    resident = native.Model(native.ModelSpec(model, use_mmap=False), journal)
    ways = {
        "loaded_warm": (fetch, lambda: come(False)),
        "loaded_cold": (forget, lambda: come(False)),
        "mapped_warm": (fetch, lambda: come(True)),
        "mapped_cold": (forget, lambda: come(True)),
        "context_alone": (fetch, context_alone),
    }
    times = in_turns(rounds, ways)
    resident.close()
    weights = {"weights_bytes": model.stat().st_size}
    return told(times, "mapped_warm", "loaded_warm") | weights
