"""The command `coscheduler gpu` and those below it; what they do is in `device.py`."""

from typing import Annotated

import typer

from coscheduler.cli import EXIT_INTERRUPTED
from coscheduler.cli.options import Json, examples
from coscheduler.core.model import EngineName

gpu_app = typer.Typer(rich_markup_mode="rich")
Engine = Annotated[EngineName, typer.Argument(metavar="ENGINE", help=", ".join(EngineName))]


@gpu_app.callback(
    invoke_without_command=True,
    epilog=examples(
        "coscheduler gpu --watch",
        "coscheduler gpu --json",
        'coscheduler gpu budget "8 GiB"',
        "coscheduler gpu pin analysis",
    ),
)
def gpu(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Again with every change.")] = False,
    as_json: Json = False,
) -> None:
    """Show who holds which bytes of the device, as bars, and what each engine is doing.

    The commands below change it while the daemon runs.
    """
    if context.invoked_subcommand is not None:
        return
    from coscheduler.cli import device

    try:
        device.show(context.obj, watch=watch, as_json=as_json)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


@gpu_app.command(epilog=examples('coscheduler gpu budget "8 GiB"', "coscheduler gpu budget 0"))
def budget(
    context: typer.Context,
    size: Annotated[str, typer.Argument(metavar="SIZE", help='"8 GiB"; 0: as the config says.')],
    as_json: Json = False,
) -> None:
    """Set how many bytes the engines may hold together, until the daemon ends.

    When it shrinks, idle engines leave and stages that rank last go back into the queue.
    """
    from coscheduler.cli import device

    device.set_budget(context.obj, size, as_json)


@gpu_app.command()
def load(
    context: typer.Context,
    engine: Engine,
    option: Annotated[
        str, typer.Option(metavar="NAME", help="One of its options. (default: the best that fits)")
    ] = "",
    as_json: Json = False,
) -> None:
    """Bring an engine into memory before any job needs it."""
    from coscheduler.cli import device

    device.change(context.obj, lambda client: client.load_engine(engine, option), as_json)


@gpu_app.command()
def unload(context: typer.Context, engine: Engine, as_json: Json = False) -> None:
    """Take an engine's memory back as soon as it is idle."""
    from coscheduler.cli import device

    device.change(context.obj, lambda client: client.unload_engine(engine), as_json)


@gpu_app.command()
def pin(context: typer.Context, engine: Engine, as_json: Json = False) -> None:
    """Keep an engine in memory once it is there: nothing evicts it, and it may be idle."""
    from coscheduler.cli import device

    device.change(context.obj, lambda client: client.pin_engine(engine, True), as_json)


@gpu_app.command()
def unpin(context: typer.Context, engine: Engine, as_json: Json = False) -> None:
    """Let an engine be evicted and leave when idle, as usual."""
    from coscheduler.cli import device

    device.change(context.obj, lambda client: client.pin_engine(engine, False), as_json)


@gpu_app.command(epilog=examples("coscheduler gpu drain", "coscheduler gpu drain --end"))
def drain(
    context: typer.Context,
    end: Annotated[bool, typer.Option("--end", help="Start things again.")] = False,
    as_json: Json = False,
) -> None:
    """Start nothing any more: stages that run may end, jobs are accepted and wait."""
    from coscheduler.cli import device

    if end:
        device.change(context.obj, lambda client: client.end_drain(), as_json)
    else:
        device.change(context.obj, lambda client: client.drain(), as_json)
