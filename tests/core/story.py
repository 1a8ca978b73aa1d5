"""A scheduler in a story of events, told step by step."""

from coscheduler.core import events as ev
from coscheduler.core.commands import Command
from coscheduler.core.engine_state import Limits
from coscheduler.core.model import EngineName, Failure, Job, JobState, Option, Output
from coscheduler.core.scheduler import Scheduler
from tests.core.build import description, limits, option

OOPS = Failure("ENGINE_ERROR", "it broke")


class Story:
    """A scheduler, a clock that moves by hand, and the last stored form of every job."""

    def __init__(self, capacity: int = 1000, lim: Limits | None = None, **options: Option) -> None:
        self.now_ms = 1000
        self.scheduler = Scheduler(capacity, tuple(EngineName), lim or limits())
        self.stored: dict[str, Job] = {}
        for engine in EngineName:
            chosen = (options[engine],) if engine in options else (option(),)
            self.on(ev.Described(engine, description(engine, *chosen)))

    def on(self, event: ev.Event, after_ms: int = 10) -> list[Command]:
        self.now_ms += after_ms
        outcome = self.scheduler.handle(event, self.now_ms)
        self.stored |= {changed.name: changed for changed in outcome.changed}
        return list(outcome.commands)

    def state(self, name: str) -> JobState:
        return self.stored[name].state

    def submit(self, *jobs: Job) -> list[Command]:
        return [command for each in jobs for command in self.on(ev.Submitted(each))]

    def loaded(self, engine: EngineName, context: int = 10, resident: int = 100) -> list[Command]:
        return self.on(ev.Loaded(engine, context, resident, load_ms=5), after_ms=5)

    def done(self, engine: EngineName, name: str, *outputs: Output) -> list[Command]:
        return self.on(ev.StageDone(engine, name, outputs, (), 120), after_ms=100)
