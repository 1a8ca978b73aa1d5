import threading
from collections.abc import Callable

import pytest

from coscheduler.engines.transcription.speakers import stepwise


def test_every_report_is_a_step_and_the_result_comes_last() -> None:
    def run(on_percent: Callable[[float], None]) -> str:
        on_percent(12.7)
        on_percent(99.0)
        return "done"

    steps = stepwise(run)
    assert next(steps) == (12, 100)
    assert next(steps) == (99, 100)
    with pytest.raises(StopIteration) as stopped:
        next(steps)
    assert stopped.value.value == "done"


def test_the_call_waits_while_nobody_asks() -> None:
    reached: list[int] = []

    def run(on_percent: Callable[[float], None]) -> None:
        for percent in range(3):
            reached.append(percent)
            on_percent(percent)

    steps = stepwise(run)
    assert reached == []
    next(steps)
    assert reached == [0]
    next(steps)
    assert reached == [0, 1]
    steps.close()


def test_closing_ends_the_call_at_its_next_report_and_runs_its_clean_up() -> None:
    ended: list[str] = []

    def run(on_percent: Callable[[float], None]) -> None:
        try:
            while True:
                on_percent(1.0)
        finally:
            ended.append("cleaned up")

    before = threading.active_count()
    steps = stepwise(run)
    next(steps)
    steps.close()
    assert ended == ["cleaned up"]
    assert threading.active_count() == before


def test_an_error_of_the_call_is_raised_where_it_is_awaited() -> None:
    def run(on_percent: Callable[[float], None]) -> None:
        on_percent(50.0)
        raise MemoryError("no room")

    steps = stepwise(run)
    next(steps)
    with pytest.raises(MemoryError, match="no room"):
        next(steps)
