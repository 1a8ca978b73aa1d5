"""What one waiting job may do now. Reads the scheduler's state, changes nothing, returns an intent.

A turn comes to each engine's first job in rank order whose input is there (`scheduler.py`). In this
order (the numbers are repeated in the code):

    1. its stage is paused                                           -> GoOn when a slot is free
    2. the engine is not configured or unusable                      -> GiveUp
    3. nothing that is good enough ever fits the budget              -> GiveUp
    4. it would fit if other programs held less                      -> Wait
    5. the engine is busy, leased to another job, or wanted by one
        that its own lease does not keep away                        -> Wait; preempt a lower class
    6. the engine is loaded otherwise than this quality needs        -> Wait; unload it
    7. no compute slot is free                                       -> Wait; pause a lower class
    8. it is loaded as needed and the bytes of the run are there     -> Go, else make room
    9. there is a plan that evicts nobody                            -> Bring
    10. what is on its way back will do                              -> Wait
    11. there is a plan that shrinks or evicts idle engines          -> Wait; do it
        ... but one of them has other work first, for a while        -> Wait; hold
    12. there is one if engines at work shrink, or jobs of a lower
        class stop                                                   -> Wait; shrink, preempt
    13. there is none: busy engines hold the bytes                   -> Wait

Who gives way to whom stands in `precedence.py`.

Three rules keep engines from being carried in and out for nothing. A freshly loaded engine is
leased to the job that it was loaded for. What a higher class used last is kept for
`resident_ms_min` before a lower class may evict it. And an engine in memory does other waiting work
of the same or a higher class before it is evicted, for at most `group_ms_max`.
"""

from dataclasses import replace

from coscheduler.core import planner
from coscheduler.core.books import Books
from coscheduler.core.engine_state import EngineState, Phase
from coscheduler.core.intents import Bring, GiveUp, Go, GoOn, Intent, Turn, Wait
from coscheduler.core.ledger import Part
from coscheduler.core.model import (
    EngineName,
    Job,
    Option,
    StageState,
    total_bytes,
)
from coscheduler.core.precedence import Precedence
from coscheduler.core.refusals import misfit, not_configured
from coscheduler.core.room import Rooms


