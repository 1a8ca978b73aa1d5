"""The arithmetic of scripts/measure memory and streaming: what counts as kept, what as broken."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
memory = importlib.import_module("measures.memory")  # below scripts/, not installed
streaming = importlib.import_module("measures.streaming")
MIB = 1024 * 1024


def under_cap(**changes: int) -> dict[str, Any]:
    row = {"cap_bytes": 1000, "highest_bytes": 900, "predicted_peak_bytes": 880}
    return {"option": "full", "measured_peak_bytes": 890, **row, **changes}


def test_a_byte_above_the_cap_is_a_broken_promise() -> None:
    assert memory.broken_promises(under_cap(highest_bytes=1000)) == []
    assert memory.broken_promises(under_cap(highest_bytes=1001)) != []


def test_a_peak_may_be_off_by_a_twentieth_or_a_little() -> None:
    def broken(predicted: int, measured: int) -> list[str]:
        row = under_cap(predicted_peak_bytes=predicted, measured_peak_bytes=measured)
        found: list[str] = memory.broken_promises(row)
        return found

    assert broken(10 * MIB, 26 * MIB) == []
    assert broken(950 * MIB, 1000 * MIB) == broken(1050 * MIB, 1000 * MIB) == []
    assert broken(949 * MIB, 1000 * MIB) and broken(1051 * MIB, 1000 * MIB)


def test_the_curve_keeps_its_highest_point() -> None:
    readings = [(number / 1000, number % 97) for number in range(5000)]
    curve = memory.thinned(readings)
    assert len(curve) <= memory.CURVE_POINTS + 1
    assert max(size for _, size in curve) == 96


def test_a_pass_is_held_against_the_larger_of_computing_and_copying() -> None:
    chosen = argparse.Namespace(blocks=4)
    seconds = {"kept 4": [8.0] * 7, "kept 0": [12.0] * 7, "copying": [3.0] * 7}
    row = streaming.row(chosen, 0, seconds, 4)
    assert (row["compute_s"], row["transfer_s"]) == (8.0, 12.0)
    assert row["over_bound"]["median"] == 1.0
    assert row["model_s"] == pytest.approx(12.0)


def test_a_part_that_fits_the_slots_is_not_copied() -> None:
    seconds = {"kept 4": [8.0] * 7, "kept 2": [8.0] * 7, "copying": [30.0] * 7}
    assert streaming.row(argparse.Namespace(blocks=4), 2, seconds, 4)["transfer_s"] == 0


def test_five_numbers_with_both_ends() -> None:
    assert streaming.spread((12, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0))[::4] == [12, 0]
    assert len(streaming.spread((12, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0))) == 5
