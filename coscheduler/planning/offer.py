"""What an engine has to offer to a plan: its options, and what stands behind each of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from coscheduler.config import DeviceSettings
from coscheduler.core.model import EngineName, Option
from coscheduler.core.together import Choice, Member
from coscheduler.engines import hub
from coscheduler.errors import EngineFault, InvalidInput

Facts = Mapping[str, int | str]


@dataclass(frozen=True)
class Machine:
    """Whose memory is planned. `link_bytes_per_ms` is the speed from host to device memory."""

    device: DeviceSettings
    link_bytes_per_ms: int
    recording_ms_max: int

    def copy_ms(self, size_bytes: int) -> int:
        """Time to bring so many bytes to the device, rounded up."""
        return -(-size_bytes // self.link_bytes_per_ms)


@dataclass(frozen=True)
class Offered:
    """One option: `family` and `traffic_bytes` as in `together.Choice`, `facts` for people and
    programs by name, `host` what it holds of the host's memory, bytes by line.
    """

    option: Option
    family: str
    facts: Facts
    host: Mapping[str, int] = field(default_factory=dict)
    traffic_bytes: int = 0


@dataclass(frozen=True)
class Offer:
    """An engine's options; `host_out` is what its files hold of the host while it is out."""

    engine: EngineName
    model: str
    context_bytes: int
    offered: tuple[Offered, ...]
    host_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def member(self) -> Member:
        """As the planner takes it."""
        choices = tuple(
            Choice(entry.option, entry.family, entry.traffic_bytes) for entry in self.offered
        )
        return Member(self.engine, choices, self.context_bytes)

    def behind(self, choice: Choice) -> Offered:
        """What stands behind a choice of the planner."""
        return next(entry for entry in self.offered if entry.option is choice.option)


@contextmanager
def shape_wanted(engine: EngineName, model: object) -> Iterator[None]:
    """Around reading files that are not there while the config states no sizes either: raises
    InvalidInput SIZES_UNKNOWN that says both ways out.
    """
    try:
        yield
    except EngineFault as fault:
        if fault.reason != "MODEL_MISSING":
            raise
        raise InvalidInput(
            "SIZES_UNKNOWN",
            f"{engine}: {model} is not there, and the config states no sizes of it; put the files "
            f"in place, or add a section [{engine}.shape] as in configs/24gb.toml",
            engine=engine,
            model=model,
        ) from None


def local(name: Path | str, marker: str) -> Path:
    """Where a model of the config is; of a repository the cached snapshot, or no place at all."""
    try:
        return hub.located(Path(name), marker)
    except EngineFault:
        return Path(name)


def title(name: Path | str) -> str:
    """A model's name for people."""
    if not hub.is_name(name):
        return Path(name).name
    source = hub.parse(str(name))
    return (source.file or source.name).rpartition("/")[2]
