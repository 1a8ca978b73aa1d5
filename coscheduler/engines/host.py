"""The main of an engine process: a loop around one engine, and a thread that listens for cancels.

Only this file knows which class an engine name stands for, and it imports that class only here, in
the child.
"""

import importlib
import logging
import queue
import shutil
import socket
import threading
import traceback
from collections.abc import Callable, Generator
from typing import Any, cast

from coscheduler import logs
from coscheduler.chat import HangUp, Letter, Question, Reply
from coscheduler.config import AnalysisSettings, Settings, TranscriptionSettings
from coscheduler.core.model import EngineName
from coscheduler.engines import hub
from coscheduler.engines import messages as msg
from coscheduler.engines.base import (
    ChattingEngine,
    Engine,
    LookingAheadEngine,
    ResizingEngine,
    Slice,
    StageResult,
    SwitchingEngine,
)
from coscheduler.engines.peak import PeakSampler
from coscheduler.engines.streaming import heap
from coscheduler.errors import CoschedulerError, EngineFault

log = logging.getLogger(__name__)

IMPLEMENTATIONS = {
    EngineName.SEPARATION: ("coscheduler.engines.separation.engine", "SeparationEngine"),
    EngineName.TRANSCRIPTION: ("coscheduler.engines.transcription.engine", "TranscriptionEngine"),
    EngineName.ANALYSIS: ("coscheduler.engines.analysis.engine", "AnalysisEngine"),
}


def make_engine(name: EngineName, settings: Settings) -> Engine:
    """Import the engine's module and build it."""
    if settings.engines == "fake":
        from coscheduler.engines.fake import FakeEngine

        return FakeEngine(name, settings)
    module, attribute = IMPLEMENTATIONS[name]
    local = local_models(name, settings)
    engine: Engine = getattr(importlib.import_module(module), attribute)(local)
    return engine


def local_models(name: EngineName, settings: Settings) -> Settings:
    """The settings with the places of the engine's models instead of names of repositories.

    SAM-Audio finds its own, as it may choose among several. Raises EngineFault MODEL_MISSING.
    """
    section: TranscriptionSettings | AnalysisSettings | None
    if name == EngineName.TRANSCRIPTION and (section := settings.transcription) is not None:
        places: dict[str, Any] = {
            "model": hub.located(section.model, "config.json"),
            "aligners": {
                language: hub.located(path, "config.json")
                for language, path in section.aligners.items()
            },
            "diarizer": section.diarizer and hub.located(section.diarizer, "config.yaml"),
        }
    elif name == EngineName.ANALYSIS and (section := settings.analysis) is not None:
        places = {"model": hub.located(section.model, "config.json")}
    else:
        return settings
    return settings.model_copy(update={str(name): section.model_copy(update=places)})


def main(name: EngineName, settings: Settings, connection: socket.socket) -> None:
    """Serve one engine over a connected stream socket until the daemon closes it."""
    if name == EngineName.TRANSCRIPTION:
        heap.share_one_arena()  # before any thread has one of its own, which could not be trimmed
    Host(lambda: make_engine(name, settings), connection).serve()


class Mail:
    """Implements `base.Mailbox` over the socket: another thread puts letters in."""

    def __init__(self, answer: Callable[[msg.Answer], None]) -> None:
        self._answer = answer
        self._letters: queue.SimpleQueue[Letter] = queue.SimpleQueue()

    def put(self, letter: Letter) -> None:
        """A letter has come."""
        self._letters.put(letter)

    def wait(self) -> Letter:
        """See `base.Mailbox`."""
        return self._letters.get()

    def take(self) -> tuple[Letter, ...]:
        """See `base.Mailbox`."""
        return tuple(self._letters.get_nowait() for _ in range(self._letters.qsize()))

    def send(self, reply: Reply) -> None:
        """See `base.Mailbox`."""
        self._answer(reply)


