"""When each unfinished job may be expected to end: a walk through the queue in rank order.

Cheap (one step for each stage) and optimistic: preemption, releases and failures are left out.
Where all engines fit into memory together and may compute at once, each is a lane of its own; else
the device is one lane, and where they do not fit, each change of engine costs a load.
"""

from collections.abc import Iterable, Mapping

from coscheduler.core.engine_state import EngineState, Phase
from coscheduler.core.model import EngineName, Job, Option, Stage, StageState

TYPICAL_MS = 60_000  # of the recording for which engines are taken to fit together or not


def expected_ends(
    jobs: Iterable[Job],
    engines: Mapping[EngineName, EngineState],
    capacity_bytes: int,
    compute_slots: int,
    now_ms: int,
) -> dict[str, int]:
    """The expected end of each job, ms; without those whose engines cannot be judged yet."""
    lanes = _Lanes(engines, capacity_bytes, compute_slots, now_ms)
    ends: dict[str, int] = {}
    for job in jobs:
        end_ms = lanes.take(job)
        if end_ms is not None:
            ends[job.name] = end_ms
    return ends


class _Lanes:
    """When each lane is free, and which engine was the last one there."""

    def __init__(
        self,
        engines: Mapping[EngineName, EngineState],
        capacity_bytes: int,
        compute_slots: int,
        now_ms: int,
    ) -> None:
        self._engines = engines
        self._capacity_bytes = capacity_bytes
        self._now_ms = now_ms
        self._options = {name: self._option(state) for name, state in engines.items()}
        self._fits = self._fit_together()
        self._is_shared = compute_slots < len(engines) or not self._fits
        self._free_ms: dict[EngineName | None, int] = {}
        self._there = {
            name for name, state in engines.items() if state.phase in (Phase.LOADED, Phase.RUNNING)
        }

    def _option(self, state: EngineState) -> Option | None:
        """As it is in memory, else the fastest of the best quality that fits."""
        if state.option is not None or state.description is None:
            return state.option
        fitting = state.best_fitting(TYPICAL_MS, self._capacity_bytes)
        return min(fitting, key=lambda option: option.run_ms_per_second, default=None)

    def _fit_together(self) -> bool:
        used = sum(
            state.context_bytes + option.peak_bytes(TYPICAL_MS)
            for name, state in self._engines.items()
            if (option := self._options[name]) is not None
        )
        return used <= self._capacity_bytes

    def take(self, job: Job) -> int | None:
        """Put the job's open stages into the lanes; its end."""
        end_ms = self._now_ms
        for stage in job.stages:
            if stage.state is StageState.SUCCEEDED:
                continue
            taken = self._take_stage(stage, end_ms)
            if taken is None:
                return None
            end_ms = taken
        return end_ms

    def _take_stage(self, stage: Stage, ready_ms: int) -> int | None:
        name = stage.engine
        option = self._options.get(name)
        if option is None:
            return None
        state = self._engines[name]
        work_ms = state.learned.expected_run_ms(option, stage.duration_ms)
        if stage.state in (StageState.RUNNING, StageState.PAUSED):
            work_ms = max(0, work_ms - state.ran_ms(stage, self._now_ms))
        if name not in self._there:
            work_ms += state.learned.expected_load_ms(option)
        lane = None if self._is_shared else name
        end_ms = max(ready_ms, self._free_ms.get(lane, self._now_ms)) + work_ms
        self._free_ms[lane] = end_ms
        self._there = {name} if not self._fits else self._there | {name}
        return end_ms
