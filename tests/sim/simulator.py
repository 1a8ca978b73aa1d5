"""A world around the real Scheduler: virtual time, a device of its own, engines that fail.

The world keeps its own count of who holds what, so the ledger does not mark its own homework. One
seed is one run: arrivals, durations, faults, cancels, controls, restarts. `World.run` ends when
nothing can happen any more; a broken promise (`promises.py`) raises AssertionError at once.
"""

import heapq
import random
from dataclasses import dataclass, field

from coscheduler.core import events as ev
from coscheduler.core.commands import (
    Cancel,
    Command,
    Load,
    Pause,
    Preempt,
    Resize,
    Resume,
    Run,
    Stop,
    Unload,
)
from coscheduler.core.engine_state import Limits
from coscheduler.core.lifecycle import recover
from coscheduler.core.model import (
    EngineDescription,
    EngineName,
    Failure,
    Job,
    Option,
    Output,
    StageKind,
    StageState,
    total_bytes,
)
from coscheduler.core.scheduler import Outcome, Scheduler, State
from tests.sim.promises import Promises

OUTPUTS = {
    StageKind.SEPARATE: ("target", "residual"),
    StageKind.TRANSCRIBE: ("transcript",),
    StageKind.ANALYZE: ("analysis",),
}
BROKEN = Failure("ENGINE_ERROR", "scripted")
FULL = Failure("OUT_OF_MEMORY", "scripted")
HUNG = Failure("RELEASE_NOT_CONFIRMED", "scripted")
SLICE_MS, RELEASE_MS, STOP_MS, STOPPING_MS = 250, 300, 100, 50


@dataclass
class Device:
    """What one engine really holds."""

    context: int = 0
    resident: int = 0
    run: int = 0
    pending: Command | None = None
    job: str = ""
    generation: int = 0  # a process; answers of an older one never arrive
    held_back: list[tuple[int, ev.Event]] = field(default_factory=list)  # while it is paused
    option: Option | None = None
    is_resizing: bool = False

    @property
    def bytes(self) -> int:
        return self.context + self.resident + self.run


@dataclass
class Tally:
    """What happened, in numbers."""

    events: int = 0
    loads: int = 0
    runs: int = 0
    unloads: int = 0
    resizes: int = 0
    preemptions: int = 0
    pauses: int = 0
    restarts: int = 0


@dataclass
class Setup:
    """What a world is made of; `scenarios.py` draws it from a seed."""

    capacity: int
    limits: Limits
    descriptions: dict[EngineName, EngineDescription]
    faults: float = 0.0


