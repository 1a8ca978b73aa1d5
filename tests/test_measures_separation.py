"""scripts/measure separation and separation_memory: their arithmetic and limits, no measuring."""

import importlib
import io
import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
separation = importlib.import_module("measures.separation")  # below scripts/, not installed
memory = importlib.import_module("measures.separation_memory")


def test_fewer_rounds_than_seven_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        separation.main(["--rounds", "6"])
    assert caught.value.code == 2
    assert "at least 7" in capsys.readouterr().err


def test_rounds_are_interleaved_and_change_their_order() -> None:
    seen: list[str] = []
    work = {name: (lambda name=name: seen.append(name)) for name in "ab"}
    found = separation.interleaved(work, 4)
    assert "".join(seen) == "ab" + "abba" * 2
    assert set(found["processor_s"]) == {"a", "b"}
    ratios = separation.with_ratios(found, [("a", "a")])
    assert ratios["processor_ratios"]["a / a"]["median"] == pytest.approx(1)
    assert "all_processor_s" not in ratios


# ---- memory ------------------------------------------------------------------------------------

MIB = 2**20


def found(measured_mib: int, predicted_mib: int, is_limit: bool) -> dict[str, object]:
    return {
        "measured_peak_bytes": measured_mib * MIB,
        "predicted_peak_bytes": predicted_mib * MIB,
        "is_limit": is_limit,
    }


@pytest.mark.parametrize(
    ("measured_mib", "predicted_mib", "is_limit", "is_within"),
    [
        (100, 116, False, True), (100, 117, False, False), (117, 100, False, False),
        (1000, 1050, False, True), (1000, 1051, False, False), (1051, 1000, False, True),
        (10, 400, True, True), (401, 400, True, False),
    ],
)  # fmt: skip
def test_a_row_is_within_five_percent_or_16_mib_and_a_limit_is_a_limit(
    measured_mib: int, predicted_mib: int, is_limit: bool, is_within: bool
) -> None:
    row = memory.judged(found(measured_mib, predicted_mib, is_limit))
    assert row["is_within"] is is_within


def test_rows_are_kept_as_they_come_and_replace_their_own_kind(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "memory.json"
    one = {"size": "tiny", "precision": "int8", "length": 10, "option": "int8", "is_within": True}
    other = {**one, "length": 60}
    for row in (one, other, {**one, "is_within": False}):
        memory.keep(path, row)
    assert json.loads(path.read_text())["rows"] == [other, {**one, "is_within": False}]


def test_another_process_is_read_from_outside() -> None:
    with memory.Outside(os.getpid()) as outside:
        while not outside.highest_bytes:
            pass
    assert outside.highest_bytes >= MIB
    with memory.Outside(2**22 + 1):  # no such process: it ends by itself
        pass


def test_the_last_line_counts_and_none_is_nothing() -> None:
    assert memory.last_line(io.StringIO('begins\n{"a": 1}\n')) == {"a": 1}
    assert memory.last_line(io.StringIO("")) == {}


def test_an_option_that_is_not_offered_is_refused_with_the_names() -> None:
    with pytest.raises(SystemExit, match="there are"):
        memory.picked((), "float64")


def test_noise_is_as_long_as_asked_for(tmp_path: Path) -> None:
    memory.write_noise(tmp_path / "a.wav", 3)
    assert (tmp_path / "a.wav").stat().st_size == 44 + 3 * 2 * 48_000
