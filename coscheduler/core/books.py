"""What all parts of the core read, and some of them change: one set of books."""

from dataclasses import dataclass

from coscheduler.core.engine_state import EngineState, Limits, Phase
from coscheduler.core.jobs import JobBook
from coscheduler.core.ledger import Ledger, Part
from coscheduler.core.model import EngineName


@dataclass(frozen=True)
class Books:
    """The scheduler's own; nobody keeps a copy."""

    ledger: Ledger
    engines: dict[EngineName, EngineState]
    jobs: JobBook
    limits: Limits

    @property
    def running_count(self) -> int:
        """Engines that compute."""
        return sum(state.phase is Phase.RUNNING for state in self.engines.values())

    @property
    def processes_free(self) -> int:
        """How many more processes may hold a context."""
        held = sum(self.ledger.bytes_of(name, Part.CONTEXT) > 0 for name in self.engines)
        return self.limits.processes_max - held

    @property
    def may_load(self) -> bool:
        """Whether a load may begin beside those under way."""
        is_loading = any(state.phase is Phase.LOADING for state in self.engines.values())
        return not (self.limits.serial_loads and is_loading)
