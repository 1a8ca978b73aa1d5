"""Processes that hold one way of doing something ready, and do a round of it when asked."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Worker = subprocess.Popen[str]


@contextmanager
def worker(measure: str, arguments: Sequence[object]) -> Iterator[Worker]:
    """The measure again, in a process of its own; it ends when its input does."""
    command = [sys.executable, sys.argv[0], measure, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        process.wait()


def ask(process: Worker) -> dict[str, float]:
    """One round of a worker."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    row: dict[str, float] = answer(process)
    return row


def answer(process: Worker) -> Any:
    """The next line that a worker prints, from JSON."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline())
