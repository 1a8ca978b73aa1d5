"""The fork server and its children as processes: what the kernel sees."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from coscheduler.core.model import EngineName
from coscheduler.engines import messages as msg
from coscheduler.errors import EngineFault
from coscheduler.runtime.children import Children, end_leftovers, is_gone, start_ticks
from tests.runtime.support import run, settings


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def thread_count(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def memory_map(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def wait_until_dead(pids: list[int], seconds: float = 2.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(map(is_alive, pids)):
            return True
        time.sleep(0.02)
    return False


def test_children_answer_end_and_are_reaped(tmp_path: Path) -> None:
    async def story() -> None:
        children = Children(settings(tmp_path))
        first = await children.spawn(EngineName.ANALYSIS)
        second = await children.spawn(EngineName.SEPARATION)
        first.send(msg.Describe())
        answer = msg.decode_answer(await first.reader.readline())
        assert isinstance(answer, msg.Described)
        assert answer.description.engine is EngineName.ANALYSIS
        os.kill(second.pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(await second.wait()) == -signal.SIGKILL
        first.writer.close()  # the daemon closes the pipe: the child leaves by itself
        assert os.waitstatus_to_exitcode(await first.wait()) == 0
        await children.close()

    run(story())


def test_the_fork_server_forks_with_one_thread_and_without_grpc(tmp_path: Path) -> None:
    async def story() -> None:
        children = Children(settings(tmp_path))
        child = await children.spawn(EngineName.ANALYSIS)
        server = children.server_pid
        assert thread_count(server) == 1
        for pid in (server, child.pid):
            assert "grpc" not in memory_map(pid)
        await children.close()
        assert not is_alive(server) and not is_alive(child.pid)

    run(story())


def test_when_the_fork_server_dies_its_children_do_and_the_next_spawn_works(tmp_path: Path) -> None:
    async def story() -> None:
        children = Children(settings(tmp_path))
        child = await children.spawn(EngineName.ANALYSIS)
        os.kill(children.server_pid, signal.SIGKILL)
        await child.wait()
        assert await asyncio.to_thread(wait_until_dead, [child.pid])
        again = await children.spawn(EngineName.ANALYSIS)
        assert is_alive(again.pid)
        await children.close()

    run(story())


def test_no_engine_survives_a_killed_daemon(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import asyncio, sys
        from pathlib import Path
        from coscheduler.core.model import EngineName
        from coscheduler.runtime.children import Children
        from tests.runtime.support import settings
        async def main():
            children = Children(settings(Path({str(tmp_path)!r})))
            child = await children.spawn(EngineName.ANALYSIS)
            print(children.server_pid, child.pid, flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
    """)
    daemon = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    pids = [int(word) for word in daemon.stdout.readline().split()]
    assert len(pids) == 2 and all(map(is_alive, pids))
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    assert wait_until_dead(pids)


def test_a_fork_server_that_cannot_run_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        children = Children(settings(tmp_path))
        with pytest.raises(EngineFault, match="fork server"):
            await children.spawn(EngineName.ANALYSIS)
        await children.close()

    monkeypatch.setattr(sys, "executable", "/bin/false")
    run(story())


def test_leftovers_are_known_by_pid_and_start(tmp_path: Path) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    ticks = start_ticks(sleeper.pid)
    assert ticks is not None
    assert end_leftovers([(sleeper.pid, ticks + 1)]) == 0
    assert sleeper.poll() is None
    assert end_leftovers([(sleeper.pid, ticks)]) == 1
    assert sleeper.wait() == -signal.SIGKILL
    assert start_ticks(sleeper.pid) is None


def test_a_process_that_nobody_reaped_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as ended:
        assert not is_gone(ended.pid)
        ended.kill()
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert start_ticks(ended.pid) is not None, "its entry stays"
        assert is_gone(ended.pid)
    assert is_gone(ended.pid)


def test_a_process_is_not_gone_before_its_last_thread() -> None:
    code = """
        import ctypes, platform, threading, time
        threading.Thread(target=time.sleep, args=(60,)).start()
        print("ready", flush=True)
        exit_number = 60 if platform.machine() == "x86_64" else 93
        ctypes.CDLL(None).syscall(exit_number, 0)  # exit(2): of the first thread alone
    """
    command = [sys.executable, "-S", "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        stat = Path(f"/proc/{process.pid}/stat")
        while ") Z" not in stat.read_text():
            os.sched_yield()
        assert not is_gone(process.pid)
        process.kill()
