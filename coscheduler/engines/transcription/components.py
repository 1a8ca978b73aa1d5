"""Models that are on the device from load to unload, or only while they are in use.

On a card, what leaves goes to RAM or stays there, and comes back as copies over the link: that is
faster than reading a file and building the model again. On the CPU it is dropped and read again, as
memory that is given back is all there is to gain.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from coscheduler.core.model import Line, LineBytes
from coscheduler.errors import EngineFault

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Source(Protocol[T_co]):
    """Where a model comes from and what becomes of it when it leaves."""

    def come(self) -> T_co:
        """The model, on the device."""
        ...

    def go(self) -> None:
        """Nobody has the model any more: let its bytes leave the device."""
        ...


class Component(Generic[T]):
    """A model and the ledger line of its weights. `give_back` returns freed memory."""

    def __init__(
        self, source: Source[T], line: Line, size_bytes: int, give_back: Callable[[], None]
    ) -> None:
        self._source = source
        self._line = LineBytes(line, size_bytes)
        self._give_back = give_back
        self._model: T | None = None
        self._is_held = False
        self._user_count = 0

    @property
    def held(self) -> tuple[LineBytes, ...]:
        """What it has on the device now."""
        return (self._line,) if self._model is not None else ()

    def place(self, is_held: bool) -> None:
        """Stay from now on, or be there only while in use: what is in use goes when it no longer
        is. Raises whatever coming raises; then it is as it was.
        """
        if is_held:
            self._come()
        self._is_held = is_held
        self._settle()

    @contextmanager
    def use(self) -> Iterator[T]:
        """The model, on the device within the block."""
        model = self._come()
        self._user_count += 1
        try:
            yield model
        finally:
            self._user_count -= 1
            del model
            self._settle()

    def _come(self) -> T:
        if self._model is None:
            self._model = self._source.come()
        return self._model

    def _settle(self) -> None:
        if self._is_held or self._user_count or self._model is None:
            return
        self._model = None
        self._source.go()
        self._give_back()


class File(Generic[T]):
    """Read anew each time."""

    def __init__(self, read: Callable[[], T]) -> None:
        self._read = read

    def come(self) -> T:
        """See `Source`."""
        return self._read()

    def go(self) -> None:
        """The last reference is gone already."""


class Ram(Generic[T]):
    """Read once, onto the device; `move` then takes it to RAM (False) and back (True)."""

    def __init__(self, read: Callable[[], T], move: Callable[[T, bool], None]) -> None:
        self._read = read
        self._move = move
        self._model: T | None = None

    def come(self) -> T:
        """See `Source`."""
        if self._model is None:
            self._model = self._read()
        else:
            self._move(self._model, True)
        return self._model

    def go(self) -> None:
        """See `Source`."""
        if self._model is not None:
            self._move(self._model, False)


class Parked:
    """CTranslate2's model, which is loaded: it parks itself. The copy in RAM is made when it leaves
    for the first time and kept, so that later it is dropped without being copied.
    """

    def __init__(self, whisper: Any) -> None:
        self._whisper = whisper

    def come(self) -> Any:
        """See `Source`."""
        if not self._whisper.model_is_loaded:
            self._whisper.load_model(keep_cache=True)
        return self._whisper

    def go(self) -> None:
        """Raises EngineFault UNLOAD_INCOMPLETE when it stayed, which it does without a word while a
        batch is running.
        """
        self._whisper.unload_model(to_cpu=True)
        if self._whisper.model_is_loaded:
            raise EngineFault("UNLOAD_INCOMPLETE", "CTranslate2 is busy and kept its weights")
