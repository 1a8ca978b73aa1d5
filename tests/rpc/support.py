"""Helpers: tests that are coroutines, and a real server around the fake daemon."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from coscheduler.client import Backoff
from coscheduler.config import Settings
from coscheduler.rpc.server import Front, open_front
from tests.rpc.fake_daemon import FakeDaemon

QUICK = Backoff(first_ms=10, max_ms=50, patience_ms=5_000)
TEST_SECONDS_MAX = 30


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a coroutine as a test, with a time limit; its fixtures work as usual."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), TEST_SECONDS_MAX))

    return run


def settings_for(folder: Path, **server: Any) -> Settings:
    """Settings with a socket in `folder` and a short drain."""
    values = {"listen": f"unix:{folder / 'd.sock'}", "drain_ms_max": 500, **server}
    return Settings.model_validate({"server": values})


@asynccontextmanager
async def serving(
    folder: Path, daemon: FakeDaemon | None = None, **server: Any
) -> AsyncIterator[tuple[FakeDaemon, Front]]:
    """A real server on a real socket in `folder`."""
    daemon = daemon or FakeDaemon()
    front = await open_front(daemon, settings_for(folder, **server))
    try:
        yield daemon, front
    finally:
        await front.close()


async def eventually(condition: Callable[[], bool]) -> None:
    """Give way to the loop until the condition holds (the test's time limit ends it otherwise)."""
    while not condition():  # noqa: ASYNC110 the conditions are of foreign objects without events
        await asyncio.sleep(0.005)
