"""`coscheduler gpu`: the ledger, once or every second."""

import time
from dataclasses import asdict

from rich.live import Live

from coscheduler.cli import say, view
from coscheduler.client import Client
from coscheduler.runtime.api import GpuSnapshot

WATCH_SECONDS = 1.0


def show(server: str | None, *, watch: bool, as_json: bool) -> None:
    """Print the device once, or again and again until interrupted."""
    console = say.console()
    with Client(server) as client:
        if not watch:
            _print(client.gpu(), as_json)
        elif console.is_terminal and not as_json:
            _live(client)
        else:
            while True:
                _print(client.gpu(), as_json)
                time.sleep(WATCH_SECONDS)


def _print(snapshot: GpuSnapshot, as_json: bool) -> None:
    if as_json:
        say.print_json(asdict(snapshot))
    else:
        say.console().print(view.gpu(snapshot))


def _live(client: Client) -> None:
    with Live(view.gpu(client.gpu()), console=say.console(), auto_refresh=False) as live:
        while True:
            time.sleep(WATCH_SECONDS)
            live.update(view.gpu(client.gpu()), refresh=True)
