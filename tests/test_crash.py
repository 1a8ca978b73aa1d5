"""kill -9 of the daemon at moments of chance, with real clients: nothing accepted is ever lost."""

import contextlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coscheduler.client import Client, InputRef, JobRequest, JobState, StageKind, StageRequest
from coscheduler.client.requests import Plan
from coscheduler.errors import CoschedulerError
from tests.runtime.support import recording
from tests.runtime.test_children import wait_until_dead

CONFIG = """
engines = "fake"
[store]
data_dir = "store"
disk_free_bytes_min = 0
[device]
memory_cap = "512 MiB"
headroom = 0
[separation]
model = "x"
text_encoder = "x"
[transcription]
model = "x"
[analysis]
model = "x"
"""
STAGES = (
    StageRequest(StageKind.SEPARATE, {"prompt": "speech"}),
    StageRequest(StageKind.TRANSCRIBE, {}),
    StageRequest(StageKind.ANALYZE, {"template": "summary"}),
)


@contextmanager
def daemon(folder: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A real `coscheduler serve`; killed at the end if it still runs."""
    address = f"unix:{folder / 'd.sock'}"
    command = [sys.executable, "-m", "coscheduler", "serve", "--config", str(folder / "c.toml")]
    with (folder / "daemon.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--listen", address], stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"listening on {address}\n", (
            folder / "daemon.log"
        ).read_text()
        yield process, address
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "c.toml").write_text(CONFIG)
    (tmp_path / "talk.wav").write_bytes(recording(2))
    return tmp_path


def engine_pids(client: Client) -> list[int]:
    return [view.pid for view in client.gpu().engines if view.pid]


def submit_until_killed(client: Client, path: Path, accepted: dict[str, str]) -> None:
    """Upload and create jobs until the daemon is gone; note what it said yes to."""
    with contextlib.suppress(CoschedulerError):
        for index in range(200):
            source = client.upload(path)
            request_id = f"{path.parent.name}-{index}"
            request = JobRequest(request_id, STAGES, InputRef(artifact=source.name))
            accepted[client.create_job(request).job.name] = request_id


@pytest.mark.parametrize("seed", range(3))
def test_accepted_jobs_survive_a_killed_daemon(folder: Path, seed: int) -> None:
    accepted: dict[str, str] = {}
    pids: list[int] = []
    with daemon(folder) as (process, address), Client(address) as client:
        first = client.submit(folder / "talk.wav", Plan(separate="speech", analyze="summary"))
        accepted[first.job.name] = first.job.request_id
        worker = threading.Thread(
            target=submit_until_killed, args=(client, folder / "talk.wav", accepted)
        )
        worker.start()
        time.sleep(random.Random(seed).uniform(0.2, 2.0))  # the moment of chance is the point
        pids = engine_pids(client)
        process.kill()
        process.wait()
        assert wait_until_dead(pids), "an engine outlived its daemon by 2 s"
        worker.join()
    with daemon(folder) as (_, address), Client(address) as client:
        for name, request_id in accepted.items():
            final = list(client.watch_job(name))[-1].job
            assert (final.state, final.request_id) == (JobState.SUCCEEDED, request_id), final
            assert all(stage.outputs for stage in final.stages)
            for stage in final.stages:
                for output in stage.outputs:
                    client.download(client.get_artifact(output.artifact), folder / "out")
        names = {path.name for path in (folder / "store" / "artifacts").iterdir()}
        assert not [name for name in names if name.endswith(".part")]
        assert names == known_artifacts(client)
    assert accepted


def known_artifacts(client: Client) -> set[str]:
    names: set[str] = set()
    token = ""
    while True:
        page, token = client.list_artifacts(page_size=100, page_token=token)
        names |= {artifact.name.removeprefix("artifacts/") for artifact in page}
        if not token:
            return names


def test_a_terminated_daemon_stops_cleanly_and_leaves_no_engine(folder: Path) -> None:
    with daemon(folder) as (process, address), Client(address) as client:
        job = client.submit(folder / "talk.wav", Plan(separate="speech"))
        list(client.watch_job(job.job.name))
        pids = engine_pids(client)
        assert pids
        process.terminate()
        assert process.wait(20) == 0
    assert wait_until_dead(pids)
    assert not (folder / "d.sock").exists()
