"""Predicted bytes against measured ones, in fresh processes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).parents[3]
MIB = 1024 * 1024


def agrees(predicted: int, measured: int) -> bool:
    return abs(predicted - measured) <= max(0.05 * measured, 16 * MIB)


@pytest.fixture(scope="module")
def measured(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("measured")
    command = [sys.executable, "-m", "tests.engines.separation.measure", str(models), str(out)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_loading_takes_what_the_option_says(measured: dict[str, Any]) -> None:
    assert agrees(**measured["resident"]), measured["resident"]


def test_running_peaks_where_the_option_says(measured: dict[str, Any]) -> None:
    for peak in measured["peaks"]:
        assert agrees(**peak), peak


def test_a_run_leaves_almost_nothing_behind(measured: dict[str, Any]) -> None:
    assert measured["left_after_run"] < 16 * MIB


def test_unloading_returns_the_weights(measured: dict[str, Any]) -> None:
    assert measured["returned_by_unload"] >= 0.95 * measured["resident"]["predicted"]


PREPARE = """
import gc, os, sys, threading
from pathlib import Path
import torch
from coscheduler.engines.streaming import prepared
from coscheduler.engines.streaming.prepared import SegmentPlan, TensorPlan
from coscheduler.runtime.meter import anonymous_bytes

out, count = Path(sys.argv[1]), 4
size = 24 * 1024 * 1024  # elements
torch.save({f"w{i}": torch.ones(size) for i in range(count)}, out / "checkpoint.pt")
source = torch.load(out / "checkpoint.pt", mmap=True, weights_only=True)

def plan(i):
    def fold():
        yield source[f"w{i}"] * 2.0
    return TensorPlan(f"w{i}", (size,), "bfloat16", fold)

plans = (SegmentPlan("a", tuple(plan(i) for i in range(count))),)
gc.collect()  # saving leaves tensors in cycles
base, highest, stop = anonymous_bytes(os.getpid()), [0], threading.Event()

def sample():
    while not stop.wait(0.002):
        highest[0] = max(highest[0], anonymous_bytes(os.getpid()))

thread = threading.Thread(target=sample)
thread.start()
prepared.prepare(out / "x.prepared", "k", plans, out, lambda done, total: None)
stop.set()
thread.join()
print(highest[0] - base, size * 4)
"""


def test_preparing_needs_little_private_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PREPARE, str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    private, largest = map(int, done.stdout.split())
    assert 0 < private <= 3 * largest + 64 * MIB
