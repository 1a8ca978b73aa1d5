"""The command line: `coscheduler` and `python -m coscheduler` are the same."""

import os
import signal
import sys

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells say it


def main() -> None:
    """Run the command line and exit with its status. Errors are one sentence, never a traceback."""
    # Broken connections are told in our own words; grpc's would only repeat them.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from coscheduler.cli.app import app
    from coscheduler.cli.say import exit_status, explain
    from coscheduler.errors import CoschedulerError

    signal.signal(signal.SIGTERM, _terminated)
    try:
        app(prog_name="coscheduler")
    except CoschedulerError as error:
        explain(error)
        sys.exit(exit_status(error))


def _terminated(number: int, frame: object) -> None:
    """Leave by way of every `finally`, so that a daemon started for the call ends with it."""
    sys.exit(128 + number)