class Host:
    """One engine, one socket. Requests are carried out in the calling thread, one by one."""

    def __init__(self, make: Callable[[], Engine], connection: socket.socket) -> None:
        self._make = make
        self._engine: Engine | None = None
        self._connection = connection
        self._requests: queue.SimpleQueue[msg.Request | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._may_go_on = threading.Event()
        self._sizes: queue.SimpleQueue[msg.ResizeOption] = queue.SimpleQueue()
        self._option = ""
        self._mail = Mail(self._answer)

    def serve(self) -> None:
        """Until the other side closes the socket."""
        threading.Thread(target=self._listen, name="requests", daemon=True).start()
        while (request := self._requests.get()) is not None:
            if isinstance(request, msg.ResizeOption):
                self._resize()
            else:
                self._answer(self._carry_out(request))

    def _listen(self) -> None:
        """Read requests; what is about the running task acts at once, the rest waits its turn."""
        with self._connection.makefile("rb") as lines:
            for line in lines:
                self._take(msg.decode_request(line))
        self._take(msg.CancelTask())
        self._requests.put(None)

    def _take(self, request: msg.Request) -> None:
        match request:
            case msg.CancelTask():
                self._cancelled.set()
                self._may_go_on.set()
            case msg.PauseTask():
                self._may_go_on.clear()
            case msg.ResumeTask():
                self._may_go_on.set()
            case msg.ResizeOption():
                self._sizes.put(request)
                self._requests.put(request)  # where no task runs
            case Question() | HangUp():
                self._mail.put(request)
            case msg.RunTask():
                self._mail = Mail(self._answer)
                self._cancelled.clear()
                self._may_go_on.set()
                self._requests.put(request)
            case _:
                self._requests.put(request)

    def _answer(self, answer: msg.Answer) -> None:
        self._connection.sendall(msg.encode_answer(answer))

    def _carry_out(self, request: msg.Request) -> msg.Answer:
        try:
            return self._dispatch(request)
        except CoschedulerError as error:
            return msg.Failed(error.kind, error.reason, error.message, error.numbers)
        except MemoryError as error:
            return msg.Failed("engine_fault", "OUT_OF_MEMORY", f"out of memory: {error}", {})
        except Exception as error:  # the child must say what went wrong, whatever it was
            log.exception("request %s failed", request.type)
            where = traceback.extract_tb(error.__traceback__)[-1]
            return _unforeseen(error, f"{where.name}:{where.lineno}")

    def _dispatch(self, request: msg.Request) -> msg.Answer:
        if self._engine is None:
            self._engine = self._make()
        engine = self._engine
        match request:
            case msg.Describe():
                return msg.Described(engine.describe())
            case msg.Start():
                engine.start()
                return msg.Started()
            case msg.LoadOption(option):
                engine.load(option, lambda done, total: self._answer(msg.LoadProgress(done, total)))
                self._option = option.name
                return msg.OptionLoaded(engine.held())
            case msg.RunTask():
                return self._run(engine, request)
            case msg.UnloadOption():
                engine.unload()
                return msg.OptionUnloaded()
            case _:
                raise AssertionError(f"{request.type} never waits in the queue")

    def _run(self, engine: Engine, request: msg.RunTask) -> msg.Answer:
        task = request.task
        token = logs.current_job.set(task.job)
        slices = self._slices(engine, request)
        with PeakSampler() as peak:
            try:
                while not self._is_cancelled():
                    piece = next(slices)
                    held = peak.highest_bytes()
                    self._answer(msg.TaskProgress(piece.done, piece.total, piece.note, held))
            except StopIteration as stop:
                result: StageResult = stop.value
                return msg.TaskDone(result, peak.highest_bytes())
            finally:
                slices.close()
                logs.current_job.reset(token)
        if request.chat_count is None:
            shutil.rmtree(task.output_dir, ignore_errors=True)
        return msg.TaskStopped()

    def _slices(self, engine: Engine, request: msg.RunTask) -> Generator[Slice, None, StageResult]:
        if request.option is not None:
            cast(SwitchingEngine, engine).switch(request.option)
            self._option = request.option.name
        if request.ahead is not None and isinstance(engine, LookingAheadEngine):
            engine.look_ahead(request.ahead)
        if request.chat_count is None:
            return engine.slices(request.task)
        return cast(ChattingEngine, engine).chat(self._mail, request.chat_count)

    def _resize(self) -> None:
        """Do what is asked of the size, where it has not been done between two slices."""
        while not self._sizes.empty():
            option = self._sizes.get().option
            try:
                cast(ResizingEngine, self._engine).resize(option)
                self._option = option.name
            except EngineFault as fault:
                log.warning("%s stays as it was: %s", self._option, fault.message)
            except Exception as error:  # nobody knows what is loaded now
                log.exception("resizing to %s failed", option.name)
                self._answer(msg.ResizeFailed("ENGINE_ERROR", f"resizing failed: {error!r}"))
                return
            self._answer(msg.OptionResized(self._option))

    def _is_cancelled(self) -> bool:
        """Between two slices: become another size, wait here while the task is paused."""
        self._resize()
        if not self._may_go_on.is_set():
            self._answer(msg.TaskPaused())
            self._may_go_on.wait()
        return self._cancelled.is_set()


def _unforeseen(error: Exception, where: str) -> msg.Failed:
    """Out-of-memory errors of torch and CTranslate2 are RuntimeErrors: told apart by type or text
    only here, where the foreign exception ends.
    """
    text = f"{type(error).__name__}: {error}"
    is_memory = type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error).lower()
    reason = "OUT_OF_MEMORY" if is_memory else "ENGINE_ERROR"
    return msg.Failed("engine_fault" if is_memory else "internal", reason, text, {"where": where})
