"""Bytes predicted from headers against bytes measured from outside the process."""

from pathlib import Path

import pytest

from coscheduler.core.model import total_bytes
from coscheduler.engines import messages as msg
from tests.engines.transcription.conftest import MEETING, Child

MIB = 1024 * 1024
pytestmark = pytest.mark.timeout(300)  # the first of them may start a process with torch


def assert_close(predicted: int, measured: int) -> None:
    assert abs(predicted - measured) <= max(predicted * 5 // 100, 16 * MIB), (
        f"predicted {predicted / MIB:.1f} MiB, measured {measured / MIB:.1f} MiB"
    )


@pytest.mark.parametrize("index", range(4))
def test_what_is_predicted_is_what_is_measured(child: Child, index: int) -> None:
    option = child.describe()[index]
    child.ask(msg.UnloadOption())
    child.load(option)
    assert_close(total_bytes(option.resident), child.grown_bytes())
    ran = child.run(MEETING)
    assert_close(option.peak_bytes(24_700), ran.peak_bytes)
    assert_close(total_bytes(option.resident), child.grown_bytes())


def test_a_batch_of_two_windows_takes_the_memory_of_two(child: Child, long_recording: Path) -> None:
    option = child.describe()[0]
    child.load(option)
    ran = child.run(long_recording, {"align": False})
    assert_close(option.peak_bytes(49_400), ran.peak_bytes)


def test_unloading_and_loading_does_not_add_up(child: Child, clip: Path) -> None:
    option = child.describe()[0]
    child.ask(msg.UnloadOption())
    before = child.grown_bytes()
    for _ in range(3):
        child.load(option)
        child.run(clip, {"align": False})
        child.ask(msg.UnloadOption())
    assert child.grown_bytes() - before < 3 * MIB
    assert child.grown_bytes() < 16 * MIB
