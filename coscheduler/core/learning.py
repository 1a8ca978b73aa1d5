"""What an engine's real work taught: bytes above the prediction, and how long things take.

Bytes that were measured after a success are the truth and stay. Bytes that are concluded from an
out-of-memory are a guess, since another program may have been at fault: they are forgotten after a
while, so that a bad minute does not lower the quality for good. So is what an engine's death says
of the option that it died with.
"""

from dataclasses import dataclass, field, replace

from coscheduler.core.model import Line, LineBytes, Option, RunLine

MS_PER_SECOND = 1000
NEW_PARTS, ALL_PARTS = 1, 4  # weight of the newest of the times that are averaged


@dataclass(frozen=True)
class KnownPeak:
    """What an option took above its prediction in earlier runs, while it is loaded and beside that
    while it runs; `run_count` of them taught it.
    """

    option: str
    resident_bytes: int
    run_bytes: int
    run_count: int


@dataclass
class Learned:
    """By the option's name. `pace` is run time in microseconds for each second of audio, and
    `fixed_run_ms` the run time of work without audio; `until_ms` says when a guess is forgotten.
    """

    resident_bytes: dict[str, int] = field(default_factory=dict)
    run_bytes: dict[str, int] = field(default_factory=dict)
    guessed_bytes: dict[str, int] = field(default_factory=dict)
    until_ms: dict[str, int] = field(default_factory=dict)
    distrusted_until_ms: dict[str, int] = field(default_factory=dict)  # the engine died with it
    load_ms: dict[str, int] = field(default_factory=dict)
    pace: dict[str, int] = field(default_factory=dict)
    fixed_run_ms: dict[str, int] = field(default_factory=dict)

    def copy(self) -> "Learned":
        """One that can be changed without changing this one."""
        return Learned(*(dict(table) for table in vars(self).values()))

    def recall(self, peak: KnownPeak) -> None:
        """Take over what earlier runs measured; what was measured since may be more."""
        for table, size in (
            (self.resident_bytes, peak.resident_bytes),
            (self.run_bytes, peak.run_bytes),
        ):
            if size > table.get(peak.option, 0):
                table[peak.option] = size

    def corrected(self, option: Option) -> Option:
        """The option with what it was found to take on top of its prediction."""
        resident = self.resident_bytes.get(option.name, 0)
        run = self.run_bytes.get(option.name, 0) + self.guessed_bytes.get(option.name, 0)
        if resident:
            lines = (*option.resident, LineBytes(Line.SLACK, resident))
            option = replace(option, resident=lines)
        if run:
            phases = dict.fromkeys(line.phase for line in option.run) or {"": None}
            more = tuple(RunLine(Line.SLACK, run, phase=phase) for phase in phases)
            option = replace(option, run=(*option.run, *more))
        return option

    def guess(self, name: str, size_bytes: int, until_ms: int) -> None:
        """After an out-of-memory: the option is taken to need so much more, for a while."""
        self.guessed_bytes[name] = self.guessed_bytes.get(name, 0) + size_bytes
        self.until_ms[name] = until_ms

    def forget_guess(self, name: str) -> None:
        """The option is trusted again."""
        self.guessed_bytes.pop(name, None)
        self.until_ms.pop(name, None)

    def forget_old_guesses(self, now_ms: int) -> bool:
        """Drop those whose time has come; whether there were any."""
        old = [name for name, until_ms in self.until_ms.items() if until_ms <= now_ms]
        for name in old:
            self.forget_guess(name)
        trusted = [
            name for name, until_ms in self.distrusted_until_ms.items() if until_ms <= now_ms
        ]
        for name in trusted:
            del self.distrusted_until_ms[name]
        return bool(old)

    def trusted(self, options: tuple[Option, ...]) -> tuple[Option, ...]:
        """All; after the engine died with one of them for a while the safe ones, if there are any
        that it did not die with.
        """
        if not self.distrusted_until_ms:
            return options
        safe = (option for option in options if option.is_safe)
        return tuple(option for option in safe if option.name not in self.distrusted_until_ms) or (
            options
        )

    def note_load(self, name: str, load_ms: int) -> None:
        """A load took so long."""
        self.load_ms[name] = _average(self.load_ms.get(name), load_ms)

    def note_run(self, name: str, duration_ms: int, run_ms: int) -> None:
        """A run over `duration_ms` of audio (0: none) took so long."""
        if duration_ms:
            pace = run_ms * MS_PER_SECOND * MS_PER_SECOND // duration_ms
            self.pace[name] = _average(self.pace.get(name), pace)
        else:
            self.fixed_run_ms[name] = _average(self.fixed_run_ms.get(name), run_ms)

    def expected_load_ms(self, option: Option) -> int:
        """As learned, else as predicted."""
        return self.load_ms.get(option.name, option.load_ms)

    def expected_run_ms(self, option: Option, duration_ms: int) -> int:
        """As learned, else as predicted."""
        if not duration_ms:
            return self.fixed_run_ms.get(option.name, 0)
        if (pace := self.pace.get(option.name)) is None:
            return option.run_ms(duration_ms)
        return pace * duration_ms // (MS_PER_SECOND * MS_PER_SECOND)


def _average(old: int | None, new: int) -> int:
    if old is None:
        return new
    return ((ALL_PARTS - NEW_PARTS) * old + NEW_PARTS * new) // ALL_PARTS
