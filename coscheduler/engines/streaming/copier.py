"""Copying layers into static slots beside the computation: one small interface for every device.

A slot is filled, waited for, and used; then it may be filled again. On the CPU a thread copies and
the one who waits blocks; on CUDA (`cuda.py`) streams and events keep the order and nobody blocks.
"""

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coscheduler.engines.streaming.blocks import COPY_BYTES, allocate


class Slot(Protocol):
    """Device memory that holds one layer after the other."""

    flat: Tensor  # uint8 [size]

    def fill(self, name: str) -> None:
        """Begin to copy a segment of the host's side in, once all that `used` told of is computed.

        Does not wait. A fill that is still going on is given up first.
        """
        ...

    def wait(self) -> None:
        """What is computed from now on sees the last fill whole. Raises what the copy raised."""
        ...

    def used(self) -> None:
        """All that reads the slot has been asked for; the next fill comes after it."""
        ...

    def close(self) -> None:
        """Give up the fill that is going on; nothing writes to the slot afterwards."""
        ...


class Copier(Protocol):
    """Makes slots and fills them, one after the other."""

    def expect(self, names: Sequence[str]) -> None:
        """These will be filled again and again: get ready for it, off the path."""
        ...

    def settle(self) -> None:
        """Wait until all that was expected is ready: for whoever measures."""
        ...

    def slot(self, size: int) -> Slot:
        """A new slot of `size` bytes. Raises MemoryError, OSError or torch's OutOfMemoryError."""
        ...

    def close(self) -> None:
        """Give back everything but the slots, which were closed before."""
        ...


class Host(Protocol):
    """The host's side: where fills come from."""

    def raw(self, name: str) -> memoryview:
        """The bytes of a segment. KeyError for an unknown name."""
        ...


class Work(Protocol):
    """Something for a worker thread."""

    def run(self) -> None:
        """Do it; raises nothing."""
        ...


class Worker:
    """One thread that does one thing after the other. It starts with the first of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, work: Work) -> None:
        """Do this, after all that was put before."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
            self._thread.start()
        self._queue.put(work)

    def settle(self) -> None:
        """Wait until all that was put is done."""
        if self._thread is not None:
            mark = _Mark()
            self._queue.put(mark)
            mark.passed.wait()

    def close(self) -> None:
        """Wait until all is done and the thread has ended."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _loop(self) -> None:
        while (work := self._queue.get()) is not None:
            work.run()
            del work  # it may refer to a slot, and waiting for the next must not keep that alive


@dataclass
class _Mark:
    passed: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        self.passed.set()


@dataclass
class _Copy:
    source: NDArray[np.uint8]
    target: NDArray[np.uint8]
    done: threading.Event = field(default_factory=threading.Event)
    is_cancelled: bool = False
    error: BaseException | None = None

    def run(self) -> None:
        """In pieces, so that a copy that nobody wants any more ends soon. NumPy copies without the
        interpreter's lock, and in one thread: the others compute.
        """
        try:
            for start in range(0, len(self.source), COPY_BYTES):
                if self.is_cancelled:
                    return
                piece = self.source[start : start + COPY_BYTES]
                np.copyto(self.target[start : start + len(piece)], piece)
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()


class ThreadSlot:
    """A slot on the CPU, where what is computed is over when its call returns."""

    def __init__(self, size: int, host: Host, worker: Worker) -> None:
        self.flat = allocate(size, torch.device("cpu"))
        self.flat.zero_()  # takes the pages now, not within a pass
        self._target: NDArray[np.uint8] = self.flat.numpy()
        self._host, self._worker = host, worker
        self._copy: _Copy | None = None

    def fill(self, name: str) -> None:
        """Have the thread copy; a copy given up ends before, since there is one thread."""
        if self._copy is not None:
            self._copy.is_cancelled = True
        self._copy = _Copy(np.frombuffer(self._host.raw(name), dtype=np.uint8), self._target)
        self._worker.put(self._copy)

    def wait(self) -> None:
        """Block until the copy is done."""
        assert self._copy is not None
        self._copy.done.wait()
        if self._copy.error is not None:
            raise self._copy.error

    def used(self) -> None:
        """Nothing is left to wait for."""

    def close(self) -> None:
        """Waits for at most one piece."""
        if self._copy is not None:
            self._copy.is_cancelled = True
            self._copy.done.wait()
            self._copy = None


class ThreadCopier:
    """Fills slots from a thread of its own."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._worker = Worker("copier")

    def expect(self, names: Sequence[str]) -> None:
        """Nothing: the page cache is the host's side."""

    def settle(self) -> None:
        """There is nothing to wait for."""

    def slot(self, size: int) -> ThreadSlot:
        """Anonymous memory, all of its pages taken."""
        return ThreadSlot(size, self._host, self._worker)

    def close(self) -> None:
        """End the thread."""
        self._worker.close()