class World:
    """`faults` 0 is a world where nothing goes wrong; 1 is a bad one."""

    def __init__(self, setup: Setup, rng: random.Random) -> None:
        self.random = rng
        self.setup = setup
        self.limits = setup.limits
        self.capacity = setup.capacity
        self.now_ms = 0
        self.descriptions = setup.descriptions
        self.devices = {engine: Device() for engine in EngineName}
        self.stored: dict[str, Job] = {}
        self.refused: dict[str, str] = {}
        self.cancelled: set[str] = set()
        self.shrink_count = 0
        self.tally = Tally()
        self.history: list[tuple[State | None, int, ev.Event, Outcome]] = []
        self._timeline: list[tuple[int, int, ev.Event, int]] = []
        self._count = 0
        self.scheduler = self._boot()
        self.promises = Promises(self)

    def _boot(self) -> Scheduler:
        scheduler = Scheduler(self.capacity, tuple(EngineName), self.limits)
        for engine, description in self.descriptions.items():
            scheduler.handle(ev.Described(engine, description), self.now_ms)
        return scheduler

    def at(self, at_ms: int, event: ev.Event, generation: int = 0) -> None:
        """Let an event happen later."""
        self._count += 1
        heapq.heappush(self._timeline, (at_ms, self._count, event, generation))

    # ---- running -----------------------------------------------------------------------------

    def run(self, steps_max: int = 50_000) -> None:
        """Until nothing can happen any more."""
        for _ in range(steps_max):
            wakeup_ms = self.scheduler.next_wakeup_ms
            if not self._timeline and wakeup_ms is None:
                self.promises.check_end()
                return
            if wakeup_ms is not None and (not self._timeline or wakeup_ms < self._timeline[0][0]):
                self.now_ms = max(self.now_ms, wakeup_ms)
                self.happen(ev.Ticked())
            else:
                self._next()
            if self.random.random() < 0.002 * self.setup.faults:
                self.restart()
        raise AssertionError("too many steps: the scheduler goes round in circles")

    def _next(self) -> None:
        at_ms, _, event, generation = heapq.heappop(self._timeline)
        self.now_ms = max(self.now_ms, at_ms)
        engine = getattr(event, "engine", None)
        is_answer = not isinstance(
            event, ev.LoadRequested | ev.UnloadRequested | ev.PinRequested | ev.Described
        )
        if is_answer and engine is not None and generation != self.devices[engine].generation:
            return
        if isinstance(event, ev.Submitted) and not self._is_admitted(event.job):
            return
        self.happen(event)

    def _is_admitted(self, job: Job) -> bool:
        reason = self.promises.check_admission(job)
        if reason:
            self.refused[job.name] = reason
        return not reason

    def happen(self, event: ev.Event) -> None:
        """An event now: the device first, then the scheduler, then its commands."""
        self._take_effect(event)
        if isinstance(event, ev.Submitted):
            self._store([event.job])
        before = None if self.history else self.scheduler.state()
        outcome = self.scheduler.handle(event, self.now_ms)
        self.history.append((before, self.now_ms, event, outcome))
        self.tally.events += 1
        self._store(outcome.changed)
        for command in outcome.commands:
            self._obey(command)
        self.promises.check()

    def _store(self, jobs: tuple[Job, ...] | list[Job]) -> None:
        for changed in jobs:
            known = self.stored.get(changed.name)
            assert known is None or not known.state.is_final or known == changed, "final is final"
            self.stored[changed.name] = changed

    def _take_effect(self, event: ev.Event) -> None:
        """What an event means for the device, before the scheduler hears of it."""
        match event:
            case ev.StageDone() | ev.StageFailed() | ev.StageStopped():
                self.devices[event.engine].run = 0
                self.devices[event.engine].pending = None
            case ev.LoadFailed() | ev.Loaded():
                self.devices[event.engine].pending = None
            case ev.CapacityChanged():
                self.promises.note_capacity(event.capacity_bytes)
                self.shrink_count += 1
            case ev.Resized():
                self._resized(event)
            case ev.Unloaded():
                self.devices[event.engine].resident = 0
                self.devices[event.engine].pending = None
            case ev.Stopped() | ev.EngineDied():
                old = self.devices[event.engine]
                self.devices[event.engine] = Device(generation=old.generation + 1)

    # ---- carrying commands out ---------------------------------------------------------------

    def _obey(self, command: Command) -> None:
        device = self.devices[command.engine]
        match command:
            case Cancel() | Preempt():
                self.tally.preemptions += isinstance(command, Preempt)
                assert isinstance(device.pending, Run) and device.job == command.job
                self._take_back(command.engine)
                device.held_back.clear()
                stopped = ev.StageStopped(command.engine, command.job)
                self.at(self._soon(STOPPING_MS), stopped, device.generation)
                return
            case Pause():
                self._pause(command, device)
                return
            case Resume():
                assert device.held_back, "a resume of what was not paused"
                for rest_ms, event in device.held_back:
                    self.at(self.now_ms + rest_ms, event, device.generation)
                device.held_back.clear()
                return
            case Resize():
                self._resize(command, device)
                return
            case Load():
                self._load(command, device)
            case Run():
                self._run(command, device)
            case Unload():
                self.tally.unloads += 1
                assert device.pending is None and device.resident and not device.is_resizing
                self._answer(command, self._soon(RELEASE_MS), ev.Unloaded(command.engine))
            case Stop():
                assert device.pending is None and not device.is_resizing
                self._answer(command, self._soon(STOP_MS), ev.Stopped(command.engine))
        device.pending = command

    def _pause(self, command: Pause, device: Device) -> None:
        """At the end of the slice, unless the run ends before it: then nothing comes of it."""
        self.tally.pauses += 1
        assert isinstance(device.pending, Run) and device.job == command.job
        assert not device.is_resizing, "the layer it halts at would stay"
        at_ms = self._soon(SLICE_MS)
        if any(at <= at_ms for at, event in self._answers(command.engine)):
            return
        rest = [(at - at_ms, event) for at, event in self._answers(command.engine)]
        self._take_back(command.engine)
        device.held_back = rest
        self.at(at_ms, ev.Paused(command.engine, command.job), device.generation)

    def _resize(self, command: Resize, device: Device) -> None:
        """Between two slices: what comes is held at once, what goes is held until the answer."""
        self.tally.resizes += 1
        assert device.option is not None and not device.is_resizing and not device.held_back
        assert device.pending is None or isinstance(device.pending, Run)
        option, old = self.option(command.engine, command.option), device.option
        assert option.family == old.family != "" and option.quality_tier == old.quality_tier
        held = total_bytes(option.resident)
        assert command.bytes_max >= held + device.run, "it may not even hold what it is to hold"
        device.is_resizing, device.resident = True, max(device.resident, held)
        at_ms = self._soon(SLICE_MS + RELEASE_MS)
        if self._fails():
            self.at(at_ms, ev.EngineDied(command.engine, HUNG), device.generation)
            return
        fails = held > total_bytes(old.resident) and self._fails()
        answer = ev.Resized(command.engine, old.name if fails else option.name)
        self.at(at_ms, answer, device.generation)

    def _resized(self, event: ev.Resized) -> None:
        """What is left of a run goes at the new option's speed."""
        device, option = self.devices[event.engine], self.option(event.engine, event.option)
        old, device.option, device.is_resizing = device.option, option, False
        device.resident = total_bytes(option.resident)
        answers = self._answers(event.engine)
        if old is None or old.name == option.name or not isinstance(device.pending, Run):
            return
        stage = self.stored[device.job].stages[device.pending.stage_index]
        device.run = max(device.run, total_bytes(option.run_lines(stage.duration_ms)))
        if any(isinstance(answer, ev.StageStopped) for _, answer in answers):
            return
        self._take_back(event.engine)
        for at_ms, answer in answers:
            rest_ms = (at_ms - self.now_ms) * option.run_ms_per_second // old.run_ms_per_second
            self.at(self.now_ms + max(0, rest_ms), answer, device.generation)

    def _answers(self, engine: EngineName) -> list[tuple[int, ev.Event]]:
        """What the run there will say next."""
        generation = self.devices[engine].generation
        kinds = ev.StageDone | ev.StageFailed | ev.StageStopped | ev.EngineDied | ev.Paused
        return [
            (at, event)
            for at, _, event, number in self._timeline
            if isinstance(event, kinds) and event.engine is engine and number == generation
            if getattr(event, "failure", None) is not HUNG
        ]

    def _take_back(self, engine: EngineName) -> None:
        """The run's own answer will not come as planned."""
        gone = {id(event) for _, event in self._answers(engine)}
        self._timeline = [entry for entry in self._timeline if id(entry[2]) not in gone]
        heapq.heapify(self._timeline)

    def option(self, engine: EngineName, name: str) -> Option:
        return next(o for o in self.descriptions[engine].options if o.name == name)

    def _load(self, command: Load, device: Device) -> None:
        self.tally.loads += 1
        assert device.pending is None and device.resident == 0, "a load on top of a load"
        option = self.option(command.engine, command.option)
        device.context = self.descriptions[command.engine].context_bytes
        if self._fails():
            failure = self.random.choice((BROKEN, FULL))
            failed = ev.LoadFailed(command.engine, failure, True, device.context)
            self._answer(command, self._soon(200), failed)
            return
        device.resident, device.option = total_bytes(option.resident), option
        loaded = ev.Loaded(command.engine, device.context, device.resident, option.load_ms)
        self._answer(command, self.now_ms + option.load_ms, loaded)

    def _run(self, command: Run, device: Device) -> None:
        self.tally.runs += 1
        assert device.pending is None and device.resident, "a run without a load"
        assert not device.is_resizing, "a run before the layers are there"
        stage = self.stored[command.job].stages[command.stage_index]
        assert stage.state is StageState.RUNNING, "the attempt is stored before it runs"
        option = self.option(command.engine, stage.option)
        device.run, device.job = total_bytes(option.run_lines(stage.duration_ms)), command.job
        at_ms = self.now_ms + 1 + option.run_ms_per_second * stage.duration_ms // 1000
        self._answer(command, at_ms, self._end_of_run(command, stage.kind, device))

    def _end_of_run(self, command: Run, kind: StageKind, device: Device) -> ev.Event:
        peak = device.resident + device.run
        if self._fails():
            failure = self.random.choice((BROKEN, FULL))
            retryable = failure is FULL or self.random.random() < 0.7
            return ev.StageFailed(command.engine, command.job, failure, retryable, peak)
        if self._fails():
            peak += self.random.randint(1, 30)  # more than was predicted
        made = tuple(
            Output(role, f"artifacts/{command.job}-{role}", role) for role in OUTPUTS[kind]
        )
        return ev.StageDone(command.engine, command.job, made, (), peak)

    def _answer(self, command: Command, at_ms: int, event: ev.Event) -> None:
        """One event for each command: a crash, or the end of a hung process, takes its place."""
        device = self.devices[command.engine]
        if not isinstance(command, Stop) and self._fails():
            event = ev.EngineDied(command.engine, Failure("ENGINE_CRASHED", "scripted"))
            at_ms += self.random.choice((0, 0, 5_000))
        self.at(at_ms, event, device.generation)

    def _soon(self, ms_max: int) -> int:
        return self.now_ms + self.random.randint(0, ms_max)

    def _fails(self) -> bool:
        return self.random.random() < 0.08 * self.setup.faults

    def restart(self) -> None:
        """kill -9 of the daemon: processes and queue are gone, the store is not."""
        self.tally.restarts += 1
        for engine, device in self.devices.items():
            self.devices[engine] = Device(generation=device.generation + 1)
        self.scheduler = self._boot()
        self.history.clear()
        self.promises.note_restart()
        for known in list(self.stored.values()):
            if not known.state.is_final:
                recovered = recover(known)
                self._store([recovered])
                self.happen(ev.Submitted(recovered))

    def unfinished(self) -> list[Job]:
        return [made for made in self.stored.values() if not made.state.is_final]
