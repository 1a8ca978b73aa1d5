"""`coscheduler jobs ...`: what each command does."""

import time
from collections.abc import Iterable

from coscheduler.cli import say
from coscheduler.cli.view import Watching, job_table, outcome
from coscheduler.client import Client, JobSnapshot
from coscheduler.client.results import metrics

PAGE_SIZE_MAX = 200


def full_name(name: str) -> str:
    """The resource name of a job that was named by it or by its ID alone."""
    return name if "/" in name else f"jobs/{name}"


def show_list(server: str | None, limit: int, as_json: bool) -> None:
    """Print the newest `limit` jobs."""
    found: list[JobSnapshot] = []
    token = ""
    with Client(server) as client:
        while len(found) < limit:
            page, token = client.list_jobs(min(limit - len(found), PAGE_SIZE_MAX), token)
            found += page
            if not token:
                break
    if as_json:
        say.print_json({"jobs": [metrics(snapshot) for snapshot in found]})
    elif found:
        say.console().print(job_table(found, time.time_ns() // 1_000_000))
    else:
        say.console().print("no jobs")


def show_one(server: str | None, name: str, as_json: bool) -> None:
    """Print a job as it stands."""
    with Client(server) as client:
        snapshot = client.get_job(full_name(name))
    if as_json:
        say.print_json({**metrics(snapshot), "waiting_for": snapshot.waiting_for})
        return
    say.console().print(outcome(metrics(snapshot)))
    if snapshot.waiting_for:
        say.console().print(f"waiting for {snapshot.waiting_for}", markup=False)


def follow(server: str | None, name: str, as_json: bool) -> bool:
    """Show a job until it ends; whether it succeeded."""
    console = say.console(as_json=as_json)
    with Client(server) as client, Watching(console) as view:
        for snapshot in client.watch_job(full_name(name)):
            view.job(snapshot.job.title or snapshot.job.name, snapshot)
    console.print(outcome(metrics(snapshot)))
    if as_json:
        say.print_json(metrics(snapshot))
    return snapshot.job.state.name == "SUCCEEDED"


def cancel(server: str | None, names: Iterable[str]) -> None:
    """Ask jobs to end and say how they stand."""
    with Client(server) as client:
        for name in names:
            snapshot = client.cancel_job(full_name(name))
            say.console().print(f"{snapshot.job.name}: {snapshot.job.state}", markup=False)


def delete(server: str | None, names: Iterable[str]) -> None:
    """Delete jobs and say so."""
    with Client(server) as client:
        for name in names:
            client.delete_job(full_name(name))
            say.console().print(f"{full_name(name)}: deleted", markup=False)
