import pytest

from coscheduler.core.model import Line, LineBytes, Option, RunLine


def option(*run: RunLine) -> Option:
    return Option("x", (LineBytes(Line.WEIGHTS, 7),), run, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("duration_ms", "held"),
    [(0, 100), (1, 130), (30_000, 130), (30_001, 160), (60_000, 160), (600_000, 190)],
)
def test_a_line_grows_by_whole_steps_up_to_its_maximum(duration_ms: int, held: int) -> None:
    line = RunLine(Line.KV_CACHE, 100, bytes_per_second=1, seconds_max=90, seconds_step=30)
    assert line.at(duration_ms) == LineBytes(Line.KV_CACHE, held)


def test_lines_of_one_phase_add_up_and_the_largest_phase_counts() -> None:
    run = (
        RunLine(Line.WORKSPACE, 10, phase="detect"),
        RunLine(Line.WORKSPACE, 1, bytes_per_second=3, seconds_max=60, phase="text"),
        RunLine(Line.KV_CACHE, 2, phase="text"),
    )
    assert option(*run).run_lines(1000) == (LineBytes(Line.WORKSPACE, 10),)
    lines = option(*run).run_lines(4000)
    assert lines == (LineBytes(Line.WORKSPACE, 13), LineBytes(Line.KV_CACHE, 2))
    assert option(*run).peak_bytes(4000) == 7 + 15


def test_an_option_without_run_lines_holds_what_is_resident() -> None:
    assert option().run_lines(5000) == ()
    assert option().peak_bytes(5000) == 7
