"""`coscheduler doctor`: what is found here, and what is said of configs that cannot run."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coscheduler import cli, doctor
from coscheduler.core.model import EngineName
from coscheduler.doctor import Finding
from coscheduler.engines import describe

GIB = 1024**3


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def finding(self, what: str) -> Any:
        return next(entry for entry in self.json["findings"] if entry["what"] == what)


Run = Callable[..., Said]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process."""

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["coscheduler", "doctor", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return Said(int(caught.value.code or 0), said.out, said.err)

    return call


def config(folder: Path, model: Path | str, device: str = 'device = "cpu"') -> Path:
    path = folder / "config.toml"
    path.write_text(
        f'[store]\ndata_dir = "store"\n[device]\n{device}\n[analysis]\nmodel = "{model}"\n'
    )
    return path


def test_what_is_whole_will_run(run: Run, tiny_models: Path, tmp_path: Path) -> None:
    said = run("--config", config(tmp_path, tiny_models / "llm-tiny.gguf"), "--json")
    assert said.code == 0 and said.json["ok"] is True
    whats = [entry["what"] for entry in said.json["findings"]]
    assert whats == [
        "system", "config", "device", "RAM", "disk", "analysis libraries", "analysis model",
        "analysis runs",
    ]  # fmt: skip
    assert said.finding("analysis runs")["found"].startswith("n_ctx ")
    assert "quality tier 0" in said.finding("analysis runs")["found"]
    assert "llama-cpp-python 0.3" in said.finding("analysis libraries")["found"]


def test_an_engine_that_dies_while_it_is_described_is_told(tmp_path: Path) -> None:
    answer = describe.ask(tmp_path / "no.toml", EngineName.ANALYSIS)
    assert answer["error"]["reason"] == "CONFIG_MISSING"
    found = doctor.runs(EngineName.ANALYSIS, answer, GIB)
    assert not found.ok and "CONFIG_MISSING" in found.found


def test_what_is_not_there_will_not(run: Run, tmp_path: Path) -> None:
    said = run("--config", config(tmp_path, "no.gguf"))
    assert said.code == 1
    assert f"NO  analysis model: {tmp_path / 'no.gguf'} is not there" in said.out
    assert "put the files there, or name a repository" in said.out
    assert "NO  analysis runs: " in said.out and "2 to be put right" in said.out


ANSWER = {
    "model": "m",
    "context_bytes": GIB,
    "options": [
        {"name": "whole", "peak_bytes": 5 * GIB, "host_bytes": 0, "quality_tier": 0},
        {"name": "coarse", "peak_bytes": GIB, "host_bytes": 2 * GIB, "quality_tier": 1},
    ],
}


@pytest.mark.parametrize(
    ("capacity", "ok", "text"),
    [
        (6 * GIB, True, "whole, quality tier 0, 6 GiB of 6 GiB"),
        (6 * GIB - 1, True, "coarse, quality tier 1, 2 GiB of 6 GiB, 2 GiB of the host"),
        (2 * GIB - 1, False, "needs 2 GiB or more for ten minutes of audio"),
    ],
)
def test_the_best_that_fits_will_run(capacity: int, ok: bool, text: str) -> None:
    found = doctor.runs(EngineName.ANALYSIS, ANSWER, capacity)
    assert found.ok is ok and found.found.startswith(text)
    assert ("raise memory_cap" in found.advice) is not ok


def test_a_config_that_cannot_be_read_is_a_finding(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[device]\ndevice = 1\n")
    said = run("--config", path, "--json")
    assert said.code == 1 and not said.finding("config")["ok"]
    assert "device.device" in said.finding("config")["found"]


@pytest.fixture
def undescribed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that say nothing, where what they say is not the point."""
    error = {"kind": "engine_fault", "reason": "X", "message": "no", "numbers": {}}
    monkeypatch.setattr("coscheduler.engines.describe.ask", lambda *_: {"error": error})


@pytest.mark.usefixtures("undescribed")
def test_a_repository_is_to_be_pulled(run: Run, tmp_path: Path) -> None:
    said = run("--config", config(tmp_path, "hub:no/body/x.gguf"), "--json")
    assert "coscheduler models pull" in said.finding("analysis model")["advice"]


@pytest.mark.usefixtures("undescribed")
def test_a_card_that_is_not_there(
    run: Run, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card with number 99 is nowhere; what its library says is not the point here."""
    monkeypatch.setattr(doctor, "build", lambda engine: Finding("card", False, "none"))
    absent = 'device = "cuda"\nindex = 99'
    said = run("--config", config(tmp_path, tiny_models / "llm-tiny.gguf", absent), "--json")
    assert said.code == 1
    assert 'set [device] device = "cpu"' in said.finding("device")["advice"]
    assert not said.finding("analysis runs")["ok"]


def test_without_a_config_every_engine_s_libraries_are_told(run: Run) -> None:
    said = run("--json")
    told = {entry["what"] for entry in said.json["findings"]}
    assert {f"{engine} libraries" for engine in EngineName} <= told
    assert "torch" in said.finding("separation libraries")["found"]


def test_a_library_that_lacks_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "" if name == "gguf" else real(name))
    found = doctor.libraries(EngineName.ANALYSIS)
    assert not found.ok and "gguf missing" in found.found
    assert found.advice == "pip install 'coscheduler[analysis]'"


@pytest.mark.parametrize(
    ("says", "ok"), [("print('12.8')", True), ("print()", False), ("1/0", False)]
)
def test_a_library_says_itself_whether_it_finds_a_card(
    monkeypatch: pytest.MonkeyPatch, says: str, ok: bool
) -> None:
    monkeypatch.setitem(doctor.PROBES, EngineName.ANALYSIS, ("llama_cpp", says))
    found = doctor.build(EngineName.ANALYSIS)
    assert found.ok is ok and bool(found.advice) is not ok


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from coscheduler.config import parse

    settings = parse({"store": {"data_dir": str(tmp_path / "a" / "b")}}, tmp_path)
    assert doctor.disk(settings).ok
    full = shutil_usage(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    found = doctor.disk(settings)
    assert not found.ok and "at least 256 MiB" in found.advice
    answer = {"options": [{"host_bytes": 2 * GIB}]}
    assert not doctor.prepared(settings, answer).ok


@dataclass
class shutil_usage:  # noqa: N801 (stands in for the function's result)
    free: int
