"""What can be done to an engine: the ledger, the job's record and the command change in one go."""

from coscheduler.core import commands as cmd
from coscheduler.core.books import Books
from coscheduler.core.engine_state import EngineState, Phase
from coscheduler.core.intents import Wait
from coscheduler.core.ledger import Part, ReservationState
from coscheduler.core.model import Job, Line, LineBytes, Lines, Option, StageState, total_bytes
from coscheduler.core.sizes import run_lines


class Actions:
    """Collects the commands and the sentences of one event."""

    def __init__(self, books: Books) -> None:
        self._books, self._ledger, self._jobs = books, books.ledger, books.jobs
        self._commands: list[cmd.Command] = []
        self._decisions: list[str] = []

    def take(self) -> tuple[tuple[cmd.Command, ...], tuple[str, ...]]:
        """The commands and decisions since the last call."""
        taken = tuple(self._commands), tuple(self._decisions)
        self._commands, self._decisions = [], []
        return taken

    def decide(self, sentence: str) -> None:
        """Say what was decided."""
        self._decisions.append(sentence)

    def describe(self, state: EngineState) -> None:
        """Find out what the engine is."""
        self._commands.append(cmd.Describe(state.name))

    def set_in_motion(self, wait: Wait, why: str, job_name: str = "") -> None:
        """Ask of the engines what the wait needs of them."""
        engines = self._books.engines
        for name, option in wait.resize:
            self.resize(engines[name], option, why, job_name)
        for name in wait.unload:
            self.unload(engines[name], why, job_name)
        for name in wait.stop:
            self.stop(engines[name], why, job_name)
        for name in wait.pause:
            self.ask(engines[name], "pause", why)
        for name in wait.preempt:
            self.ask(engines[name], "preempt", why)
        for name in wait.hold:
            if not engines[name].held_for:
                engines[name].held_for, engines[name].held_since_ms = job_name, self._jobs.now_ms

    # ---- coming into memory ------------------------------------------------------------------

    def load(self, state: EngineState, option: Option, job: str, duration_ms: int) -> None:
        """Bring the engine into memory, with room for a first run of `duration_ms` of audio."""
        if state.phase is Phase.STOPPED:
            context = (LineBytes(Line.CONTEXT, state.context_bytes),)
            self._ledger.reserve((state.name, Part.CONTEXT), context)
        self._ledger.reserve((state.name, Part.RESIDENT), option.resident)
        self._ledger.reserve((state.name, Part.RUN), option.run_lines(duration_ms))
        state.phase, state.option, state.job = Phase.LOADING, option, job
        if job:
            self._jobs.start(job)
            self._jobs.set_current(job, state=StageState.LOADING)
        self._commands.append(cmd.Load(state.name, option.name, job))
        self.decide(f"load {state.name} as '{option.name}'" + (f" for {job}" if job else ""))

    # ---- working -----------------------------------------------------------------------------

    def run(self, job: Job, state: EngineState, option: Option, lines: Lines) -> None:
        """Run the job's current stage on the loaded engine, with an option that it can run with as
        it is loaded.
        """
        self.end_lease(state)
        assert state.option is not None
        other = "" if option.name == state.option.name else option.name
        state.option, state.is_mixed = option, False
        self._ledger.reserve((state.name, Part.RUN), lines)
        self._ledger.commit((state.name, Part.RUN))
        state.phase, state.job, state.used_by = Phase.RUNNING, job.name, job.priority
        self._jobs.start(job.name)
        index = job.current_index
        stage = self._jobs[job.name].stages[index]
        self._jobs.set_stage(
            job.name,
            index,
            state=StageState.RUNNING,
            attempt_count=stage.attempt_count + 1,
            wait_ms=self._waited_ms(job.name),
            predicted_peak_bytes=option.peak_bytes(stage.duration_ms),
            option=option.name,
            quality_tier=option.quality_tier,
        )
        state.since_ms = self._jobs.now_ms  # while it runs: since when
        self._commands.append(cmd.Run(state.name, job.name, index, other))
        as_what = f" as '{other}'" if other else ""
        self.decide(f"run {stage.kind} of {job.name} on {state.name}{as_what}")

    def resume(self, job: Job, state: EngineState) -> None:
        """Let the paused stage go on."""
        waited_ms = self._waited_ms(job.name)
        self._jobs.set_current(job.name, state=StageState.RUNNING, wait_ms=waited_ms)
        state.phase, state.since_ms = Phase.RUNNING, self._jobs.now_ms
        self._commands.append(cmd.Resume(state.name, job.name))
        self.decide(f"resume {job.stage.kind} of {job.name}")

    def ask(self, state: EngineState, what: str, why: str) -> None:
        """Ask the running stage to pause, or to stop and go back into the queue; once."""
        if state.asked in (what, "preempt"):
            return
        state.asked = what
        order = cmd.Pause if what == "pause" else cmd.Preempt
        self._commands.append(order(state.name, state.job))
        self.decide(f"{what} {state.job}: {why}")

    def cancel(self, state: EngineState) -> None:
        """End the running or paused stage for good."""
        self._commands.append(cmd.Cancel(state.name, state.job))

    def end_run(self, state: EngineState) -> None:
        """The stage that ran there is over; the engine is idle."""
        self._ledger.drop(state.name, Part.RUN)
        if state.phase is Phase.RUNNING:
            self.count_run_time(state)
        state.phase, state.job, state.asked = Phase.LOADED, "", ""
        state.since_ms = self._jobs.now_ms

    def count_run_time(self, state: EngineState) -> None:
        """Add the time since the stage was started or resumed to its record."""
        stage = self._jobs[state.job].stage
        run_ms = stage.run_ms + self._jobs.now_ms - state.since_ms
        self._jobs.set_current(state.job, run_ms=run_ms)

    def _waited_ms(self, name: str) -> int:
        stage = self._jobs[name].stage
        return max(0, self._jobs.now_ms - stage.ready_ms - stage.load_ms - stage.run_ms)

    # ---- becoming another ---------------------------------------------------------------------

    def resize(self, state: EngineState, name: str, why: str, job_name: str = "") -> None:
        """Let the engine go to another option of its family: what it gets more is charged now, what
        it gives back until the answer comes; out of that its run may get more. An idle engine's
        lease ends.
        """
        assert state.option is not None
        option = next(kin for kin in state.kin() if kin.name == name)
        if state.phase is Phase.LOADED:
            self.end_lease(state)
        run = run_lines(self._books, state, option)
        if total_bytes(option.resident) > self._ledger.bytes_of(state.name, Part.RESIDENT):
            self._ledger.resize((state.name, Part.RESIDENT), option.resident)
            if (state.name, Part.RUN) in self._ledger.entries():
                self._ledger.resize((state.name, Part.RUN), run)
            self._note_peak(state)
        else:
            self._ledger.ask_back(state.name, option.resident)
        change = f"{state.name}: '{state.option.name}' becomes '{option.name}'"
        if job_name:
            self._jobs.note_eviction(job_name, change)
        if state.job:
            self._jobs.note_change(state.job, f"{change}: {why}")
        state.target, state.is_mixed = option, True
        bytes_max = self._ledger.bytes_of(state.name, Part.RESIDENT, Part.SLACK) + total_bytes(run)
        self._commands.append(cmd.Resize(state.name, option.name, bytes_max))
        self.decide(f"resize {change}: {why}")

    def _note_peak(self, state: EngineState) -> None:
        """The running stage may hold more than was predicted when it began."""
        if state.job:
            held = self._ledger.bytes_of(state.name, Part.RESIDENT, Part.RUN)
            stage = self._jobs[state.job].stage
            peak = max(stage.predicted_peak_bytes, held)
            self._jobs.set_current(state.job, predicted_peak_bytes=peak)

    # ---- leaving memory ----------------------------------------------------------------------

    def unload(self, state: EngineState, why: str, job_name: str = "") -> None:
        """Ask the idle engine's model back; the process stays."""
        self._note_eviction(state, job_name)
        self.end_lease(state)
        for part in (Part.RESIDENT, Part.SLACK):
            if (state.name, part) in self._ledger.entries():
                self._ledger.begin_release((state.name, part))
        state.phase, state.held_for = Phase.UNLOADING, ""
        self._commands.append(cmd.Unload(state.name))
        self.decide(f"unload {state.name}: {why}")

    def stop(self, state: EngineState, why: str, job_name: str = "") -> None:
        """End the idle engine's process."""
        self._note_eviction(state, job_name)
        self.end_lease(state)
        for (owner, part), entry in self._ledger.entries().items():
            if owner is state.name and entry.state is ReservationState.COMMITTED:
                self._ledger.begin_release((owner, part))
        state.phase, state.held_for = Phase.STOPPING, ""
        self._commands.append(cmd.Stop(state.name))
        self.decide(f"stop {state.name}: {why}")

    def end_lease(self, state: EngineState) -> None:
        """The bytes kept for the run of the job that it was loaded for are free again."""
        self._ledger.drop(state.name, Part.RUN)
        state.leased_to = ""

    def forget_process(self, state: EngineState) -> None:
        """The process is gone, and with it everything that it held."""
        self._ledger.drop(state.name)
        state.phase, state.option, state.job, state.asked = Phase.STOPPED, None, "", ""
        state.target = None
        state.leased_to, state.held_for, state.is_leaving = "", "", False
        state.since_ms = self._jobs.now_ms

    def _note_eviction(self, state: EngineState, job_name: str) -> None:
        what = f"{state.name}: {state.option.name}" if state.option else str(state.name)
        self._jobs.note_eviction(job_name, what)
