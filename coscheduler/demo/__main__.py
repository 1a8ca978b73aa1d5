"""The demonstration, as `scripts/demo` runs it: a daemon, one recording, three stages, the results.

    python -m coscheduler.demo [--json] [--out DIR]

Everything goes through the command line that users have. With `--json` people's text goes to stderr
and the last line on stdout is the job's metrics as one JSON object.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel

from coscheduler.demo import report

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = ROOT / "configs" / "demo.toml"
RECORDING = Path(__file__).resolve().parent / "meeting.flac"
COMMAND = [sys.executable, "-m", "coscheduler"]
STOP_S_MAX = 20.0

STAGES = ["--separate", "speech", "--transcribe", "--language", "en", "--analyze", "summary"]


def main(arguments: list[str]) -> int:
    """Run the demonstration; returns the exit code of `coscheduler run`."""
    options = _options(arguments)
    console = Console(stderr=options.json, highlight=False)
    signal.signal(signal.SIGTERM, _leave)
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="coscheduler-") as scratch:
        code, metrics = _serve_and_run(console, Path(scratch), options.out)
    if metrics is None:
        return code or 1
    report.show(console, metrics, options.out / RECORDING.stem)
    console.print(f"The whole demonstration took {time.monotonic() - started_s:.0f} s.")
    _show_next(console)
    if options.json:
        print(json.dumps(metrics), flush=True)
    return code


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Show what coscheduler does.")
    parser.add_argument("--json", action="store_true", help="metrics on the last line of stdout")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "demo", help="for the results")
    return parser.parse_args(arguments)


def _leave(signal_number: int, frame: object) -> None:
    """A terminated demonstration takes its daemon along, by way of every `finally`."""
    raise SystemExit(128 + signal_number)


def _serve_and_run(console: Console, scratch: Path, out: Path) -> tuple[int, dict[str, Any] | None]:
    console.print("Starting the daemon with configs/demo.toml: tiny models on the processor.")
    with daemon(scratch) as address:
        console.print(f"It listens on {address}. Sending {RECORDING.name} through three engines:")
        console.print("pull the speech out, write it down, sum it up.\n")
        command = [*COMMAND, "--server", address, "run", str(RECORDING), "--out", str(out), *STAGES]
        answer = subprocess.run(
            [*command, "--json"], stdout=subprocess.PIPE, text=True, check=False
        )
    lines = answer.stdout.strip().splitlines()
    return answer.returncode, json.loads(lines[-1]) if lines else None


@contextmanager
def daemon(scratch: Path) -> Iterator[str]:
    """A daemon on a socket of its own in `scratch`; yields its address, stops it afterwards.

    It keeps its jobs where `configs/demo.toml` says, or, when another daemon is working there, in
    `scratch`. Raises SystemExit with the daemon's own words when it does not start.
    """
    log = scratch / "daemon.log"
    address = f"unix:{scratch / 'coscheduler.sock'}"
    for config in (CONFIG, _private_config(scratch)):
        with log.open("a") as stderr:
            process = _start(config, address, stderr.fileno())
        try:
            if _is_ready(process):
                yield address
                return
        finally:
            _stop(process)
    raise SystemExit(f"the daemon did not start:\n{log.read_text().strip()}")


def _start(config: Path, address: str, stderr: int) -> "subprocess.Popen[str]":
    """`serve` in a session of its own: a Ctrl-C reaches the command line, which cancels the job."""
    command = [*COMMAND, "serve", "--config", str(config), "--listen", address]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
    )


def _is_ready(process: "subprocess.Popen[str]") -> bool:
    """Wait for the line that says so; False when the daemon ends without it."""
    assert process.stdout is not None
    return any(line.startswith("listening on") for line in process.stdout)


def _stop(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(timeout=STOP_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _private_config(scratch: Path) -> Path:
    """`configs/demo.toml` with a store in `scratch`; the models and prepared weights are shared."""
    text = CONFIG.read_text(encoding="utf-8")
    text = text.replace('"../.demo/store"', f'"{scratch / "store"}"')
    prepared_dir = ROOT / ".demo" / "store" / "prepared"
    text = text.replace("[separation]", f'[separation]\nprepared_dir = "{prepared_dir}"')
    copy = scratch / "demo.toml"
    copy.write_text(text.replace('"../', f'"{ROOT}/'), encoding="utf-8")
    return copy


def _show_next(console: Console) -> None:
    console.print(
        Panel(
            "The models are tiny and their weights are random, so the words above mean nothing;\n"
            "files, formats, memory and scheduling are the real ones. With real models:\n\n"
            "  1. put them where configs/cpu.toml, 24gb.toml or 4gb.toml says, or edit a copy\n"
            "  2. .venv/bin/coscheduler serve --config configs/24gb.toml\n"
            "  3. .venv/bin/coscheduler run TALK.flac --out results --analyze summary\n\n"
            "While it works: .venv/bin/coscheduler gpu --watch",
            title="What to try next",
            expand=False,
        )
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
