"""scripts/measure separation: its arithmetic and its limits; the measuring itself is no test."""

import importlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
separation = importlib.import_module("measures.separation")  # below scripts/, not installed


def test_fewer_rounds_than_seven_are_refused() -> None:
    script = str(ROOT / "scripts" / "measure")
    command = [sys.executable, script, "separation", "--rounds", "6"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "at least 7" in done.stderr


def test_rounds_are_interleaved_and_change_their_order() -> None:
    seen: list[str] = []
    work = {name: (lambda name=name: seen.append(name)) for name in "ab"}
    found = separation.interleaved(work, 4)
    assert "".join(seen) == "ab" + "abba" * 2
    assert set(found["processor_s"]) == {"a", "b"}
    ratios = separation.with_ratios(found, [("a", "a")])
    assert ratios["processor_ratios"]["a / a"]["median"] == pytest.approx(1)
    assert "all_processor_s" not in ratios


def test_a_peak_is_seen_though_it_is_gone_afterwards() -> None:
    before = separation.anonymous_bytes("self")

    def work() -> None:
        held = np.ones(64 * 2**20, np.uint8)
        end = time.monotonic() + 5 * separation.SAMPLE_SECONDS
        while time.monotonic() < end:
            held[0] = 2

    assert separation.watched(work) - before >= 48 * 2**20


def test_a_failure_while_watching_ends_the_watching() -> None:
    def fail() -> None:
        raise ValueError("gone")

    threads = separation.threading.active_count()
    with pytest.raises(ValueError, match="gone"):
        separation.watched(fail)
    assert separation.threading.active_count() == threads
