"""`coscheduler run`: recordings in, results out, all of them at once."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from coscheduler.cli import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_UNREACHABLE
from coscheduler.cli.say import notice
from coscheduler.cli.view import Watching
from coscheduler.client import Artifact, AsyncClient, JobSnapshot, Plan
from coscheduler.client.results import failure_fields, metrics
from coscheduler.client.transfer import clean_name, kind_of, open_source
from coscheduler.core.model import Failure
from coscheduler.errors import CoschedulerError, InvalidInput, Unavailable

CANCEL_SECONDS_MAX = 15.0


@dataclass
class Recording:
    """One recording on its way: what is known of its job, its files, and what went wrong.

    `plan` is what to do with it, where that is not what is done with the others.
    """

    path: Path
    folder: Path
    title: str
    plan: Plan | None = None
    snapshot: JobSnapshot | None = None
    files: dict[str, Path] = field(default_factory=dict)
    error: CoschedulerError | None = None

    @property
    def state(self) -> str:
        """The job's state; FAILED where something else went wrong."""
        if self.snapshot is None or self.error is not None:
            return "FAILED"
        return self.snapshot.job.state.name

    @property
    def metrics(self) -> dict[str, Any]:
        """The job's metrics, in the same shape also where there is no job."""
        if self.snapshot is not None:
            found = metrics(self.snapshot, self.files.values())
        else:
            found = {"job": "", "title": self.title, "state": "", "stages": [], "files": []}
        if self.error is not None:
            numbers = tuple(self.error.numbers.items())
            failure = Failure(self.error.reason, self.error.message, numbers)
            found["failure"] = failure_fields(failure)
        return {"failure": None, **found, "state": self.state}


def prepare(audio: Sequence[Path], out: Path, plan: Plan) -> list[Recording]:
    """Check everything that can be checked before anything is sent.

    Each recording has a folder below `out`, named as the file without its suffix; equal names get
    -2, -3 and so on. Raises InvalidInput.
    """
    for path in audio:
        plan.check(kind_of(path))
        open_source(path).close()
    taken: set[str] = set()
    recordings = []
    for path in audio:
        name = _free_name(path.stem, taken)
        taken.add(name)
        title = clean_name(path) + name.removeprefix(path.stem)
        recordings.append(Recording(path, out / name, title))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        text = f"cannot write to {out}: {error.strerror}"
        raise InvalidInput("OUT_UNWRITABLE", text, out=out) from None
    return recordings


def _free_name(stem: str, taken: set[str]) -> str:
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem}-{number}", number + 1
    return name


async def run_all(
    address: str, recordings: Sequence[Recording], plan: Plan, view: Watching
) -> bool:
    """Carry every recording out, all at once. True when it was interrupted and jobs were cancelled.

    What became of each stands in the recording; errors of one do not touch the others.
    """
    async with AsyncClient(address) as client:
        tasks: list[asyncio.Task[None]] = []
        try:
            if (sent := await _send_clips(client, plan, recordings)) is None:
                return False
            uploads = _Uploads(client, view)
            tasks += [
                asyncio.create_task(_carry_out(client, one, one.plan or sent, view, uploads))
                for one in recordings
            ]
            await asyncio.gather(*tasks)
        except asyncio.CancelledError:
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(_cancel(client, one) for one in recordings))
            return True
    return False


async def _send_clips(
    client: AsyncClient, plan: Plan, recordings: Sequence[Recording]
) -> Plan | None:
    """The plan with its clips uploaded; None when that failed, which then stands everywhere."""
    try:
        return await client.send_clips(plan)
    except CoschedulerError as error:
        for recording in recordings:
            recording.error = error
        return None


class _Uploads:
    """Files on their way to the daemon, each once however many jobs read it."""

    def __init__(self, client: AsyncClient, view: Watching) -> None:
        self._client = client
        self._view = view
        self._tasks: dict[Path, asyncio.Task[Artifact]] = {}

    async def artifact(self, recording: Recording) -> Artifact:
        """The recording as the daemon has it. Raises CoschedulerError."""
        if recording.path not in self._tasks:
            on_bytes = partial(self._view.upload, recording.title)
            sending = self._client.upload(recording.path, on_bytes)
            self._tasks[recording.path] = asyncio.create_task(sending)
        return await self._tasks[recording.path]


async def _carry_out(
    client: AsyncClient, recording: Recording, plan: Plan, view: Watching, uploads: _Uploads
) -> None:
    try:
        artifact = await uploads.artifact(recording)
        request = plan.request(artifact.name, recording.title)
        recording.snapshot = await _surely(client.create_job(request), recording)
        async for snapshot in client.watch_job(recording.snapshot.job.name):
            recording.snapshot = snapshot
            view.job(recording.title, snapshot)
        recording.files = await client.fetch(recording.snapshot, recording.folder)
    except CoschedulerError as error:
        recording.error = error
    except OSError as error:
        text = f"{recording.title}: {error.strerror or error}"
        recording.error = InvalidInput("FILE_FAILED", text, file=error.filename)


async def _surely(creating: Awaitable[JobSnapshot], recording: Recording) -> JobSnapshot:
    """Wait for the answer even when interrupted: a job whose name is lost cannot be cancelled."""
    task = asyncio.ensure_future(creating)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        recording.snapshot = await task
        raise


async def _cancel(client: AsyncClient, recording: Recording) -> None:
    """Cancel the recording's job and wait, for a while, until it has ended."""
    if recording.snapshot is None or recording.snapshot.job.state.is_final:
        return
    name = recording.snapshot.job.name
    try:
        recording.snapshot = await client.cancel_job(name)
        async with asyncio.timeout(CANCEL_SECONDS_MAX):
            async for snapshot in client.watch_job(name):
                recording.snapshot = snapshot
        notice(f"{recording.title}: {name} is {recording.snapshot.job.state}")
    except TimeoutError:
        notice(f"{recording.title}: {name} was told to stop and has not ended yet")
    except CoschedulerError as error:
        notice(f"{recording.title}: {name} could not be cancelled: {error}")


def exit_code(recordings: Sequence[Recording], interrupted: bool) -> int:
    """The exit code for what became of the recordings."""
    if interrupted:
        return EXIT_INTERRUPTED
    if any(isinstance(one.error, Unavailable) for one in recordings):
        return EXIT_UNREACHABLE
    done = all(one.state == "SUCCEEDED" for one in recordings)
    return EXIT_DONE if done else EXIT_FAILED


def whole(recordings: Sequence[Recording]) -> dict[str, Any]:
    """What --json prints: the metrics of one job, or those of all with the state of the whole.

    The whole is SUCCEEDED when every job is, else FAILED when one is, else the first other state.
    """
    if len(recordings) == 1:
        return recordings[0].metrics
    others = [one.state for one in recordings if one.state != "SUCCEEDED"]
    state = "FAILED" if "FAILED" in others else next(iter(others), "SUCCEEDED")
    return {"jobs": [one.metrics for one in recordings], "state": state}
