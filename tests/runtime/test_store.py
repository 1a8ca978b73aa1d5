import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from coscheduler.core.model import Failure, JobState, StageKind
from coscheduler.errors import NotFound, Refused, StoreFault
from coscheduler.runtime.store import Store
from tests.core.build import job
from tests.runtime.support import run


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    async def story() -> None:
        store = await Store.open(tmp_path)
        made = replace(
            job("jobs/1", *StageKind),
            failure=Failure("X", "y", (("n", "1"),)),
            state=JobState.FAILED,
        )
        assert await store.add_job(made) == made
        assert await store.add_job(replace(made, name="jobs/2")) == made  # the same request_id
        await store.put_jobs([replace(made, finished_ms=9)])
        await store.close()
        again = await Store.open(tmp_path)
        assert await again.get_job("jobs/1") == replace(made, finished_ms=9)
        assert await again.unfinished_jobs() == []
        with pytest.raises(NotFound):
            await again.get_job("jobs/2")
        await again.close()

    run(story())


def test_processes_and_measurements_are_kept(tmp_path: Path) -> None:
    async def story() -> None:
        store = await Store.open(tmp_path)
        await store.add_process(7, 70)
        await store.put_measurement("analysis", "m", "context", 5)
        await store.put_measurement("analysis", "m", "context", 6)
        await store.close()
        again = await Store.open(tmp_path)
        assert await again.take_processes() == [(7, 70)]
        assert await again.take_processes() == []
        assert await again.get_measurement("analysis", "m", "context") == 6
        assert await again.get_measurement("analysis", "other", "context") is None
        await again.close()

    run(story())


def test_a_store_of_a_newer_program_is_not_touched(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "store.sqlite3")
    connection.execute("PRAGMA user_version = 99")
    connection.close()

    async def story() -> None:
        with pytest.raises(Refused, match="version 99"):
            await Store.open(tmp_path)

    run(story())


def test_a_store_that_is_no_database_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite3").write_bytes(b"not a database" * 100)

    async def story() -> None:
        with pytest.raises(StoreFault):
            await Store.open(tmp_path)

    run(story())
