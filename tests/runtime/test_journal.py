"""The journal: what is written down decides the same again, and its size is bounded."""

import json
from pathlib import Path

import pytest

from coscheduler.core import events as ev
from coscheduler.core.model import JobState
from coscheduler.errors import InvalidInput
from coscheduler.runtime.journal import FILENAME, OLDER_FILENAME, Difference, Journal, Replay
from tests.core.build import S, job
from tests.core.story import Story
from tests.runtime.support import final, recording, request, run, running, settings, upload


def told(folder: Path, bytes_max: int = 1 << 20, jobs: int = 3) -> None:
    """A story with its journal in `folder`."""
    story = Story(capacity=200)
    journal = Journal(folder, bytes_max, story.scheduler.state)
    events: list[ev.Event] = [ev.PinRequested(S, True)]
    for index in range(jobs):
        events.append(ev.Submitted(job(f"jobs/{index:03d}")))
    events.append(ev.Loaded(S, 10, 100, 5))
    events += [ev.StageDone(S, f"jobs/{index:03d}", (), (), 120) for index in range(jobs)]
    for at_ms, event in enumerate(events, start=5_000):
        journal.note(at_ms, event, story.scheduler.handle(event, at_ms))
    journal.close()


def replayed(path: Path) -> tuple[int, list[Difference]]:
    replay = Replay(path.read_bytes().splitlines())
    differences = list(replay.differences())
    return replay.event_count, differences


def test_a_journal_decides_the_same_again(tmp_path: Path) -> None:
    told(tmp_path)
    assert replayed(tmp_path / FILENAME) == (8, [])
    assert (tmp_path / FILENAME).stat().st_mode & 0o777 == 0o600


def test_a_line_that_comes_out_otherwise_is_shown(tmp_path: Path) -> None:
    told(tmp_path)
    path = tmp_path / FILENAME
    lines = path.read_text().splitlines()
    entry = json.loads(lines[2])
    assert entry["commands"] == [
        {"is": "Load", "with": {"engine": "separation", "option": "full", "job": "jobs/000"}}
    ]
    lines[2] = json.dumps({**entry, "commands": []})
    path.write_text("\n".join(lines))
    _, (difference,) = replayed(path)
    assert (difference.line, difference.event) == (3, "Submitted")
    assert difference.recorded["commands"] == [] != difference.replayed["commands"]


def test_a_journal_turns_over_and_both_files_can_be_replayed(tmp_path: Path) -> None:
    told(tmp_path, bytes_max=40_000, jobs=60)
    for name in (FILENAME, OLDER_FILENAME):
        count, differences = replayed(tmp_path / name)
        assert count > 0 and differences == []
    for name in (FILENAME, OLDER_FILENAME):
        entries = (tmp_path / name).read_bytes().partition(b"\n")[2]
        assert len(entries) < 40_000
    assert len(list(tmp_path.iterdir())) == 2


def test_a_line_that_a_crash_cut_short_is_left_out_and_a_broken_one_is_told(tmp_path: Path) -> None:
    told(tmp_path)
    path = tmp_path / FILENAME
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert replayed(path) == (7, [])
    told(tmp_path)
    assert replayed(tmp_path / OLDER_FILENAME) == (7, [])
    assert replayed(path) == (8, [])
    path.write_bytes(whole[:-20] + b"\n" + whole)
    with pytest.raises(InvalidInput) as error:
        replayed(path)
    assert (error.value.reason, error.value.numbers["line"]) == ("JOURNAL_CORRUPT", "9")
    for text in (whole.split(b"\n", 1)[1], whole.replace(b'"Submitted"', b'"Imagined"')):
        path.write_bytes(text)
        with pytest.raises(InvalidInput):
            replayed(path)


def test_a_disk_that_fails_costs_the_journal_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told(tmp_path / "missing")
    assert "the journal ends here" in caplog.text


def test_a_daemon_keeps_a_journal_and_goes_on_with_it_after_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        for request_id in ("a", "b"):
            async with running(settings(tmp_path)) as daemon:
                source = await upload(daemon, recording())
                name = (await daemon.create_job(request(request_id, source))).job.name
                assert (await final(daemon, name)).job.state is JobState.SUCCEEDED
        path = tmp_path / "store" / FILENAME
        count, differences = replayed(path)
        assert differences == []
        assert count > 20
        assert path.read_bytes().count(b'{"state": ') == 2
        off = settings(tmp_path / "off", store={"journal_bytes_max": 0})
        async with running(off) as daemon:
            await upload(daemon, recording())
        assert not (tmp_path / "off" / "store" / FILENAME).exists()

    run(story())