class Decider:
    """Considers one turn at a time; the state it reads is the scheduler's own."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._ledger, self._engines, self._jobs = books.ledger, books.engines, books.jobs
        self._precedence = Precedence(books)
        self._rooms = Rooms(books)

    def consider(self, turn: Turn) -> Intent:
        """The intent of the job whose turn it is."""
        stage, engine = turn.stage, turn.engine
        if stage.state is StageState.PAUSED:  # 1
            return self._consider_paused(turn)
        state = self._engines.get(engine)
        if state is None:  # 2
            return GiveUp(not_configured(engine))
        if state.failure is not None:
            return GiveUp(state.failure)
        if state.description is None:
            return Wait(f"{engine} is starting")
        return (
            self._misfit(turn, state) or self._busy(turn, state) or self._consider_fit(turn, state)
        )

    def _misfit(self, turn: Turn, state: EngineState) -> GiveUp | Wait | None:
        """Before anybody gives way: it would be for nothing."""
        duration_ms, quality_min = turn.stage.duration_ms, turn.job.quality_min
        capacity, budget = self._ledger.capacity_bytes, self._ledger.budget_bytes
        if (failure := misfit(state, duration_ms, quality_min, budget)) is not None:  # 3
            return GiveUp(failure)
        is_short = capacity < budget
        if is_short and misfit(state, duration_ms, quality_min, capacity) is not None:  # 4
            reason = f"other programs to give memory back: {capacity} bytes are left"
            return Wait(reason, is_in_the_way=False)
        return None

    def _busy(self, turn: Turn, state: EngineState) -> Wait | None:  # 5
        if state.is_busy or state.phase is Phase.PAUSED:
            preempt = (state.name,) if self._precedence.may_preempt(turn.job, state) else ()
            doing = state.phase if state.phase is not Phase.LOADED else "resizing"
            return Wait(f"{state.name} is {doing} {state.job}".rstrip(), preempt=preempt)
        if self._precedence.is_leased_from(turn.job, state):
            return Wait(f"{state.name} was loaded for {state.leased_to}, which goes first")
        first = self._jobs.get(turn.claimed.get(state.name, ""))
        if first is not None and self._precedence.outranks(first, turn.job):
            return Wait(f"{state.name} is wanted by {first.name}, which comes first")
        return None

    def _consider_paused(self, turn: Turn) -> Intent:
        if self._engines[turn.engine].asked == "preempt":
            return Wait("its engine is wanted by a job of a higher class")
        return self._wait_for_slot(turn) or GoOn()

    def _consider_fit(self, turn: Turn, state: EngineState) -> Intent:
        tier = state.best_tier(turn.stage.duration_ms, self._ledger.capacity_bytes)
        assert tier is not None
        if state.phase is Phase.LOADED and state.option is not None:
            option = _as_loaded(state, tier)
            if option is None:  # 6
                return Wait(f"{state.name} to be loaded at another quality", unload=(state.name,))
            return self._wait_for_slot(turn) or self._run_or_make_room(turn, state, option)
        return self._load_or_make_room(turn, state, tier)

    def _wait_for_slot(self, turn: Turn) -> Wait | None:  # 7
        running = [s for s in self._engines.values() if s.phase is Phase.RUNNING]
        slots = self._books.limits.compute_slots
        if len(running) < slots:
            return None
        gives_way = (state for state in running if self._precedence.gives_way(turn.job, state))
        victims = [state for state in gives_way if state.target is None]  # else when it is done
        last = max(victims, key=lambda state: self._jobs.key_of(state.job), default=None)
        pause = () if last is None else (last.name,)
        return Wait(f"a compute slot: {len(running)} of {slots} are busy", pause=pause)

    def _run_or_make_room(self, turn: Turn, state: EngineState, option: Option) -> Intent:  # 8
        assert state.option is not None
        duration_ms, is_as_loaded = turn.stage.duration_ms, option.name == state.option.name
        lines = option.run_lines(duration_ms)
        if state.leased_to == turn.job.name and is_as_loaded:
            lines = self._ledger.entries()[state.name, Part.RUN].lines
        if self._ledger.overdraft_bytes:
            return Wait("memory on its way back: the budget shrank")
        needed, free = total_bytes(lines), self._rooms.of_turn(turn).free_bytes
        if needed <= free:
            return Go(lines, option)
        wait = Wait(f"memory: {needed} bytes to run, {free} free", needed)
        run_only = replace(option, resident=(), load_ms=0)
        request = planner.Request((run_only,), duration_ms, 0, needs_process=False)
        moved = self._make_room(turn, request, option.quality_tier, wait)
        if moved is None and turn.spare_bytes is None:
            moved = self._become_other(turn, state, option, wait)
        return moved or self._explained(turn, wait)

    def _become_other(
        self, turn: Turn, state: EngineState, option: Option, wait: Wait
    ) -> Wait | None:
        """Would another option of the same tier fit into what is free plus what this one holds? Or
        would this one not fit even alone? Then the engine goes, and comes as what does.
        """
        assert state.option is not None
        own = self._ledger.free_bytes + self._ledger.bytes_of(state.name, Part.RESIDENT)
        slack = self._ledger.bytes_of(state.name, Part.SLACK)
        duration_ms = turn.stage.duration_ms
        for other in state.kin():
            if other.name != state.option.name and other.peak_bytes(duration_ms) <= own:
                return replace(wait, resize=((state.name, other.name),))
        others = (
            other.peak_bytes(duration_ms) <= own + slack
            for other in state.options()
            if other.quality_tier == state.option.quality_tier
            if other.name != state.option.name
        )
        capacity, context_bytes = self._ledger.capacity_bytes, state.context_bytes
        fits = planner.fits_alone(option, duration_ms, context_bytes, capacity)
        return replace(wait, unload=(state.name,)) if not fits or any(others) else None

    def _load_or_make_room(self, turn: Turn, state: EngineState, tier: int) -> Intent:
        is_new, context_bytes = state.is_stopped, state.context_to_come_bytes
        duration_ms, options = turn.stage.duration_ms, state.options()
        runs = self._jobs.ahead(turn.engine)
        request = planner.Request(options, duration_ms, context_bytes, is_new, runs)
        plan = planner.plan(request, tier, self._rooms.of_turn(turn))
        if plan is not None and plan.evicts_nobody:  # 9
            if self._books.may_load:
                return Bring(plan.option)
            return Wait("another load to end", _needed(request, plan.option))
        of_tier = [option for option in options if option.quality_tier == tier]
        needed = planner.least_bytes(of_tier, duration_ms, context_bytes)
        reason = f"memory: {needed} bytes needed, {self._ledger.free_bytes} free"
        if is_new and self._books.processes_free <= 0:
            reason = f"a process to end: {self._books.limits.processes_max} may hold a context"
        wait = Wait(reason, needed)
        return self._make_room(turn, request, tier, wait) or self._explained(turn, wait)

    def _make_room(
        self, turn: Turn, request: planner.Request, tier: int, wait: Wait
    ) -> Wait | None:  # 10, 11, 12
        """`wait`, with what will end it; None: there is nothing."""
        if self._is_on_its_way(turn, request, tier):
            return wait
        plan = planner.plan(request, tier, self._rooms.of_turn(turn))
        if plan is not None:
            needed = _needed(request, plan.option)
            victims = plan.unload + plan.stop
            if hold := tuple(name for name in victims if self._has_other_work(turn.job, name)):
                return Wait(f"{', '.join(hold)} to do other work first", needed, hold=hold)
            return Wait.evicting(plan, needed)
        plan = planner.plan(request, tier, self._rooms.of_turn(turn, at_work=True))
        if plan is None:
            return None
        victims_at_work = (self._engines[name] for name in plan.unload + plan.stop)
        preempt = tuple(state.name for state in victims_at_work if not state.is_idle)
        return replace(wait, preempt=preempt, resize=plan.shrink)

    def _is_on_its_way(self, turn: Turn, request: planner.Request, tier: int) -> bool:
        """Will the head's needs be met by what others were asked for already?"""
        releasing = self._ledger.releasing_bytes
        if turn.spare_bytes is not None or not releasing:
            return False
        room = self._rooms.of_turn(turn)
        room = replace(room, free_bytes=room.free_bytes + releasing, tenants=())
        return planner.plan(request, tier, room) is not None

    def _explained(self, turn: Turn, wait: Wait) -> Wait:  # 13
        """The same, with the idle engines that may not be evicted."""
        others = [state for state in self._engines.values() if state.is_idle]
        why = [f"{s.name} is pinned" for s in others if s.is_pinned]
        why += [
            f"{s.name} is kept a little"
            for s in others
            if self._precedence.is_kept_from(turn.job, s)
        ]
        return replace(wait, reason="; ".join([wait.reason, *why]))

    def _has_other_work(self, job: Job, name: EngineName) -> bool:
        """Could a waiting job, of no lower class, run on the victim at once, in the time left?"""
        state, now_ms = self._engines[name], self._jobs.now_ms
        since_ms = state.held_since_ms if state.held_for else now_ms
        option = state.loaded_option()
        if option is None or now_ms - since_ms >= self._books.limits.group_ms_max:
            return False
        free = self._ledger.free_bytes
        return any(
            total_bytes(option.run_lines(other.stage.duration_ms)) <= free
            for other in self._jobs.all()
            if other.name != job.name and other.priority >= job.priority
            if self._wants(other, state)
        )

    def _wants(self, job: Job, state: EngineState) -> bool:
        """Is the job's current stage ready for the engine as it is loaded?"""
        stage = job.stage
        if stage.engine is not state.name or not stage.input.artifact:
            return False
        if not self._jobs.is_pending(job.name) or state.option is None:
            return False
        tier = state.best_tier(stage.duration_ms, self._ledger.capacity_bytes)
        return tier is not None and _as_loaded(state, tier) is not None


def _as_loaded(state: EngineState, tier: int) -> Option | None:
    """The option of a tier that the engine can run with as it is loaded: the loaded one, else one
    of the same base.
    """
    option = state.loaded_option()
    if option is None or option.quality_tier == tier:
        return option
    of_base = (other for other in state.options() if other.base and other.base == option.base)
    return next((other for other in of_base if other.quality_tier == tier), None)


def _needed(request: planner.Request, option: Option) -> int:
    return request.context_bytes + option.peak_bytes(request.duration_ms)
