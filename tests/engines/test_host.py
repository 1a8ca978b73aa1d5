"""The child's loop over a real socket, with engines that misbehave."""

import json
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from coscheduler.config import Settings
from coscheduler.core.model import EngineDescription, EngineName, Lines, Option, StageKind
from coscheduler.engines import messages as msg
from coscheduler.engines.base import Engine, OnProgress, Slice, StageResult, Task
from coscheduler.engines.fake import FakeEngine
from coscheduler.engines.host import Host
from coscheduler.errors import EngineFault

Ask = Callable[..., list[msg.Answer]]
FINAL = (msg.Described, msg.Started, msg.OptionLoaded, msg.OptionUnloaded, msg.TaskDone,
         msg.TaskStopped, msg.ResizeFailed, msg.Failed)  # fmt: skip
RESIZED = (msg.OptionResized,)


class Broken(FakeEngine):
    """Each method fails in its own way."""

    def describe(self) -> EngineDescription:
        raise EngineFault("MODEL_MISSING", "no file /m", path="/m")

    def start(self) -> None:
        raise MemoryError("no room")

    def load(self, option: Option, on_progress: OnProgress) -> None:
        raise RuntimeError("CUDA out of memory: tried to allocate 2 GiB")

    def slices(self, task: Task) -> Generator[Slice, None, StageResult]:
        yield Slice(0, 1, "one")
        raise ZeroDivisionError("oops")

    def unload(self) -> None:
        raise KeyError("x")

    def held(self) -> Lines:
        return ()


@pytest.fixture
def serve() -> Iterator[Callable[[Engine], Ask]]:
    """Serve an engine from a thread; the returned function asks and collects the answers."""
    open_sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(engine: Engine) -> Ask:
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=Host(lambda: engine, theirs).serve)
        thread.start()
        open_sockets.extend((ours, theirs))
        threads.append(thread)
        lines = ours.makefile("rb")

        def ask(*requests: msg.Request, until: tuple[type, ...] = FINAL) -> list[msg.Answer]:
            ours.sendall(b"".join(map(msg.encode_request, requests)))
            answers: list[msg.Answer] = []
            while not answers or not isinstance(answers[-1], until):
                answers.append(msg.decode_answer(lines.readline()))
            return answers

        return ask

    yield start
    for each in open_sockets[::2]:
        each.shutdown(socket.SHUT_RDWR)
        each.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    for each in open_sockets[1::2]:
        each.close()


def make_task(folder: Path, prompt: str = "speech") -> Task:
    source = folder / "in.wav"
    source.write_bytes(b"RIFF")
    out = folder / "out"
    out.mkdir()
    return Task("jobs/1", StageKind.SEPARATE, {"prompt": prompt}, source, out, 1000)


def test_a_whole_life(serve: Callable[[Engine], Ask], tmp_path: Path) -> None:
    ask = serve(FakeEngine(EngineName.SEPARATION, Settings()))
    (described,) = ask(msg.Describe())
    assert isinstance(described, msg.Described)
    assert ask(msg.Start()) == [msg.Started()]
    option = described.description.options[0]
    *progress, loaded = ask(msg.LoadOption(option))
    assert progress == [msg.LoadProgress(done, 4) for done in (1, 2, 3, 4)]
    assert isinstance(loaded, msg.OptionLoaded) and loaded.held == option.resident
    *slices, done = ask(msg.RunTask(make_task(tmp_path)))
    assert [s.done for s in slices if isinstance(s, msg.TaskProgress)] == [0, 1, 2, 3, 4]
    assert isinstance(done, msg.TaskDone)
    assert {file.filename for file in done.result.files} == {"target.wav", "residual.wav"}
    assert ask(msg.UnloadOption()) == [msg.OptionUnloaded()]


