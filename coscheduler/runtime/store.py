"""Jobs, artifacts and engine processes in SQLite: what must survive.

One thread does all the work of the database (a connection belongs to one thread, and there is one
writer anyway); the event loop awaits it. WAL with synchronous=FULL: what a call has written when it
returns is there after a power cut. Records are JSON documents beside the few columns that are
searched.
"""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from coscheduler.core.model import Job
from coscheduler.errors import NotFound, Refused, StoreFault
from coscheduler.runtime.api import Artifact

T = TypeVar("T")
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    name TEXT PRIMARY KEY, request_id TEXT NOT NULL UNIQUE, arrival_ms INTEGER NOT NULL,
    is_final INTEGER NOT NULL, document TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS jobs_by_arrival ON jobs (arrival_ms DESC, name DESC);
CREATE TABLE IF NOT EXISTS artifacts (
    name TEXT PRIMARY KEY, job TEXT NOT NULL, created_ms INTEGER NOT NULL, document TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS artifacts_by_time ON artifacts (created_ms DESC, name DESC);
CREATE TABLE IF NOT EXISTS processes (pid INTEGER PRIMARY KEY, start_ticks INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS measurements (
    engine TEXT NOT NULL, model TEXT NOT NULL, what TEXT NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (engine, model, what));
"""

_JOB: TypeAdapter[Job] = TypeAdapter(Job)
_ARTIFACT: TypeAdapter[Artifact] = TypeAdapter(Artifact)


class Store:
    """The database of one data directory, locked against a second daemon."""

    def __init__(self, connection: sqlite3.Connection, lock_fd: int, thread: ThreadPoolExecutor):
        self._connection = connection
        self._lock_fd = lock_fd
        self._thread = thread

    @classmethod
    async def open(cls, data_dir: Path) -> "Store":
        """Open or create. Raises Refused STORE_IN_USE or STORE_TOO_NEW, StoreFault."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        try:
            connection, lock_fd = await asyncio.get_running_loop().run_in_executor(
                thread, _open, data_dir
            )
        except BaseException:
            thread.shutdown()
            raise
        return cls(connection, lock_fd, thread)

    async def close(self) -> None:
        """Close the database and let another daemon have the directory."""
        await self._call(self._connection.close)
        self._thread.shutdown()
        os.close(self._lock_fd)

    # ---- jobs --------------------------------------------------------------------------------

    async def add_job(self, job: Job) -> Job:
        """Insert a job, or return the one that already has this request_id."""

        def work() -> Job:
            with self._connection:
                self._connection.execute(
                    "INSERT INTO jobs VALUES (?, ?, ?, ?, ?) ON CONFLICT (request_id) DO NOTHING",
                    _job_row(job),
                )
            return self._one_job("request_id", job.request_id)

        return await self._call(work)

    async def put_jobs(self, jobs: Iterable[Job]) -> None:
        """Replace records, all in one transaction."""
        rows = [(job.state.is_final, _dump(_JOB, job), job.name) for job in jobs]

        def work() -> None:
            with self._connection:
                self._connection.executemany(
                    "UPDATE jobs SET is_final = ?, document = ? WHERE name = ?", rows
                )

        await self._call(work)

    async def get_job(self, name: str) -> Job:
        """Raises NotFound JOB_NOT_FOUND."""
        return await self._call(lambda: self._one_job("name", name))

    async def job_by_request(self, request_id: str) -> Job | None:
        """The job that was created with this request_id."""

        def work() -> Job | None:
            try:
                return self._one_job("request_id", request_id)
            except NotFound:
                return None

        return await self._call(work)

    async def unfinished_jobs(self) -> list[Job]:
        """Oldest first."""

        def work() -> list[Job]:
            rows = self._connection.execute(
                "SELECT document FROM jobs WHERE NOT is_final ORDER BY arrival_ms, name"
            )
            return [_JOB.validate_json(row[0]) for row in rows]

        return await self._call(work)

    async def list_jobs(self, count: int, before: tuple[int, str] | None) -> list[Job]:
        """Newest first, starting after the (arrival_ms, name) of the last page's last one."""
        rows = await self._page("jobs", "arrival_ms", count, before, "")
        return [_JOB.validate_json(row) for row in rows]

    async def delete_job(self, name: str) -> None:
        """The record only."""
        await self._execute("DELETE FROM jobs WHERE name = ?", name)

    # ---- artifacts ---------------------------------------------------------------------------

    async def add_artifacts(self, artifacts: Iterable[Artifact]) -> None:
        """Insert records, all in one transaction."""
        rows = [(a.name, a.job, a.created_ms, _dump(_ARTIFACT, a)) for a in artifacts]

        def work() -> None:
            with self._connection:
                self._connection.executemany("INSERT INTO artifacts VALUES (?, ?, ?, ?)", rows)

        await self._call(work)

    async def get_artifact(self, name: str) -> Artifact:
        """Raises NotFound ARTIFACT_NOT_FOUND."""

        def work() -> Artifact:
            row = self._connection.execute(
                "SELECT document FROM artifacts WHERE name = ?", (name,)
            ).fetchone()
            if row is None:
                raise NotFound("ARTIFACT_NOT_FOUND", f"there is no {name}", artifact=name)
            return _ARTIFACT.validate_json(row[0])

        return await self._call(work)

    async def list_artifacts(
        self, count: int, before: tuple[int, str] | None, job: str = ""
    ) -> list[Artifact]:
        """Newest first; only those that `job` made, when it is given."""
        rows = await self._page("artifacts", "created_ms", count, before, job)
        return [_ARTIFACT.validate_json(row) for row in rows]

    async def delete_artifact(self, name: str) -> None:
        """The record only."""
        await self._execute("DELETE FROM artifacts WHERE name = ?", name)

    # ---- processes and measurements ----------------------------------------------------------

    async def add_process(self, pid: int, start_ticks: int) -> None:
        """An engine process was started."""
        await self._execute("INSERT OR REPLACE INTO processes VALUES (?, ?)", pid, start_ticks)

    async def take_processes(self) -> list[tuple[int, int]]:
        """The (pid, start_ticks) that an earlier daemon left; they are forgotten."""

        def work() -> list[tuple[int, int]]:
            with self._connection:
                rows = self._connection.execute("SELECT pid, start_ticks FROM processes").fetchall()
                self._connection.execute("DELETE FROM processes")
            return [(int(pid), int(ticks)) for pid, ticks in rows]

        return await self._call(work)

    async def put_measurement(self, engine: str, model: str, what: str, size_bytes: int) -> None:
        """Keep a measured size for the next start."""
        await self._execute(
            "INSERT OR REPLACE INTO measurements VALUES (?, ?, ?, ?)",
            engine, model, what, size_bytes,
        )  # fmt: skip

    async def get_measurement(self, engine: str, model: str, what: str) -> int | None:
        """A size measured by an earlier daemon, bytes."""

        def work() -> int | None:
            row = self._connection.execute(
                "SELECT bytes FROM measurements WHERE engine = ? AND model = ? AND what = ?",
                (engine, model, what),
            ).fetchone()
            return None if row is None else int(row[0])

        return await self._call(work)

    # ---- how ---------------------------------------------------------------------------------

    def _one_job(self, column: str, value: str) -> Job:
        row = self._connection.execute(
            f"SELECT document FROM jobs WHERE {column} = ?",  # noqa: S608 - a literal of this file
            (value,),
        ).fetchone()
        if row is None:
            raise NotFound("JOB_NOT_FOUND", f"there is no {value}", job=value)
        return _JOB.validate_json(row[0])

    async def _page(
        self, table: str, column: str, count: int, before: tuple[int, str] | None, job: str
    ) -> list[str]:
        where, values = ["1"], list[Any]()
        if before is not None:
            where.append(f"({column}, name) < (?, ?)")
            values += before
        if job:
            where.append("job = ?")
            values.append(job)
        query = (
            f"SELECT document FROM {table} WHERE {' AND '.join(where)} "  # noqa: S608 - literals
            f"ORDER BY {column} DESC, name DESC LIMIT ?"
        )
        rows = await self._call(
            lambda: self._connection.execute(query, (*values, count)).fetchall()
        )
        return [row[0] for row in rows]

    async def _execute(self, statement: str, *values: object) -> None:
        def work() -> None:
            with self._connection:
                self._connection.execute(statement, values)

        await self._call(work)

    async def _call(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            raise StoreFault("STORE_ERROR", f"the database failed: {error}") from error


def _open(data_dir: Path) -> tuple[sqlite3.Connection, int]:
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock_fd = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreFault("STORE_UNUSABLE", f"cannot use {data_dir}: {error.strerror}") from error
    try:
        _lock(lock_fd, data_dir)
        connection = sqlite3.connect(data_dir / "store.sqlite3")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        _migrate(connection)
    except sqlite3.Error as error:
        os.close(lock_fd)
        raise StoreFault("STORE_UNUSABLE", f"{data_dir}: {error}", path=data_dir) from error
    except BaseException:
        os.close(lock_fd)
        raise
    return connection, lock_fd


def _lock(lock_fd: int, data_dir: Path) -> None:
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(lock_fd, 32, 0).decode().strip()
        raise Refused(
            "STORE_IN_USE",
            f"another daemon (process {pid}) uses {data_dir}; stop it, or set store.data_dir",
            pid=pid,
            path=data_dir,
        ) from None
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)


def _migrate(connection: sqlite3.Connection) -> None:
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found > SCHEMA_VERSION:
        connection.close()
        raise Refused(
            "STORE_TOO_NEW",
            f"the store has version {found}, this program knows {SCHEMA_VERSION}; upgrade it",
            found=found,
            known=SCHEMA_VERSION,
        )
    connection.executescript(SCHEMA)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _job_row(job: Job) -> tuple[str, str, int, bool, str]:
    return (job.name, job.request_id, job.arrival_ms, job.state.is_final, _dump(_JOB, job))


def _dump(adapter: TypeAdapter[Any], value: object) -> str:
    return adapter.dump_json(value).decode()
