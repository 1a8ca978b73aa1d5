"""`coscheduler gpu ...` and `coscheduler run --dry-run`, against a daemon in memory."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_cli import ROOT, SECONDS_MAX, Run, audio, fake_daemon, run

__all__ = ["audio", "run"]  # fixtures


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A daemon of each test's own: these change it."""
    with fake_daemon(tmp_path) as address:
        yield address


def test_controls_print_the_device_as_it_is_then(run: Run, server: str) -> None:
    gpu = ("--server", server, "gpu")
    assert "4.00 GiB" in run(*gpu, "budget", "4 GiB").out
    assert run(*gpu, "load", "separation", "--option", "k=24", "--json").json["engines"][0][
        "option"
    ] == "k=24"  # fmt: skip
    assert "running, pinned" in run(*gpu, "pin", "separation").out.replace("loaded", "running")
    assert "pinned" not in run(*gpu, "unpin", "separation").out
    assert run(*gpu, "unload", "separation", "--json").json["engines"][0]["state"] == "stopped"
    assert "draining" in run(*gpu, "drain").out
    assert "draining" not in run(*gpu, "drain", "--end").out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["budget", "much"], "SIZE_INVALID"), (["pin", "toaster"], "toaster")],
)
def test_wrong_usage_is_exit_2(run: Run, server: str, arguments: list[str], told: str) -> None:
    said = run("--server", server, "gpu", *arguments)
    assert said.code == 2
    assert told in said.err


def test_watch_prints_each_state_until_interrupted(server: str) -> None:
    command = [sys.executable, "-m", "coscheduler", "--server", server, "gpu", "--watch", "--json"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    subprocess.run([*command[:5], "gpu", "drain"], check=True, capture_output=True, cwd=ROOT)
    second = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS_MAX)
    assert (first["is_draining"], second["is_draining"]) == (False, True)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_a_dry_run_says_what_would_happen_and_leaves_nothing(
    run: Run, server: str, audio: Path, tmp_path: Path
) -> None:
    call = ["run", audio, "--out", tmp_path / "o", "--separate", "speech", "--dry-run"]
    said = run("--server", server, *call)
    assert said.code == 0, said.err
    assert "analysis: f16" in said.out and "100 MiB" in said.out
    assert "waits for memory: 1 bytes needed" in said.out
    planned = run("--server", server, *call, "--json").json["plans"][0]
    assert planned["stages"][0]["evicted"] == ["analysis: f16"]
    assert planned["refusal"] is None and planned["expected_ms"] > 0
    assert run("--server", server, "jobs", "list", "--json").json["jobs"] == []
    assert not list((tmp_path / "o").glob("*"))


def test_a_dry_run_that_is_refused_is_exit_1_with_the_numbers(
    run: Run, server: str, audio: Path, tmp_path: Path
) -> None:
    call = ["run", audio, "--out", tmp_path / "o", "--dry-run", "--quality-min", "0"]
    said = run("--server", server, *call)
    assert said.code == 1
    assert "would be refused: too little memory [QUALITY_TOO_LOW, required_bytes=7]" in said.out
