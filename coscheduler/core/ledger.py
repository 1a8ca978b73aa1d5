"""Who holds which bytes of the device. It refuses, it never clamps.

A reservation belongs to an engine and has a part: "survey" (while a process finds out what its
options take), "context" (until the process ends), "resident" (load to unload), "run" (while a stage
runs), "slack" (measured above predicted), "surplus" (layers that were asked back from an engine
that stays). Its way:

    RESERVED ──commit──> COMMITTED ──begin_release──> RELEASING ──drop──> gone

RELEASING is still charged: memory that was asked back is not memory that came back. What is only
planned is not in the ledger at all.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from coscheduler.core.model import EngineName, Line, LineBytes, Lines, total_bytes
from coscheduler.errors import LedgerRefusal


class Part(StrEnum):
    """Which of an engine's reservations."""

    SURVEY = "survey"
    CONTEXT = "context"
    RESIDENT = "resident"
    RUN = "run"
    SLACK = "slack"
    SURPLUS = "surplus"


class ReservationState(StrEnum):
    """How sure the bytes are."""

    RESERVED = "reserved"
    COMMITTED = "committed"
    RELEASING = "releasing"


Key = tuple[EngineName, Part]


@dataclass(frozen=True)
class Reservation:
    """Bytes by line that an engine holds or is about to hold."""

    lines: Lines
    state: ReservationState

    @property
    def bytes(self) -> int:
        """Sum over the lines."""
        return total_bytes(self.lines)


class Ledger:
    """All reservations against one capacity, bytes."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._budget_bytes = capacity_bytes
        self._reservations: dict[Key, Reservation] = {}

    @property
    def capacity_bytes(self) -> int:
        """What may be given out in all."""
        return self._capacity_bytes

    @property
    def budget_bytes(self) -> int:
        """What the capacity would be if no other program used the device."""
        return self._budget_bytes

    @property
    def used_bytes(self) -> int:
        """Everything charged, RELEASING included."""
        return sum(entry.bytes for entry in self._reservations.values())

    @property
    def free_bytes(self) -> int:
        """What can be reserved now; 0 while a lowered capacity is overdrawn."""
        return max(0, self._capacity_bytes - self.used_bytes)

    @property
    def overdraft_bytes(self) -> int:
        """How far a lowered capacity is exceeded; only `set_capacity` can cause it."""
        return max(0, self.used_bytes - self._capacity_bytes)

    @property
    def releasing_bytes(self) -> int:
        """Asked back and not confirmed yet."""
        return sum(
            entry.bytes
            for entry in self._reservations.values()
            if entry.state is ReservationState.RELEASING
        )

    def entries(self) -> dict[Key, Reservation]:
        """A copy of every reservation."""
        return dict(self._reservations)

    def bytes_of(self, engine: EngineName, *parts: Part) -> int:
        """Bytes of these parts of an engine; of all its parts when none is named."""
        return sum(
            entry.bytes
            for (owner, part), entry in self._reservations.items()
            if owner is engine and (not parts or part in parts)
        )

    def reserve(self, key: Key, lines: Lines) -> None:
        """Charge the lines. Raises LedgerRefusal when they do not fit or the key is taken."""
        if key in self._reservations:
            raise LedgerRefusal(
                "ALREADY_RESERVED", f"{key[0]} already holds a {key[1]} reservation"
            )
        self._check_room(key, total_bytes(lines))
        self._reservations[key] = Reservation(lines, ReservationState.RESERVED)

    def resize(self, key: Key, lines: Lines) -> None:
        """Replace a reservation's lines, its state kept. Raises LedgerRefusal for lack of room."""
        entry = self._get(key)
        self._check_room(key, total_bytes(lines) - entry.bytes)
        self._reservations[key] = replace(entry, lines=lines)

    def commit(self, key: Key) -> None:
        """The bytes are really taken now."""
        self._move(key, ReservationState.RESERVED, ReservationState.COMMITTED)

    def begin_release(self, key: Key) -> None:
        """The bytes are asked back; they stay charged."""
        self._move(key, ReservationState.COMMITTED, ReservationState.RELEASING)

    def ask_back(self, engine: EngineName, lines: Lines) -> None:
        """The engine is to keep only `lines` of what is resident; the rest is SURPLUS, RELEASING.
        Raises LedgerRefusal when there is less, or a surplus already.
        """
        key, surplus = (engine, Part.RESIDENT), (engine, Part.SURPLUS)
        entry = self._get(key)
        rest = entry.bytes - total_bytes(lines)
        if rest < 0 or surplus in self._reservations:
            raise LedgerRefusal("WRONG_STATE", f"{engine} cannot give back {rest} bytes")
        self._reservations[key] = replace(entry, lines=lines)
        self._reservations[surplus] = Reservation(
            (LineBytes(Line.WEIGHTS, rest),), ReservationState.RELEASING
        )

    def take_back(self, engine: EngineName, run: Lines) -> None:
        """The surplus, if any, is back. What runs there may hold `run` from now on, out of that:
        also while a lowered capacity is overdrawn, since the sum does not grow. Raises
        LedgerRefusal when it would.
        """
        key = engine, Part.RUN
        entry, back_bytes = self._reservations.get(key), self.bytes_of(engine, Part.SURPLUS)
        if entry is not None and total_bytes(run) - entry.bytes > back_bytes:
            raise LedgerRefusal("WRONG_STATE", f"only {back_bytes} bytes of {engine} are back")
        self._reservations.pop((engine, Part.SURPLUS), None)
        if entry is not None:
            self._reservations[key] = replace(entry, lines=run)

    def drop(self, engine: EngineName, *parts: Part) -> int:
        """The bytes of these parts (all when none is named) are back. Returns how many."""
        keys = [
            key for key in self._reservations if key[0] is engine and (not parts or key[1] in parts)
        ]
        return sum(self._reservations.pop(key).bytes for key in keys)

    def set_capacity(self, capacity_bytes: int, budget_bytes: int | None = None) -> None:
        """Another capacity, and what it would be without other programs (None: the same). It may be
        below what is used: then nothing more is given out.
        """
        self._capacity_bytes = capacity_bytes
        self._budget_bytes = max(capacity_bytes, budget_bytes or 0)

    def restore(self, entries: dict[Key, Reservation]) -> None:
        """Take over all reservations of another ledger in place of one's own, as they are."""
        self._reservations = dict(entries)

    def _check_room(self, key: Key, growth_bytes: int) -> None:
        if growth_bytes > self._capacity_bytes - self.used_bytes and growth_bytes > 0:
            raise LedgerRefusal(
                "NO_MEMORY",
                f"{key[0]} {key[1]}: {growth_bytes} bytes asked, {self.free_bytes} free "
                f"of {self._capacity_bytes}",
                required_bytes=growth_bytes,
                free_bytes=self.free_bytes,
                capacity_bytes=self._capacity_bytes,
            )

    def _get(self, key: Key) -> Reservation:
        entry = self._reservations.get(key)
        if entry is None:
            raise LedgerRefusal("NOT_RESERVED", f"{key[0]} holds no {key[1]} reservation")
        return entry

    def _move(self, key: Key, source: ReservationState, target: ReservationState) -> None:
        entry = self._get(key)
        if entry.state is not source:
            raise LedgerRefusal(
                "WRONG_STATE", f"{key[0]} {key[1]} is {entry.state}, expected {source}"
            )
        self._reservations[key] = replace(entry, state=target)
