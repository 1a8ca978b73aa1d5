"""A world around the real Scheduler: virtual time, a device of its own, engines that fail.

The world keeps its own count of who holds what, so the ledger does not mark its own homework. One
seed is one run: arrivals, durations, faults, cancels, restarts. `World.run` ends when nothing can
happen any more, and every broken promise raises AssertionError at once.
"""

import heapq
import random
from dataclasses import dataclass, field, replace

from coscheduler.core import events as ev
from coscheduler.core.commands import (
    Cancel,
    Command,
    Load,
    Pause,
    Preempt,
    Resume,
    Run,
    Stop,
    Unload,
)
from coscheduler.core.engine_state import Limits, Phase
from coscheduler.core.lifecycle import recover
from coscheduler.core.model import (
    EngineDescription,
    EngineName,
    Failure,
    Job,
    Line,
    LineBytes,
    Option,
    Output,
    Priority,
    RunLine,
    StageKind,
    StageState,
    total_bytes,
)
from coscheduler.core.scheduler import Scheduler
from tests.core.build import job

OUTPUTS = {
    StageKind.SEPARATE: ("target", "residual"),
    StageKind.TRANSCRIBE: ("transcript",),
    StageKind.ANALYZE: ("analysis",),
}
BROKEN = Failure("ENGINE_ERROR", "scripted")


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

    @property
    def bytes(self) -> int:
        return self.context + self.resident + self.run


