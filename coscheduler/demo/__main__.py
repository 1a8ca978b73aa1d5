"""The demonstration, as `scripts/demo` runs it: a daemon, one recording, three stages, the results.

    python -m coscheduler.demo [--json] [--out DIR] [--config FILE] [--recording FILE]

With `--json` people's text goes to stderr, and the last line on stdout is the job's metrics as one
JSON object. Exit codes are those of `coscheduler run`.
"""

import argparse
import signal
import sys
import time
import uuid
from pathlib import Path

from rich.console import Console

from coscheduler.cli import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, private, say
from coscheduler.cli.view import Watching
from coscheduler.client import Client, InputRef, JobRequest, RunResult, StageKind, StageRequest
from coscheduler.demo import report
from coscheduler.errors import CoschedulerError

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = ROOT / "configs" / "demo.toml"
RECORDING = Path(__file__).resolve().parent / "planning.flac"


def main(arguments: list[str]) -> int:
    """Run the demonstration; returns the exit code."""
    options = _options(arguments)
    console = say.console(as_json=options.json)
    signal.signal(signal.SIGTERM, _leave)
    started_s = time.monotonic()
    try:
        result = _serve_and_run(console, options)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except CoschedulerError as error:
        say.explain(error)
        return say.exit_status(error)
    report.show(console, result)
    console.print(f"The whole demonstration took {time.monotonic() - started_s:.0f} s.\n")
    console.print(report.next_steps())
    if options.json:
        say.print_json(result.metrics)
    return EXIT_DONE if result.succeeded else EXIT_FAILED


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Show what coscheduler does.")
    parser.add_argument("--json", action="store_true", help="metrics on the last line of stdout")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "demo", help="for the results")
    parser.add_argument("--config", type=Path, default=CONFIG, help="other models (%(default)s)")
    parser.add_argument("--recording", type=Path, default=RECORDING, help="another (%(default)s)")
    return parser.parse_args(arguments)


def _leave(signal_number: int, frame: object) -> None:
    """A terminated demonstration takes its daemon along, by way of every `finally`."""
    raise SystemExit(128 + signal_number)


def _serve_and_run(console: Console, options: argparse.Namespace) -> RunResult:
    """The daemon has a socket and a store of its own: another one may be at work meanwhile."""
    path, config = options.recording, options.config
    console.print(f"Starting a daemon with {config.name}: small models on the processor.")
    with private.started(config) as address, Client(address) as client, Watching(console) as view:
        console.print(f"It listens on {address}. Sending it {path.name}.")
        return run(client, view, path, options.out / path.stem)


def run(client: Client, view: Watching, path: Path, folder: Path) -> RunResult:
    """One recording through three stages; the files go to `folder`."""
    title = path.name
    recording = client.upload(path, lambda done, total: view.upload(title, done, total))
    snapshot = client.create_job(_request(recording.name, title))
    try:
        for update in client.watch_job(snapshot.job.name):
            snapshot = update
            view.job(title, snapshot)
    except KeyboardInterrupt:
        client.cancel_job(snapshot.job.name)
        say.notice(f"{snapshot.job.name} was cancelled")
        raise
    return RunResult(snapshot, client.fetch(snapshot, folder))


def _request(recording: str, title: str) -> JobRequest:
    """Separate, transcribe, analyze. The transcript is made of the recording itself: the small
    recogniser hears it as well as what a separator leaves of speech.
    """
    source = InputRef(artifact=recording)
    return JobRequest(
        request_id=str(uuid.uuid4()),
        title=title,
        source=source,
        stages=(
            StageRequest(StageKind.SEPARATE, {"prompt": "speech"}),
            StageRequest(StageKind.TRANSCRIBE, {"language": "en"}, input=source),
            StageRequest(StageKind.ANALYZE, {"template": "actions"}),
        ),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
