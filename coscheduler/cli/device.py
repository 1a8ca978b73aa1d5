"""What `coscheduler gpu` and the commands below it do."""

from collections.abc import Callable
from dataclasses import asdict

from rich.live import Live

from coscheduler.cli import say, view
from coscheduler.client import Client, GpuSnapshot


def show(server: str | None, *, watch: bool, as_json: bool) -> None:
    """Print the device once, or with every change until interrupted."""
    console = say.console()
    with Client(server) as client:
        if not watch:
            _print(client.gpu(), as_json)
        elif console.is_terminal and not as_json:
            _live(client)
        else:
            for snapshot in client.watch_gpu():
                _print(snapshot, as_json)


def change(server: str | None, ask: Callable[[Client], GpuSnapshot], as_json: bool) -> None:
    """Ask for a change and print the device as it is then."""
    with Client(server) as client:
        _print(ask(client), as_json)


def set_budget(server: str | None, size: str, as_json: bool) -> None:
    """Set the budget and print the device. Raises InvalidInput SIZE_INVALID."""
    from coscheduler.cli.sizes import parse_size

    budget_bytes = parse_size(size)
    change(server, lambda client: client.set_budget(budget_bytes), as_json)


def _print(snapshot: GpuSnapshot, as_json: bool) -> None:
    if as_json:
        say.print_json(asdict(snapshot))
    else:
        say.console().print(view.gpu(snapshot))


def _live(client: Client) -> None:
    with Live(console=say.console(), auto_refresh=False) as live:
        for snapshot in client.watch_gpu():
            live.update(view.gpu(snapshot), refresh=True)
