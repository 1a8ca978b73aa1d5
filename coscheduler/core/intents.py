"""Whose turn it is, and what may come of it: `decisions.py` decides, `scheduler.py` obeys."""

from collections.abc import Mapping
from dataclasses import dataclass

from coscheduler.core.model import EngineName, Failure, Job, Lines, Option, Stage
from coscheduler.core.planner import Plan


@dataclass(frozen=True)
class Go:
    """Run on the loaded engine with this option, which loads as the one in memory did, and with
    these lines charged.
    """

    lines: Lines
    option: Option


@dataclass(frozen=True)
class GoOn:
    """Resume the paused stage."""


@dataclass(frozen=True)
class Bring:
    """Load the engine with this option."""

    option: Option


@dataclass(frozen=True)
class GiveUp:
    """The job can never run."""

    failure: Failure


@dataclass(frozen=True)
class Wait:
    """Not now, for `reason`; `needed_bytes` > 0 when it is memory. The rest sets things in motion:
    engines to go to another option where they are, to unload, to stop, whose stage to pause, whose
    stage to end and put back; `hold` names engines that are to be evicted for the job, and do other
    work first. Those behind a job that is not in the way may use its engine meanwhile.
    """

    reason: str
    needed_bytes: int = 0
    resize: tuple[tuple[EngineName, str], ...] = ()
    unload: tuple[EngineName, ...] = ()
    stop: tuple[EngineName, ...] = ()
    pause: tuple[EngineName, ...] = ()
    preempt: tuple[EngineName, ...] = ()
    hold: tuple[EngineName, ...] = ()
    is_in_the_way: bool = True

    @classmethod
    def evicting(cls, plan: Plan, needed_bytes: int = 0) -> "Wait":
        """For those to give way who must for the plan."""
        who = ", ".join((*plan.unload, *plan.stop, *(name for name, _ in plan.shrink)))
        return cls(f"{who} to give way", needed_bytes, plan.shrink, plan.unload, plan.stop)


Intent = Go | GoOn | Bring | GiveUp | Wait


@dataclass(frozen=True)
class Turn:
    """A job's turn: the engines that those before it want, each with the first of them, the bytes
    that a waiting head leaves over (None: there is no such head), and the engines that do other
    work before they are evicted for that head.
    """

    job: Job
    claimed: Mapping[EngineName, str]
    spare_bytes: int | None
    held: frozenset[EngineName] = frozenset()

    @property
    def stage(self) -> Stage:
        """The stage that is at work or next."""
        return self.job.stage

    @property
    def engine(self) -> EngineName:
        """The engine of that stage."""
        return self.job.engine
