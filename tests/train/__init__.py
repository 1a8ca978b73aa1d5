"""Tests of the training scripts, which are outside the package."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@contextmanager
def on_path() -> Iterator[None]:
    """The scripts' folder first among those that are imported from."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield
    finally:
        sys.path.remove(str(SCRIPTS))
