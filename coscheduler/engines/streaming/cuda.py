"""Filling slots on CUDA: a copy stream beside the computing one, kept in order by events.

Page-locked (pinned) segments are copied by the card itself. Others go piece by piece through a
small ring of pinned buffers that a thread fills; there the host waits, if at all, for the thread
to have handed the last piece over.
"""

import logging
import mmap
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coscheduler.engines.streaming.blocks import COPY_BYTES
from coscheduler.engines.streaming.copier import Host, Worker

log = logging.getLogger(__name__)
RING_BUFFERS = 2


class Pins:
    """Pinned copies of segments, made by a thread (about 1 GB/s), as many as the budget allows."""

    def __init__(self, host: Host, device: torch.device, budget_bytes: int) -> None:
        self._host, self._device = host, device
        self._left_bytes = budget_bytes
        self._worker = Worker("pins")
        self._asked: set[str] = set()
        self._tensors: dict[str, Tensor] = {}
        self._closing = threading.Event()

    def get(self, name: str) -> Tensor | None:
        """The pinned copy, uint8 [size], if it is there by now."""
        return self._tensors.get(name)

    def ask(self, names: Sequence[str]) -> None:
        """Have these pinned where the budget has room."""
        for name in names:
            size = len(self._host.raw(name))
            if name not in self._asked and size <= self._left_bytes:
                self._left_bytes -= size
                self._asked.add(name)
                self._worker.put(_Pin(self, name))

    def settle(self) -> None:
        """Wait until all that was asked for is pinned."""
        self._worker.settle()

    def pin(self, name: str) -> None:
        """Within the thread: copy, then lock. Memory that cannot be locked is let go."""
        if self._closing.is_set():
            return
        source = self._host.raw(name)
        memory = torch.frombuffer(mmap.mmap(-1, len(source)), dtype=torch.uint8)
        np.copyto(memory.numpy(), np.frombuffer(source, dtype=np.uint8))
        with torch.cuda.device(self._device):
            error = _runtime().cudaHostRegister(memory.data_ptr(), len(source), 0)
        if int(error) == 0:
            self._tensors[name] = memory
        else:
            log.warning("cannot page-lock %d bytes of %s: error %s", len(source), name, error)

    def close(self) -> None:
        """Unlock everything; no copy may be under way."""
        self._closing.set()
        self._worker.close()
        for memory in self._tensors.values():
            _runtime().cudaHostUnregister(memory.data_ptr())
        self._tensors.clear()


@dataclass
class _Pin:
    pins: Pins
    name: str

    def run(self) -> None:
        self.pins.pin(self.name)


class Ring:
    """A few pinned buffers on the way from the page cache; used by one thread."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._buffers = [
            torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(RING_BUFFERS)
        ]
        self._sent = [_event() for _ in self._buffers]
        self._turn = 0

    def send(self, piece: NDArray[np.uint8], target: Tensor) -> None:
        """Copy a piece of at most COPY_BYTES into device memory, on the copy stream."""
        self._turn = (self._turn + 1) % RING_BUFFERS
        buffer, sent = self._buffers[self._turn], self._sent[self._turn]
        sent.synchronize()  # the last copy out of this buffer is done
        np.copyto(buffer.numpy()[: len(piece)], piece)
        with torch.cuda.stream(self._stream):
            target.copy_(buffer[: len(piece)], non_blocking=True)
            _record(sent, self._stream)


@dataclass
class _Feed:
    """One fill from the page cache."""

    slot: "CudaSlot"
    source: NDArray[np.uint8]
    handed_over: threading.Event = field(default_factory=threading.Event)
    is_cancelled: bool = False
    error: BaseException | None = None

    def run(self) -> None:
        try:
            self.slot.feed(self)
        except BaseException as error:
            self.error = error
        finally:
            self.handed_over.set()


class CudaSlot:
    """Device memory with two events: when it was filled, and when it was last read."""

    def __init__(self, size: int, copier: "CudaCopier") -> None:
        self._copier = copier
        self._device = copier.device
        self.flat = torch.empty(size, dtype=torch.uint8, device=self._device)
        self._filled, self._read = _event(), _event()
        self._feed: _Feed | None = None
        self.used()  # the memory may have been another tensor's until now

    def fill(self, name: str) -> None:
        """On the copy stream, after the last read; the host only asks for it."""
        self._give_up()
        pinned = self._copier.pins.get(name)
        if pinned is None:
            source = np.frombuffer(self._copier.host.raw(name), dtype=np.uint8)
            self._feed = _Feed(self, source)
            self._copier.worker.put(self._feed)
            return
        stream = self._copier.stream
        with torch.inference_mode(), torch.cuda.stream(stream):
            stream.wait_event(self._read)
            self.flat[: pinned.numel()].copy_(pinned, non_blocking=True)
            _record(self._filled, stream)

    def feed(self, feed: _Feed) -> None:
        """Within the copier's thread, which has no mode of its caller: a tensor that was made in
        inference mode may only be written to in it.
        """
        stream = self._copier.stream
        with torch.inference_mode(), torch.cuda.device(self._device):
            stream.wait_event(self._read)
            for start in range(0, len(feed.source), COPY_BYTES):
                if feed.is_cancelled:
                    return
                piece = feed.source[start : start + COPY_BYTES]
                self._copier.ring().send(piece, self.flat[start : start + len(piece)])
            _record(self._filled, stream)

    def wait(self) -> None:
        """The computing stream waits for the copy; the host, at most, for the thread."""
        if self._feed is not None:
            self._feed.handed_over.wait()
            if self._feed.error is not None:
                raise self._feed.error
        torch.cuda.current_stream(self._device).wait_event(self._filled)

    def used(self) -> None:
        """What the computing stream was asked for so far may read the slot."""
        _record(self._read, torch.cuda.current_stream(self._device))

    def close(self) -> None:
        """Nothing is on its way into the slot on return."""
        self._give_up()
        self._copier.stream.synchronize()

    def _give_up(self) -> None:
        if self._feed is not None:
            self._feed.is_cancelled = True
            self._feed.handed_over.wait()
            self._feed = None


class CudaCopier:
    """One copy stream, one thread for what is not pinned, pins within a budget."""

    def __init__(self, host: Host, device: torch.device, pinned_max: int) -> None:
        self.host, self.device = host, device
        self.pins = Pins(host, device, pinned_max)
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.worker = Worker("copier")
        self._ring: Ring | None = None

    def expect(self, names: Sequence[str]) -> None:
        """Pin them, in the background."""
        self.pins.ask(names)

    def settle(self) -> None:
        """Wait until they are pinned."""
        self.pins.settle()

    def slot(self, size: int) -> CudaSlot:
        """One tensor of the device. Raises torch's OutOfMemoryError."""
        return CudaSlot(size, self)

    def ring(self) -> Ring:
        """Made when the first segment comes that is not pinned."""
        if self._ring is None:
            self._ring = Ring(self.stream)
        return self._ring

    def close(self) -> None:
        """End the threads and unlock the host's memory."""
        self.worker.close()
        self.stream.synchronize()
        self.pins.close()


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def _record(event: torch.cuda.Event, stream: torch.cuda.Stream) -> None:
    event.record(stream)  # type: ignore[no-untyped-call]
