"""A deterministic engine without a model: for tests of clients and policies, and as an example.

It really takes the memory that it predicts (anonymous pages, touched), so the ledger can be
checked against the meter with it. The prompt of a separate stage scripts it: "crash" ends the
process, "fail" raises, "slow" runs until it is cancelled, "hang" never ends a slice, "leak" keeps
the layers when they are unloaded, "large" takes more than predicted. In a conversation it says the
last message again, word by word; behind the word "endless" it stays silent and goes on without end,
behind "patient" until it is interrupted and asked again.
"""

import json
import mmap
import os
import threading
from collections.abc import Generator

from coscheduler.chat import Ended, Question, Said
from coscheduler.config import MIB, Settings
from coscheduler.core.model import (
    EngineDescription,
    EngineName,
    Line,
    LineBytes,
    Lines,
    Option,
    RunLine,
    Segment,
    StageKind,
)
from coscheduler.engines.base import Mailbox, OnProgress, OutputFile, Slice, StageResult, Task
from coscheduler.errors import EngineFault

LAYER_BYTES = 8 * MIB
LAYER_COUNT = 4
RUN_BYTES = 16 * MIB
AHEAD = "ahead"  # a file in the folder of a run to come
SLICE_COUNT = 5


class FakeEngine:
    """Four layers of 8 MiB and a workspace of 16 MiB; writes files of the right kinds."""

    def __init__(self, name: EngineName, settings: Settings) -> None:
        self.name = name
        self._settings = settings
        self._layers: list[mmap.mmap] = []
        self._leaked: list[mmap.mmap] = []
        self._is_leaking = False

    def describe(self) -> EngineDescription:
        """Two options of the same output: all layers resident, or half of them."""
        return EngineDescription(
            engine=self.name,
            model="fake",
            options=(self._option(LAYER_COUNT), self._option(LAYER_COUNT // 2)),
            context_bytes=8 * MIB,
            segments=tuple(Segment(f"layer {i}", LAYER_BYTES) for i in range(LAYER_COUNT)),
        )

    def _option(self, layer_count: int) -> Option:
        return Option(
            name=f"{layer_count} of {LAYER_COUNT} layers",
            resident=(LineBytes(Line.WEIGHTS, layer_count * LAYER_BYTES),),
            run=(RunLine(Line.WORKSPACE, RUN_BYTES),),
            quality_tier=0,
            load_ms=10 * layer_count,
            run_ms_per_second=10 * (1 + LAYER_COUNT - layer_count),
            slice_ms_max=50,
            settings_json=json.dumps({"layer_count": layer_count}),
            family="layers",
        )

    def start(self) -> None:
        """Nothing to import."""

    def load(self, option: Option, on_progress: OnProgress) -> None:
        """One anonymous mapping for each layer, every page touched."""
        layer_count = json.loads(option.settings_json)["layer_count"]
        for index in range(layer_count):
            self._layers.append(_touched(LAYER_BYTES))
            on_progress(index + 1, layer_count)

    def resize(self, option: Option) -> None:
        """Unmap layers, or map more."""
        layer_count = json.loads(option.settings_json)["layer_count"]
        while len(self._layers) > layer_count:
            layer = self._layers.pop()
            self._leaked += [layer] if self._is_leaking else []
            if not self._is_leaking:
                layer.close()
        self._layers += [_touched(LAYER_BYTES) for _ in range(layer_count - len(self._layers))]

    def slices(self, task: Task) -> Generator[Slice, None, StageResult]:
        """Five slices; the workspace lives while they run."""
        script = str(task.parameters.get("prompt", ""))
        self._is_leaking = script == "leak"
        workspace = _touched(3 * RUN_BYTES if script == "large" else RUN_BYTES)
        try:
            done = 0
            while done < SLICE_COUNT or script == "slow":
                yield Slice(min(done, SLICE_COUNT), SLICE_COUNT, f"slice {done}")
                if script == "crash":
                    os.abort()
                if script == "hang":
                    threading.Event().wait()
                if script == "fail":
                    raise EngineFault("SCRIPTED_FAILURE", "the prompt asked for a failure")
                done += 1
        finally:
            workspace.close()
        return StageResult(_write_outputs(task), numbers=_looked_ahead(task))

    def look_ahead(self, task: Task) -> None:
        """Leave a sign that the run will find."""
        if task.resume_dir is not None:
            (task.resume_dir / AHEAD).touch()

    def chat(self, mail: Mailbox, expected_count: int) -> Generator[Slice, None, StageResult]:
        """Each slice says a word in every conversation; the workspace lives while there are any."""
        workspace = _touched(RUN_BYTES)
        letters = [mail.wait() for _ in range(expected_count)]
        talks: dict[str, _Echo] = {}
        try:
            while True:
                for letter in [*letters, *mail.take()]:
                    if isinstance(letter, Question):
                        talks[letter.id] = _Echo(letter)
                    else:
                        talks.pop(letter.id, None)
                letters = []
                talks = {name: echo for name, echo in talks.items() if echo.go_on(mail)}
                if not talks:
                    return StageResult(files=())
                yield Slice(0, 0, f"{len(talks)} answers")
        finally:
            workspace.close()

    def unload(self) -> None:
        """Unmap every layer."""
        if self._is_leaking:
            self._leaked += self._layers
            self._layers.clear()
        for layer in self._layers:
            layer.close()
        self._layers.clear()

    def held(self) -> Lines:
        """The mapped layers."""
        return (LineBytes(Line.WEIGHTS, len(self._layers) * LAYER_BYTES),)


class _Echo:
    """One conversation; its tokens are the numbers of the words."""

    def __init__(self, question: Question) -> None:
        self._id = question.id
        self._words = question.parameters.messages[-1].content.split()
        self._done = len(question.drawn)
        self._was_asked_before = self._done > 0

    def go_on(self, mail: Mailbox) -> bool:
        """Say a word, unless it is time to be silent; False at the end."""
        last = self._words[self._done - 1] if self._done else ""
        if last == "endless" or (last == "patient" and not self._was_asked_before):
            return True
        if self._done >= len(self._words):
            count = len(self._words)
            mail.send(Ended(self._id, "stop", count, count, 0, 0, 0, 0, 0))
            return False
        mail.send(Said(self._id, f"{self._words[self._done]} ", (self._done,)))
        self._done += 1
        return True


def _touched(size_bytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, size_bytes, mmap.PAGESIZE):
        memory[offset] = 1
    return memory


def _looked_ahead(task: Task) -> dict[str, int]:
    """Whether something was done for it beside another run."""
    found = task.resume_dir is not None and (task.resume_dir / AHEAD).exists()
    return {"ahead_count": 1} if found else {}


def _write_outputs(task: Task) -> tuple[OutputFile, ...]:
    def write(role: str, filename: str, media_type: str, data: bytes) -> OutputFile:
        (task.output_dir / filename).write_bytes(data)
        return OutputFile(role, filename, media_type)

    if task.stage is StageKind.SEPARATE:
        data = task.input_path.read_bytes()
        return (
            write("target", "target.wav", "audio/wav", data),
            write("residual", "residual.wav", "audio/wav", data),
        )
    if task.stage is StageKind.TRANSCRIBE:
        transcript = {"language": "en", "segments": [{"start": 0.0, "end": 1.0, "text": "hello"}]}
        data = json.dumps(transcript).encode()
        return (write("transcript", "transcript.json", "application/json", data),)
    data = json.dumps({"template": "summary", "result": {"text": "hello"}}).encode()
    return (write("analysis", "analysis.json", "application/json", data),)
