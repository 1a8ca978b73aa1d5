"""The arithmetic of scripts/measure, and its list of names."""

import importlib
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from coscheduler.chat import ChatDone

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
ratio = importlib.import_module("measures._ratios").ratio  # below scripts/, not installed
length = importlib.import_module("measures.length")


def test_a_ratio_is_taken_round_by_round() -> None:
    found = ratio([2.0, 20.0, 4.0], [1.0, 10.0, 2.0])
    assert (found.median, found.low, found.high, found.rounds) == (2, 2, 2, 3)


def test_the_interval_holds_the_median_and_is_the_same_every_time() -> None:
    ours = [1.0, 1.1, 0.9, 1.3, 1.0, 0.8, 1.2]
    found = ratio(ours, [1.0] * 7)
    assert found.low <= found.median <= found.high
    assert found.low < found.high
    assert ratio(ours, [1.0] * 7) == found


def test_rounds_of_different_number_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


def test_without_a_name_the_names_are_said() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "measure"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "analysis" in done.stdout


def test_the_queue_keeps_its_length_while_decisions_are_timed(tmp_path: Path) -> None:
    scheduling = importlib.import_module("measures.scheduling")
    world = scheduling.World(14 * scheduling.GIB, job_count=7)
    assert world.go(300) > 0
    assert len(world.jobs) in (6, 7), "at most one is about to be replaced"
    assert min(int(job.name[5:]) for job in world.jobs) > 7, "those it began with are done"
    assert scheduling.main(["--jobs", "3", "--events", "5", "--out", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out").read_text())["rows"]
    assert [len(row["us_per_event"]) for row in rows] == [7, 7]


def answered(first_token_ms: int, load_ms: int) -> ChatDone:
    return ChatDone("stop", 1, 1, 0, 0, load_ms, 0, 0, first_token_ms)


def test_a_promise_of_time_is_of_the_99th_of_a_hundred_without_the_load() -> None:
    preemption = importlib.import_module("measures.preemption")
    tries = [answered(700 + n, 600) for n in range(98)]
    kept = preemption.summary([*tries, answered(290, 0), answered(9_000, 0)], 240, 0, 1)
    assert kept["over_load_ms"] == {"p50": 150, "p99": 290, "max": 9_000} and kept["is_kept"]
    broken = preemption.summary([*tries, answered(291, 0), answered(9_000, 0)], 240, 0, 1)
    assert not broken["is_kept"]
    assert "promised 290 (240 of them the slice)" in preemption.told(broken)


def test_clips_lie_within_the_recording_and_their_words_are_compared_by_their_own_time() -> None:
    starts = length.clip_starts(600, 60.0, 3)
    assert starts[0] >= 0 and starts[-1] + 60 < 600
    assert all(later - earlier > 60 for earlier, later in pairwise(starts))
    heard = [(0, "so", 1.0), (0, "far", 2.0), (1, "so", 1.05), (1, "far", 2.5), (2, "bar", 1.0)]
    words = [{"word": word, "start": starts[clip] + at} for clip, word, at in heard]
    found = length.compared([*words, {"word": "um", "start": 100.0}], starts, 60.0)
    assert found["clips_with_the_same_words"] == 2 and found["words_in_a_clip"] == 2
    assert (found["close_words"], found["compared_words"], found["words_elsewhere"]) == (1, 2, 1)