def test_layers_come_and_go_between_two_slices_and_without_a_task(
    serve: Callable[[Engine], Ask], tmp_path: Path
) -> None:
    engine = FakeEngine(EngineName.SEPARATION, Settings())
    ask = serve(engine)
    whole, half = engine.describe().options
    ask(msg.LoadOption(whole))
    (idle,) = ask(msg.ResizeOption(half), until=RESIZED)
    assert idle == msg.OptionResized(half.name)
    assert engine.held() == half.resident
    task = make_task(tmp_path, "slow")
    *_, grown = ask(msg.RunTask(task), msg.ResizeOption(whole), until=RESIZED)
    assert grown == msg.OptionResized(whole.name)
    *_, shrunk = ask(msg.ResizeOption(half), until=RESIZED)
    assert shrunk == msg.OptionResized(half.name)
    assert ask(msg.CancelTask())[-1] == msg.TaskStopped()
    assert engine.held() == half.resident


class Full(FakeEngine):
    """There is no room to grow, or the engine breaks over it."""

    error: Exception = EngineFault("OUT_OF_MEMORY", "no room")

    def resize(self, option: Option) -> None:
        raise self.error


def test_an_engine_that_cannot_grow_says_what_it_is_and_a_broken_one_says_so(
    serve: Callable[[Engine], Ask],
) -> None:
    engine = Full(EngineName.SEPARATION, Settings())
    ask = serve(engine)
    whole, half = engine.describe().options
    ask(msg.LoadOption(half))
    assert ask(msg.ResizeOption(whole), until=RESIZED) == [msg.OptionResized(half.name)]
    engine.error = RuntimeError("oops")
    (failed,) = ask(msg.ResizeOption(whole))
    assert isinstance(failed, msg.ResizeFailed) and "oops" in failed.message


def test_a_cancel_acts_within_the_slice_and_nothing_is_left(
    serve: Callable[[Engine], Ask], tmp_path: Path
) -> None:
    engine = FakeEngine(EngineName.SEPARATION, Settings())
    ask = serve(engine)
    ask(msg.LoadOption(engine.describe().options[0]))
    task = make_task(tmp_path, "slow")

    # Both lines are there before the first slice ends: the listener may not lose the cancel.
    answers = ask(msg.RunTask(task), msg.CancelTask())
    assert answers[-1] == msg.TaskStopped()
    assert not task.output_dir.exists()
    task.output_dir.mkdir()
    again = ask(msg.RunTask(Task(**{**vars(task), "parameters": {"prompt": "speech"}})))
    assert isinstance(again[-1], msg.TaskDone)


def test_every_failure_is_an_answer_with_its_kind(
    serve: Callable[[Engine], Ask], tmp_path: Path
) -> None:
    engine = Broken(EngineName.SEPARATION, Settings())
    option = FakeEngine(EngineName.SEPARATION, Settings()).describe().options[0]
    ask = serve(engine)
    cases: list[tuple[msg.Request, str, str]] = [
        (msg.Describe(), "engine_fault", "MODEL_MISSING"),
        (msg.Start(), "engine_fault", "OUT_OF_MEMORY"),
        (msg.LoadOption(option), "engine_fault", "OUT_OF_MEMORY"),
        (msg.RunTask(make_task(tmp_path)), "internal", "ENGINE_ERROR"),
        (msg.UnloadOption(), "internal", "ENGINE_ERROR"),
    ]
    for request, kind, reason in cases:
        answer = ask(request)[-1]
        assert isinstance(answer, msg.Failed)
        assert (answer.kind, answer.reason) == (kind, reason)
    assert json.loads(msg.encode_answer(answer))["message"] == "KeyError: 'x'"


def test_messages_survive_the_pipe() -> None:
    description = FakeEngine(EngineName.ANALYSIS, Settings()).describe()
    for answer in (msg.Described(description), msg.TaskProgress(1, 2, "ä\n", 3), msg.TaskStopped()):
        line = msg.encode_answer(answer)
        assert line.count(b"\n") == 1 and msg.decode_answer(line) == answer
    request = msg.LoadOption(description.options[0])
    assert msg.decode_request(msg.encode_request(request)) == request
