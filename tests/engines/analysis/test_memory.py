"""Bytes predicted from headers against bytes measured from outside the process."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MIB = 1024 * 1024
SHAPE: dict[str, Any] = {
    "layer_count": 4,
    "width": 512,
    "head_count": 8,
    "kv_head_count": 4,
    "feed_forward": 4096,
    "vocab_padding": 30_000,
}
CASES = [
    ("F16", False, "f16"),
    ("F16", True, "q8_0"),
    ("Q4_0", False, "f16"),
    ("Q4_0", True, "f16"),
]


def measured(model: Path, use_mmap: bool, kv_type: str) -> dict[str, int]:
    command = [
        sys.executable,
        str(Path(__file__).with_name("measure_child.py")),
        json.dumps({"model": str(model), "use_mmap": use_mmap, "kv_types": [kv_type]}),
        str(model.parent / "store"),
    ]
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    result: dict[str, int] = json.loads(done.stdout)
    return result


def assert_close(predicted: int, found: int) -> None:
    assert abs(predicted - found) <= max(predicted * 5 // 100, 16 * MIB), (predicted, found)


@pytest.mark.parametrize(("weights", "use_mmap", "kv_type"), CASES)
def test_predicted_bytes_are_the_measured_ones(
    write_model: Callable[..., Path], weights: str, use_mmap: bool, kv_type: str
) -> None:
    model = write_model(weights=weights, **SHAPE)
    seen = measured(model, use_mmap, kv_type)
    assert_close(seen["predicted_resident"], seen["loaded"])
    assert_close(seen["predicted_peak"], seen["peak"])
    assert_close(seen["predicted_resident"], seen["after_run"])
    assert_close(seen["predicted_resident"], seen["after_cancel"])
    assert seen["unloaded"] <= 6 * MIB  # what remains is of the library itself, once
    assert seen["predicted_peak"] > 20 * MIB  # so that the tolerance does not hide everything