class World:
    """`faults` 0 is a world where nothing goes wrong; 1 is a bad one."""

    def __init__(self, seed: int, faults: float) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.now_ms = 0
        self.capacity = self.allowed = self.random.randint(150, 600)
        self.limits = Limits(
            queue_max=1000,
            attempts_max=3,
            preempts_max=self.random.choice((0, 2, 8)),
            ageing_ms=self.random.choice((1_000, 60_000)),
            keep_alive_ms=self.random.choice((500, 300_000)),
            compute_slots=self.random.randint(1, 3),
            processes_max=self.random.randint(1, 3),
            serial_loads=self.random.random() < 0.3,
            group_ms_max=self.random.choice((0, 5_000)),
            resident_ms_min=self.random.choice((0, 2_000)),
            oom_steps_max=4,
            oom_memory_ms=60_000,
            peak_tolerance_bytes=0,
        )
        self.descriptions = {engine: self._describe(engine) for engine in EngineName}
        self.devices = {engine: Device() for engine in EngineName}
        self.stored: dict[str, Job] = {}
        self.timeline: list[tuple[int, int, ev.Event, int]] = []
        self.count = 0
        self.shrink_count = 0
        self.cancelled: set[str] = set()
        self.scheduler = self._boot()

    # ---- setting up --------------------------------------------------------------------------

    def _describe(self, engine: EngineName) -> EngineDescription:
        def option(index: int) -> Option:
            return Option(
                name=f"option {index}",
                resident=(LineBytes(Line.WEIGHTS, self.random.randint(10, 120)),),
                run=(RunLine(Line.WORKSPACE, self.random.randint(1, 40)),),
                quality_tier=self.random.choice((0, 0, 1)),
                load_ms=self.random.randint(1, 500),
                run_ms_per_second=self.random.randint(1, 50),
                slice_ms_max=250,
            )

        options = tuple(option(index) for index in range(self.random.randint(1, 4)))
        return EngineDescription(engine, "simulated", options, self.random.randint(1, 20))

    def _boot(self) -> Scheduler:
        scheduler = Scheduler(self.capacity, tuple(EngineName), self.limits)
        for engine, description in self.descriptions.items():
            scheduler.handle(ev.Described(engine, description), self.now_ms)
        return scheduler

    def arrive(self, count: int) -> None:
        """Jobs at random times, some of them cancelled later."""
        kinds = list(StageKind)
        at_ms = 0
        for index in range(count):
            at_ms += self.random.choice((0, 1, 50, 2_000))
            first, last = sorted((self.random.randrange(3), self.random.randrange(3)))
            made = job(
                f"jobs/{index:03d}",
                *kinds[first : last + 1],
                priority=self.random.choice(list(Priority)),
                arrival_ms=at_ms,
            )
            self.at(at_ms, ev.Submitted(made))
            if self.random.random() < 0.2 * self.faults:
                self.cancelled.add(made.name)
                self.at(at_ms + self.random.randint(0, 5_000), ev.CancelRequested(made.name))
            if self.random.random() < 0.1 * self.faults:  # a neighbour takes memory or leaves
                share = self.random.choice((50, 75, 100, 100))
                self.at(at_ms, ev.CapacityChanged(self.capacity * share // 100))
        self.at(at_ms, ev.CapacityChanged(self.capacity))

    def at(self, at_ms: int, event: ev.Event, generation: int = 0) -> None:
        self.count += 1
        heapq.heappush(self.timeline, (at_ms, self.count, event, generation))

    # ---- running -----------------------------------------------------------------------------

    def run(self, steps_max: int = 20_000) -> None:
        for _ in range(steps_max):
            if not self.timeline and not self.scheduler.jobs:
                return
            wakeup_ms = self.scheduler.next_wakeup_ms
            if wakeup_ms is not None and (not self.timeline or wakeup_ms < self.timeline[0][0]):
                self.now_ms = wakeup_ms
                self._happen(ev.Ticked())
                continue
            if not self.timeline:
                raise AssertionError(f"stuck at {self.now_ms} with {self.scheduler.jobs}")
            self.now_ms, _, event, generation = heapq.heappop(self.timeline)
            if self._is_stale(event, generation):
                continue
            self._happen(event)
            if self.random.random() < 0.002 * self.faults:
                self.restart()
        raise AssertionError("too many steps: the scheduler goes round in circles")

    def _is_stale(self, event: ev.Event, generation: int) -> bool:
        engine = getattr(event, "engine", None)
        return engine is not None and generation != self.devices[engine].generation

    def _happen(self, event: ev.Event) -> None:
        self._take_effect(event)
        if isinstance(event, ev.Submitted):
            self._store([event.job])
        outcome = self.scheduler.handle(event, self.now_ms)
        self._store(outcome.changed)
        for command in outcome.commands:
            self._obey(command)
        self._check()

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
                # What is held above it may only shrink from now on.
                self.allowed = max(event.capacity_bytes, self._held_bytes())
                self.shrink_count += 1
            case ev.Unloaded():
                self.devices[event.engine].resident = 0
                self.devices[event.engine].pending = None
            case ev.Stopped() | ev.EngineDied():
                old = self.devices[event.engine]
                self.devices[event.engine] = Device(generation=old.generation + 1)

    def _obey(self, command: Command) -> None:
        device = self.devices[command.engine]
        match command:
            case Cancel() | Preempt():
                assert isinstance(device.pending, Run) and device.job == command.job
                self._take_back(command.engine)
                device.held_back.clear()
                stopped = ev.StageStopped(command.engine, command.job)
                self._answer(command, self._soon(50), stopped)
                return
            case Pause():
                assert isinstance(device.pending, Run) and device.job == command.job
                self._pause(command, device)
                return
            case Resume():
                assert device.held_back, "a resume of what was not paused"
                for rest_ms, event in device.held_back:
                    self.at(self.now_ms + rest_ms, event, device.generation)
                device.held_back.clear()
                return
            case Load():
                self._load(command, device)
            case Run():
                self._run(command, device)
            case Unload():
                assert device.pending is None and device.resident
                self._answer(command, self._soon(300), ev.Unloaded(command.engine))
            case Stop():
                assert device.pending is None
                self._answer(command, self._soon(100), ev.Stopped(command.engine))
        device.pending = command

    def _pause(self, command: Pause, device: Device) -> None:
        """At the end of the slice, unless the run ends before it: then nothing comes of it."""
        at_ms = self._soon(250)
        if any(at <= at_ms for at, event in self._answers(command.engine)):
            return
        rest = [(at - at_ms, event) for at, event in self._answers(command.engine)]
        self._take_back(command.engine)
        device.held_back = rest
        self.at(at_ms, ev.Paused(command.engine, command.job), device.generation)

    def _answers(self, engine: EngineName) -> list[tuple[int, ev.Event]]:
        generation = self.devices[engine].generation
        return [
            (at, event)
            for at, _, event, number in self.timeline
            if getattr(event, "engine", None) is engine and number == generation
        ]

    def _take_back(self, engine: EngineName) -> None:
        """The run's own answer will not come as planned."""
        gone = [event for _, event in self._answers(engine)]
        self.timeline = [entry for entry in self.timeline if entry[2] not in gone]
        heapq.heapify(self.timeline)

    def _load(self, command: Load, device: Device) -> None:
        assert device.pending is None and device.resident == 0, "a load on top of a load"
        description = self.descriptions[command.engine]
        option = next(o for o in description.options if o.name == command.option)
        device.context = description.context_bytes
        if self._fails():
            failure = ev.LoadFailed(command.engine, BROKEN, True, device.context)
            self._answer(command, self._soon(200), failure)
            return
        device.resident = total_bytes(option.resident)
        loaded = ev.Loaded(command.engine, device.context, device.resident, option.load_ms)
        self._answer(command, self.now_ms + option.load_ms, loaded)

    def _run(self, command: Run, device: Device) -> None:
        assert device.pending is None and device.resident, "a run without a load"
        stage = self.stored[command.job].stages[command.stage_index]
        assert stage.state is StageState.RUNNING, "the attempt is stored before it runs"
        option = next(
            o for o in self.descriptions[command.engine].options if o.name == stage.option
        )
        device.run, device.job = total_bytes(option.run_lines(stage.duration_ms)), command.job
        at_ms = self.now_ms + 1 + option.run_ms_per_second * stage.duration_ms // 1000
        if self._fails():
            retryable = self.random.random() < 0.7
            event: ev.Event = ev.StageFailed(command.engine, command.job, BROKEN, retryable, 1)
        else:
            made = tuple(
                Output(role, f"artifacts/{command.job}-{role}", role)
                for role in OUTPUTS[stage.kind]
            )
            event = ev.StageDone(command.engine, command.job, made, (), device.run)
        self._answer(command, at_ms, event)

    def _answer(self, command: Command, at_ms: int, event: ev.Event) -> None:
        """One event for each command: a crash takes the place of the answer."""
        device = self.devices[command.engine]
        if not isinstance(command, Stop | Cancel | Preempt) and self._fails():
            event = ev.EngineDied(command.engine, Failure("ENGINE_CRASHED", "scripted"))
        self.at(at_ms, event, device.generation)

    def _soon(self, ms_max: int) -> int:
        return self.now_ms + self.random.randint(0, ms_max)

    def _fails(self) -> bool:
        return self.random.random() < 0.08 * self.faults

    def restart(self) -> None:
        """kill -9 of the daemon: processes and queue are gone, the store is not."""
        for engine, device in self.devices.items():
            self.devices[engine] = Device(generation=device.generation + 1)
        self.scheduler = self._boot()
        self.allowed = self.capacity
        for known in list(self.stored.values()):
            if not known.state.is_final:
                recovered = recover(known)
                self._store([recovered])
                self._happen(ev.Submitted(recovered))

    # ---- promises ----------------------------------------------------------------------------

    def _check(self) -> None:
        held = {engine: device.bytes for engine, device in self.devices.items()}
        ledger = self.scheduler.ledger
        assert self._held_bytes() <= self.allowed, f"out of memory: {held} of {self.allowed}"
        self.allowed = max(ledger.capacity_bytes, self._held_bytes())
        for engine, size in held.items():
            assert ledger.bytes_of(engine) >= size, f"{engine} holds {size} that nobody charged"
        running = sum(
            isinstance(device.pending, Run) and not self._is_paused(engine)
            for engine, device in self.devices.items()
        )
        assert running <= self.limits.compute_slots
        contexts = sum(device.context > 0 for device in self.devices.values())
        assert contexts <= self.limits.processes_max

    def _held_bytes(self) -> int:
        return sum(device.bytes for device in self.devices.values())

    def _is_paused(self, engine: EngineName) -> bool:
        return self.scheduler.engines[engine].phase is Phase.PAUSED

    def unfinished(self) -> list[Job]:
        return [made for made in self.stored.values() if not made.state.is_final]


def without_times(made: Job) -> Job:
    """A job with only what was decided, for comparing two runs."""
    return replace(made, finished_ms=0)
