"""`coscheduler plan`: the table, the object for programs, the picture, the ways to be wrong."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coscheduler import cli
from coscheduler.cli.plan import parse_link
from coscheduler.errors import InvalidInput

CONFIGS = Path(__file__).parent.parent / "configs"
GIB = 1024**3


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Said]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call `coscheduler plan` in this process, in a home without models."""
    monkeypatch.setenv("HOME", str(tmp_path))

    def call(name: str, *arguments: object) -> Said:
        given = ["coscheduler", "plan", "--config", str(CONFIGS / f"{name}.toml")]
        monkeypatch.setattr(sys, "argv", [*given, *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return Said(int(caught.value.code or 0), said.out, said.err)

    return call


def test_the_table_says_who_has_what(run: Run) -> None:
    said = run("24gb")
    assert said.code == 0
    assert "22.0 GiB to share out, beside 768 MiB of headroom" in said.out
    assert "over a link of 24 GB/s" in said.out
    for text in (
        "separate", "transcribe", "analyze", "n_gpu_layers 41 of 41", "kv_cache 1.25 GiB",
        "of 22 layers stay", "float16, batch", "prepared_file", "quality tier 0",
    ):  # fmt: skip
        assert text in said.out


def test_what_gives_way_is_said_and_what_would_be_better(run: Run) -> None:
    said = run("4gb")
    assert "analysis gives way: " in said.out
    assert "out: no process, nothing on the device" in said.out
    assert "transcription would run at a better tier from " in said.out
    assert "analysis would run faster from " in said.out


def test_a_budget_and_a_link_of_ones_own(run: Run) -> None:
    wide = run("24gb", "--budget", "6 GiB", "--json").json
    assert wide["capacity_bytes"] == 6 * GIB - wide["headroom_bytes"]
    slow = run("24gb", "--budget", "6 GiB", "--link", "1 GB/s", "--json").json
    times = [[stage["predicted_ms"] for stage in plan["stages"]] for plan in (wide, slow)]
    assert all(fast <= late for fast, late in zip(*times, strict=True)) and times[0] != times[1]
    longer = run("24gb", "--minutes", "60", "--json").json
    assert longer["stages"][0]["predicted_ms"] > wide["stages"][0]["predicted_ms"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture(run: Run, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "deep" / f"plan.{suffix}"
    assert run("24gb", "--plot", target).code == 0
    start = target.read_bytes()[:100]
    assert start.startswith(b"\x89PNG") if suffix == "png" else b"<?xml" in start


def test_without_matplotlib_it_is_said_what_lacks(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "coscheduler.cli.plan_plot", raising=False)
    said = run("24gb", "--plot", tmp_path / "plan.png")
    assert said.code == 1 and "[PLOT_UNAVAILABLE" in said.err and "matplotlib" in said.err


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--budget", "2 GiB"], 1, "NEVER_FITS"),
        (["--budget", "much"], 2, "SIZE_INVALID"),
        (["--budget", "100 MiB"], 2, "BUDGET_TOO_SMALL"),
        (["--link", "fast"], 2, "LINK_INVALID"),
        (["--link", "24 GB"], 2, "LINK_INVALID"),
        (["--plot", "/dev/null/x.png"], 2, "OUT_UNWRITABLE"),
    ],
)
def test_wrong_in_one_sentence(run: Run, arguments: list[str], code: int, reason: str) -> None:
    said = run("24gb", *arguments)
    assert said.code == code
    assert said.out == "" and said.err.count("\n") == 1 and f"[{reason}" in said.err


def test_links_are_read_as_they_are_written() -> None:
    assert parse_link("24 GB/s") == parse_link("24GB/S") == 24_000_000
    assert parse_link("1.5 GiB/s") == 1_610_612
    with pytest.raises(InvalidInput):
        parse_link("0 GB/s")


def test_no_library_of_an_engine_is_needed(tmp_path: Path) -> None:
    """A module that is None in sys.modules cannot be imported."""
    libraries = "torch numpy transformers ctranslate2 llama_cpp gguf whisperx huggingface_hub"
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({libraries!r}.split()))\n"
        "from coscheduler.cli import main; main()"
    )
    arguments = ["plan", "--config", str(CONFIGS / "4gb.toml"), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["stages"]) == 3
