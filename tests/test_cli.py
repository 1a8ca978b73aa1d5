"""The command line against a daemon in memory: exit codes, files, what is said, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coscheduler import cli
from coscheduler.cli import private, say
from coscheduler.client import Client, InputRef, JobRequest, JobState, StageKind, StageRequest
from coscheduler.errors import InvalidInput, NotFound, Unavailable

ROOT = Path(__file__).resolve().parent.parent
FAKE = [sys.executable, "-m", "tests.rpc.fake_daemon"]
ALL_FILES = {
    "target.wav", "residual.wav", "transcript.json", "transcript.srt", "transcript.vtt",
    "transcript.txt", "transcript.tsv", "analysis.json", "metrics.json",
}  # fmt: skip
STAGE_KEYS = {
    "stage", "state", "wait_ms", "load_ms", "run_ms", "predicted_peak_bytes",
    "measured_peak_bytes", "real_time_factor", "option", "evicted",
}  # fmt: skip
SECONDS_MAX = 30


@dataclass
class Said:
    """What a call of the command line left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out.splitlines()[-1])


Run = Callable[..., Said]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a fake daemon in a process of its own."""
    with fake_daemon(tmp_path_factory.mktemp("daemon")) as address:
        yield address


@contextmanager
def fake_daemon(folder: Path) -> Iterator[str]:
    command = [*FAKE, "--listen", f"unix:{folder}/d.sock"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().removeprefix("listening on ").strip()
    finally:
        process.terminate()
        assert process.wait(SECONDS_MAX) == 0
        process.stdout.close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Call the command line in this process."""
    handler = signal.getsignal(signal.SIGTERM)
    for name in ("COSCHEDULER_SERVER", "COSCHEDULER_CONFIG"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["coscheduler", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return Said(int(caught.value.code or 0), said.out, said.err)

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    path = tmp_path / "meeting.wav"
    path.write_bytes(b"RIFF and so on")
    return path


def full(audio: Path, out: Path) -> list[object]:
    return ["run", audio, "--out", out, "--separate", "speech", "--analyze", "summary"]


def test_run_writes_every_file_and_prints_the_metrics(
    run: Run, server: str, audio: Path, tmp_path: Path
) -> None:
    said = run("--server", server, *full(audio, tmp_path / "out"), "--json")
    assert said.code == 0, said.err
    folder = tmp_path / "out" / "meeting"
    assert {path.name for path in folder.iterdir()} == ALL_FILES
    assert len(said.out.splitlines()) == 1
    metrics = said.json
    assert metrics == json.loads((folder / "metrics.json").read_text())
    assert metrics["state"] == "SUCCEEDED"
    assert [stage["stage"] for stage in metrics["stages"]] == ["separate", "transcribe", "analyze"]
    assert all(stage.keys() >= STAGE_KEYS for stage in metrics["stages"])
    assert {Path(path).name for path in metrics["files"]} == ALL_FILES
    assert all(Path(path).exists() for path in metrics["files"])
    assert "meeting.wav: transcribe: done" in said.err


def test_run_for_people_prints_a_table_and_no_json(
    run: Run, server: str, audio: Path, tmp_path: Path
) -> None:
    said = run("--server", server, *full(audio, tmp_path / "out"))
    assert said.code == 0
    assert "SUCCEEDED" in said.out
    assert "100 MiB" in said.out
    assert str(tmp_path / "out" / "meeting" / "target.wav") in said.out
    assert "{" not in said.out


def test_equal_stems_get_folders_of_their_own(
    run: Run, server: str, audio: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "meeting.flac"
    third = tmp_path / "third" / "meeting.wav"
    for path in (other, third):
        path.parent.mkdir()
        path.write_bytes(b"x")
    said = run("--server", server, "run", audio, other, third, "--out", tmp_path / "o", "--json")
    assert said.code == 0, said.err
    assert {path.name for path in (tmp_path / "o").iterdir()} == {
        "meeting", "meeting-2", "meeting-3",
    }  # fmt: skip
    assert said.json["state"] == "SUCCEEDED"
    assert len({job["job"] for job in said.json["jobs"]}) == 3


def test_names_of_any_bytes_are_carried_out(run: Run, server: str, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9 \x1b[31m[red].wav")
    path.write_bytes(b"x")
    said = run("--server", server, "run", path, "--out", tmp_path / "o", "--json")
    assert said.code == 0, said.err
    assert said.json["title"] == "caf? \x1b[31m[red].wav"
    assert all(Path(name).exists() for name in said.json["files"])
    assert "\x1b" not in said.err


def test_failed_job_is_exit_1_with_reason_and_numbers(
    run: Run, server: str, audio: Path, tmp_path: Path
) -> None:
    call = ["run", audio, "--out", tmp_path / "o", "--separate", "fail"]
    said = run("--server", server, *call, "--json")
    assert said.code == 1
    assert said.json["state"] == "FAILED"
    assert said.json["failure"]["reason"] == "MODEL_CORRUPT"
    assert (tmp_path / "o" / "meeting" / "metrics.json").exists()
    assert "the model is damaged [MODEL_CORRUPT, offset_bytes=7]" in said.err


def test_one_bad_recording_does_not_stop_the_others(
    run: Run, server: str, audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coscheduler.client import AsyncClient

    upload = AsyncClient.upload

    async def refuse(self: AsyncClient, path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == "bad.wav":
            raise InvalidInput("AUDIO_UNREADABLE", "bad.wav is not audio", size_bytes=1)
        return await upload(self, path, *args, **kwargs)

    monkeypatch.setattr(AsyncClient, "upload", refuse)
    (tmp_path / "bad.wav").write_text("x")
    said = run(
        "--server", server, "run", tmp_path / "bad.wav", audio, "--out", tmp_path / "o", "--json"
    )
    assert said.code == 1
    assert said.json["state"] == "FAILED"
    bad, good = said.json["jobs"]
    assert (bad["state"], bad["job"], bad["stages"]) == ("FAILED", "", [])
    assert bad["failure"]["numbers"] == {"size_bytes": "1"}
    assert good["state"] == "SUCCEEDED"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--no-transcribe"], "NO_STAGES"),
        (["--analyze", "poem"], "TEMPLATE_UNKNOWN"),
        (["--analyze", "summary", "--prompt", "why?"], "PARAMETER_INVALID"),
        (["--no-transcribe", "--analyze", "summary"], "TRANSCRIPT_NEEDED"),
        (["--language", "en-GB"], "PARAMETER_INVALID"),
        (["--priority", "urgent"], "urgent"),
    ],
)
def test_wrong_usage_is_exit_2_before_anything_is_sent(
    run: Run, audio: Path, tmp_path: Path, arguments: list[str], told: str
) -> None:
    nobody = f"unix:{tmp_path}/nobody"
    said = run("--server", nobody, "run", audio, "--out", tmp_path / "o", *arguments)
    assert said.code == 2
    assert told in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("arguments", [["nonsense"], ["run"], ["run", "none.wav", "--out", "o"]])
def test_unknown_command_or_missing_file_is_exit_2(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).code == 2


def test_output_folder_that_cannot_be_made_is_exit_2(run: Run, audio: Path, tmp_path: Path) -> None:
    said = run("--server", "unix:/x", "run", audio, "--out", audio / "below")
    assert said.code == 2
    assert "OUT_UNWRITABLE" in said.err


@pytest.mark.parametrize(
    "arguments", [["jobs", "list"], ["jobs", "watch", "1"], ["gpu"], ["run"]], ids=" ".join
)
def test_no_server_is_exit_3_with_its_address(
    run: Run, audio: Path, tmp_path: Path, arguments: list[object]
) -> None:
    if arguments == ["run"]:
        arguments = ["run", audio, "--out", tmp_path / "o"]
    said = run("--server", f"unix:{tmp_path}/nobody", *arguments)
    assert said.code == 3
    assert said.err.startswith(f"error: no daemon answers at unix:{tmp_path}/nobody")
    assert "[SERVER_UNREACHABLE]" in said.err


def test_server_from_the_environment(
    run: Run, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COSCHEDULER_SERVER", server)
    assert run("gpu").code == 0


def submit(server: str, request_id: str, prompt: str = "hang") -> str:
    stage = StageRequest(StageKind.SEPARATE, {"prompt": prompt})
    with Client(server) as client:
        artifact = InputRef(artifact="artifacts/0")
        return client.create_job(JobRequest(request_id, (stage,), artifact)).job.name


def test_jobs_list_show_cancel_watch_delete(run: Run, server: str) -> None:
    name = submit(server, "jobs-test")
    on_server = ("--server", server, "jobs")
    listed = run(*on_server, "list", "--limit", "1", "--json").json["jobs"]
    assert [job["job"] for job in listed] == [name]
    assert name in run(*on_server, "list").out
    assert run(*on_server, "show", name, "--json").json["job"] == name
    assert "separate" in run(*on_server, "show", name.removeprefix("jobs/")).out

    refused = run(*on_server, "delete", name)
    assert refused.code == 1
    assert "JOB_NOT_FINAL" in refused.err
    assert run(*on_server, "cancel", name).code == 0
    watched = run(*on_server, "watch", name, "--json")
    assert watched.code == 1, "a cancelled job is not a success"
    assert watched.json["state"] == "CANCELLED"
    assert run(*on_server, "delete", name).out == f"{name}: deleted\n"
    gone = run(*on_server, "show", name)
    assert gone.code == 1
    assert "JOB_NOT_FOUND" in gone.err


def test_watch_of_a_job_that_succeeds_is_exit_0(run: Run, server: str) -> None:
    name = submit(server, "watch-test", prompt="speech")
    said = run("--server", server, "jobs", "watch", name)
    assert said.code == 0
    assert "SUCCEEDED" in said.out


def test_gpu_shows_bars_and_json(run: Run, server: str) -> None:
    said = run("--server", server, "gpu")
    assert said.code == 0
    assert "██" in said.out
    assert "8.79 GiB of 19.5 GiB" in said.out
    assert "another program holds 1000 MiB" in said.out
    as_json = run("--server", server, "gpu", "--json").json
    assert as_json["capacity_bytes"] == 20_000 * 1024 * 1024
    assert as_json["lines"][2]["state"] == "releasing"
    assert as_json["engines"][0]["option"] == "k=12"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def test_ctrl_c_cancels_the_jobs_and_says_so(server: str, audio: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.wav"
    second.write_bytes(b"x")
    command = [
        sys.executable, "-m", "coscheduler", "--server", server, "run", str(audio), str(second),
        "--out", str(tmp_path / "o"), "--separate", "hang", "--json",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stderr is not None
    running = 0
    while running < 2:
        running += "separate: running" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS_MAX)
    assert process.returncode == 130
    said = Said(130, out, err)
    assert said.json["state"] == "CANCELLED"
    for job in said.json["jobs"]:
        assert f"{job['job']} is cancelled" in err
        with Client(server) as client:
            assert client.get_job(job["job"]).job.state is JobState.CANCELLED
    assert "Traceback" not in err


def test_ctrl_c_ends_a_watch_and_not_the_job(server: str) -> None:
    name = submit(server, "left-alone")
    command = [sys.executable, "-m", "coscheduler", "--server", server, "jobs", "watch", name]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert "separate: " in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS_MAX)
    assert process.returncode == 130
    assert "Traceback" not in err
    with Client(server) as client:
        assert client.get_job(name).job.state is JobState.RUNNING
        client.cancel_job(name)


@pytest.fixture
def no_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No daemon runs, and one that is started is the fake; returns the file with its pid."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(ROOT)
    pid_file = tmp_path / "pid"

    def command(config_path: Path, address: str, data_dir: str) -> list[str]:
        return [*FAKE, "--listen", address, "--until-stdin-closes", "--pid-file", str(pid_file)]

    monkeypatch.setattr(private, "serve_command", command)
    return pid_file


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "my.toml"
    path.write_text("[scheduling]\nqueue_max = 7\n")
    return path


def alive(pid_file: Path) -> bool:
    return Path(f"/proc/{pid_file.read_text()}").exists()


def test_run_without_a_daemon_starts_one_and_stops_it(
    run: Run, no_daemon: Path, config: Path, audio: Path, tmp_path: Path
) -> None:
    said = run("run", audio, "--out", tmp_path / "o", "--config", config, "--json")
    assert said.code == 0, said.err
    assert said.json["state"] == "SUCCEEDED"
    assert not alive(no_daemon)


def test_daemon_of_a_failed_run_is_stopped_too(
    run: Run, no_daemon: Path, config: Path, audio: Path, tmp_path: Path
) -> None:
    call = ["run", audio, "--out", tmp_path / "o", "--separate", "fail", "--config", config]
    assert run(*call).code == 1
    assert not alive(no_daemon)


def test_running_daemon_is_used_in_place_of_a_new_one(
    run: Run, no_daemon: Path, audio: Path, tmp_path: Path
) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    with fake_daemon(runtime):
        (runtime / "d.sock").rename(runtime / "coscheduler.sock")
        assert run("run", audio, "--out", tmp_path / "o").code == 0
        assert not no_daemon.exists()


def test_daemon_that_does_not_start_is_exit_3_with_its_words(
    run: Run, no_daemon: Path, config: Path, audio: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    code = "import sys; print('noise', file=sys.stderr); sys.exit('error: the store is in use')"
    monkeypatch.setattr(private, "serve_command", lambda *_: [sys.executable, "-c", code])
    said = run("run", audio, "--out", tmp_path / "o", "--config", config)
    assert said.code == 3
    assert "the daemon did not start: the store is in use [DAEMON_DIED, exit_status=1]" in said.err


def test_config_that_is_wrong_is_exit_2(
    run: Run, no_daemon: Path, config: Path, audio: Path, tmp_path: Path
) -> None:
    config.write_text("[scheduling]\nqueue_max = -7\n")
    said = run("run", audio, "--out", tmp_path / "o", "--config", config)
    assert said.code == 2
    assert "scheduling.queue_max" in said.err


def test_config_is_the_users_own_or_the_demonstration(
    no_daemon: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = ROOT / "configs" / "demo.toml"
    assert private.find_config(None) == demo
    assert str(demo) in capsys.readouterr().err
    own = tmp_path / "config" / "coscheduler" / "config.toml"
    own.parent.mkdir(parents=True)
    own.write_text("")
    assert private.find_config(None) == own
    assert private.find_config(demo) == demo
    assert capsys.readouterr().err == ""


def start_hanging_run(
    config: Path, audio: Path, out: Path, pid_file: Path
) -> "subprocess.Popen[str]":
    code = f"""
import sys
from coscheduler import cli
from coscheduler.cli import private
private.serve_command = lambda config, address, data_dir: [
    *{FAKE!r}, "--listen", address, "--until-stdin-closes", "--pid-file", {str(pid_file)!r}]
sys.argv = ["coscheduler", "run", {str(audio)!r}, "--out", {str(out)!r},
            "--separate", "hang", "--config", {str(config)!r}]
cli.main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=ROOT, env={**os.environ, "XDG_RUNTIME_DIR": str(out.parent / "runtime")},
    )  # fmt: skip
    assert process.stdout is not None
    while "separate: running" not in process.stdout.readline():
        assert process.poll() is None
    return process


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_daemon_started_for_a_call_ends_however_the_call_ends(
    config: Path, audio: Path, tmp_path: Path, number: int, code: int
) -> None:
    pid_file = tmp_path / "pid"
    process = start_hanging_run(config, audio, tmp_path / "o", pid_file)
    assert alive(pid_file)
    process.send_signal(number)
    _, err = process.communicate(timeout=SECONDS_MAX)
    assert process.returncode == code
    assert "Traceback" not in err
    until(lambda: not alive(pid_file))


def test_serve_says_what_is_wrong_with_its_address_or_config(run: Run, config: Path) -> None:
    said = run("serve", "--config", config, "--listen", "0.0.0.0:7070")
    assert said.code == 2
    assert "LISTEN_REFUSED" in said.err
    said = run("serve", "--config", "none.toml")
    assert said.code == 2
    assert "CONFIG_MISSING" in said.err


def test_help_has_examples_and_completion_is_offered(run: Run) -> None:
    for command in (["run"], ["serve"], ["gpu"], []):
        said = run(*command, "--help")
        assert said.code == 0
        assert "Examples:" in said.out
    assert "--install-completion" in said.out


def test_version(run: Run) -> None:
    assert run("--version").out == "coscheduler 0.1.0\n"


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.98 KiB"), (1536 * 1024**2, "1.50 GiB"),
     (20_000 * 1024**2, "19.5 GiB"), (500 * 1024**2, "500 MiB"), (5000 * 1024**4, "5000 TiB")],
)  # fmt: skip
def test_sizes_read_well(size_bytes: int, text: str) -> None:
    assert say.size(size_bytes) == text


@pytest.mark.parametrize(
    ("duration_ms", "text"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (12_345, "12.3 s"),
        (247_000, "4:07 min"),
        (3_720_000, "1:02 h"),
    ],
)
def test_durations_read_well(duration_ms: int, text: str) -> None:
    assert say.duration(duration_ms) == text


def test_errors_name_reason_and_the_numbers_that_the_sentence_leaves_out() -> None:
    error = Unavailable("DEAD", "pid 7 died", pid=7, exit_status=9)
    assert say.sentence(error.reason, error.message, error.numbers) == (
        "pid 7 died [DEAD, exit_status=9]"
    )
    assert say.exit_status(error) == 3
    assert say.exit_status(NotFound("A", "a")) == 1
