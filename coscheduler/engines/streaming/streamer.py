"""A model's layers: some stay in device memory, the others pass through slots, pass after pass.

The owner keeps its own loop and its own `forward`:

    for block in streamer.blocks():
        x = layer(block.tensors, x)

While a layer is computed the next streamed ones are copied into the other slots; behind the last
layer the next pass is made ready. Nothing is allocated and nothing written back within a pass.
`resize` may be called between any two layers, also in the middle of a pass. The bytes that a layer
is computed with are the same wherever it lies, and so is the result.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from coscheduler.engines.streaming.blocks import Block, load_block
from coscheduler.engines.streaming.copier import Copier, Slot, ThreadCopier
from coscheduler.engines.streaming.order import SLOTS, residency_order
from coscheduler.engines.streaming.prepared import PreparedFile

OnBytes = Callable[[int], None]  # so many bytes more are in place


@dataclass
class _Lane:
    """A slot and the layer whose bytes it has or is getting."""

    slot: Slot
    layer: int | None = None
    block: Block | None = None


class Streamer:
    """Use it from one thread, one pass at a time; `close` it in the end."""

    def __init__(
        self,
        prepared: PreparedFile,
        names: Sequence[str],
        device: torch.device,
        kept: int,
        *,
        slots: int = SLOTS,
        pinned_max: int = 0,
        copier: Copier | None = None,
        on_bytes: OnBytes | None = None,
    ) -> None:
        """`names` are the segments of the layers in the order of a pass; `kept` of them stay.
        `pinned_max` bytes of the host's memory may be page-locked, which is of use on CUDA only.

        Raises MemoryError, OSError or torch's OutOfMemoryError; then nothing is held.
        """
        self._prepared, self._device = prepared, device
        self._entries = tuple(prepared.segments[name] for name in names)
        self._order = residency_order(len(names))
        self._slot_count = slots
        self._copier = copier or open_copier(prepared, device, pinned_max)
        self._staying: frozenset[int] = frozenset()
        self._blocks: dict[int, Block] = {}
        self._lanes: list[_Lane] = []
        self._held: int | None = None  # the layer that the owner is at
        self.is_open = False
        self.resize(kept, on_bytes)
        self.is_open = True

    @property
    def kept(self) -> int:
        """How many layers stay."""
        return len(self._staying)

    @property
    def resident_bytes(self) -> int:
        """Device bytes of the layers that stay."""
        return sum(block.bytes for block in self._blocks.values())

    @property
    def slot_bytes(self) -> int:
        """Device bytes of the slots; 0 where all layers stay."""
        return sum(lane.slot.flat.numel() for lane in self._lanes)

    def blocks(self) -> Iterator[Block]:
        """One pass over all layers in order. A block is valid until the next one is asked for.

        A pass may be left early; the next one begins at the first layer. Raises RuntimeError while
        another pass is under way, and what a copy raised.
        """
        if self._held is not None:
            raise RuntimeError(f"another pass is at layer {self._held}; end or close it first")
        for index in range(len(self._entries)):
            self._held = index
            try:
                yield self._take(index)
            finally:
                self._leave(index)

    def stays(self, index: int) -> Block:
        """A layer that stays. KeyError for one that does not."""
        return self._blocks[index]

    def resize(self, kept: int, on_bytes: OnBytes | None = None) -> None:
        """Let `kept` layers stay. What goes, goes first, and its memory is free on return; only the
        layer that the owner is at stays until the owner goes on.

        Raises ValueError for a count out of range, else as the constructor. Then it is as it was;
        where that has no room either all is closed.
        """
        if not 0 <= kept <= len(self._entries):
            raise ValueError(f"{kept} of {len(self._entries)} layers cannot stay")
        before = self._staying
        try:
            self._keep(frozenset(self._order[:kept]), on_bytes)
        except BaseException:
            self._go_back(before)
            raise

    def _keep(self, staying: frozenset[int], on_bytes: OnBytes | None = None) -> None:
        self._staying = staying
        self._drop_surplus()
        self._make_slots()
        for index in self._order[: self.kept]:
            if index not in self._blocks:
                name = self._entries[index].name
                self._blocks[index] = load_block(self._prepared, name, self._device)
                if on_bytes is not None:
                    on_bytes(self._blocks[index].bytes)
        self._fill_lanes(0 if self._held is None else self._held)
        self._copier.expect([self._entries[index].name for index in self._order[self.kept :]])

    def _go_back(self, before: frozenset[int]) -> None:
        """To what stayed before; the first time nothing did."""
        try:
            if self.is_open:
                self._keep(before)
            else:
                self.close()
        except BaseException:
            self.close()
            raise

    def settle(self) -> None:
        """Wait until the host's side is as ready as it will be: for whoever measures."""
        self._copier.settle()

    def close(self) -> None:
        """Give everything back; calling it twice is allowed."""
        self.is_open = False
        self._staying = frozenset()
        self._blocks.clear()
        self._close_lanes()
        self._copier.close()
        self._empty_cache()

    def _take(self, index: int) -> Block:
        if index in self._blocks:
            return self._blocks[index]
        self._fill_lanes(index)
        lane = next((lane for lane in self._lanes if lane.layer == index), None)
        if lane is None or lane.block is None:
            raise RuntimeError("the streamer is closed")
        lane.slot.wait()
        return lane.block

    def _leave(self, index: int) -> None:
        """The owner is done with a layer: its slot may be filled, or its memory go."""
        self._held = None
        for lane in self._lanes:
            if lane.layer == index:
                lane.slot.used()
        if self._has_surplus:
            self._drop_surplus()
        self._fill_lanes((index + 1) % len(self._entries))

    def _fill_lanes(self, first: int) -> None:
        """Have the streamed layers from `first` on in the slots, as many as there are slots."""
        wanted = self._streamed_from(first)[: len(self._lanes)]
        free = [lane for lane in self._lanes if lane.layer not in wanted]
        present = {lane.layer for lane in self._lanes}
        for layer, lane in zip((w for w in wanted if w not in present), free, strict=False):
            entry = self._entries[layer]
            lane.layer = layer
            lane.block = Block(entry, lane.slot.flat[: entry.bytes])
            lane.slot.fill(entry.name)

    def _streamed_from(self, first: int) -> list[int]:
        count = len(self._entries)
        around = ((first + step) % count for step in range(count))
        return [index for index in around if index not in self._blocks]

    def _make_slots(self) -> None:
        if self._lanes or self._all_stay:
            return
        size = max(entry.bytes for entry in self._entries)
        for _ in range(min(self._slot_count, len(self._entries))):
            self._lanes.append(_Lane(self._copier.slot(size)))

    @property
    def _all_stay(self) -> bool:
        return len(self._staying) == len(self._entries)

    @property
    def _has_surplus(self) -> bool:
        too_many = any(index not in self._staying for index in self._blocks)
        return too_many or (self._all_stay and bool(self._lanes))

    def _drop_surplus(self) -> None:
        """What is not to stay and not in the owner's hands."""
        for index in [i for i in self._blocks if i not in self._staying and i != self._held]:
            del self._blocks[index]
        in_hand = self._held is not None and self._held not in self._blocks
        if self._all_stay and not in_hand:
            self._close_lanes()
        self._empty_cache()

    def _close_lanes(self) -> None:
        for lane in self._lanes:
            lane.slot.close()
        self._lanes.clear()

    def _empty_cache(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def open_copier(prepared: PreparedFile, device: torch.device, pinned_max: int = 0) -> Copier:
    """The copier of a device, filling from the mapped file."""
    if device.type == "cpu":
        return ThreadCopier(prepared)
    from coscheduler.engines.streaming.cuda import CudaCopier

    return CudaCopier(prepared, device, pinned_max)
