"""The streamer: the same bits for every number of resident layers, also while that changes."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from coscheduler.engines.streaming import prepared
from coscheduler.engines.streaming.blocks import allocate
from coscheduler.engines.streaming.copier import Slot, Worker
from coscheduler.engines.streaming.prepared import PreparedFile, SegmentPlan, TensorPlan
from coscheduler.engines.streaming.streamer import Streamer
from coscheduler.runtime.meter import ProcessMeter

CPU = torch.device("cpu")
DEVICES = [
    CPU,
    pytest.param(
        torch.device("cuda"),
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]
LAYERS, WIDTH = 7, 48
NAMES = [f"layer.{index}" for index in range(LAYERS)]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_plan(index: int) -> SegmentPlan:
    def weight() -> Iterator[Tensor]:
        yield draw(index, WIDTH, WIDTH) / WIDTH**0.5

    def bias() -> Iterator[Tensor]:
        yield draw(100 + index, WIDTH)

    shapes: list[tuple[str, tuple[int, ...], Callable[[], Iterator[Tensor]]]] = [
        ("weight", (WIDTH, WIDTH), weight),
        ("bias", (WIDTH,), bias),
    ]
    if index == 3:  # one layer is larger than the others
        shapes.append(("extra", (5000,), lambda: iter((draw(200, 5000),))))
    plans = tuple(TensorPlan(name, shape, "float32", parts) for name, shape, parts in shapes)
    return SegmentPlan(NAMES[index], plans)


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> PreparedFile:
    path = tmp_path_factory.mktemp("streamer") / "layers.prepared"
    plans = [layer_plan(index) for index in range(LAYERS)]
    return prepared.prepare(path, "k", plans, Path("checkpoint.pt"), lambda done, total: None)


def run(streamer: Streamer, x: Tensor, at_layer: Callable[[int], None] | None = None) -> Tensor:
    """One pass, as the owner of the layers writes it."""
    for index, block in enumerate(streamer.blocks()):
        x = torch.tanh(torch.nn.functional.linear(x, **pick(block.tensors)))
        if at_layer is not None:
            at_layer(index)
    return x


def pick(tensors: object) -> dict[str, Tensor]:
    assert isinstance(tensors, dict)
    return {name: tensors[name] for name in ("weight", "bias")}


def passes(streamer: Streamer, device: torch.device, count: int = 3) -> Tensor:
    x = draw(1, 4, WIDTH).to(device)
    for _ in range(count):
        x = run(streamer, x)
    return x


@pytest.fixture(scope="module")
def expected(layers: PreparedFile) -> Callable[[torch.device], Tensor]:
    def result(device: torch.device) -> Tensor:
        streamer = Streamer(layers, NAMES, device, LAYERS)
        try:
            return passes(streamer, device)
        finally:
            streamer.close()

    return result


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("device", DEVICES)
def test_every_number_of_resident_layers_gives_the_same_bits(
    layers: PreparedFile,
    expected: Callable[[torch.device], Tensor],
    device: torch.device,
    slots: int,
) -> None:
    whole = expected(device)
    for kept in range(LAYERS + 1):
        for pinned_max in (0, 2**30):
            streamer = Streamer(layers, NAMES, device, kept, slots=slots, pinned_max=pinned_max)
            assert torch.equal(passes(streamer, device), whole), kept
            streamer.close()


@pytest.mark.parametrize("device", DEVICES)
def test_the_number_may_change_at_any_layer(
    layers: PreparedFile, expected: Callable[[torch.device], Tensor], device: torch.device
) -> None:
    whole = expected(device)
    for seed in range(20):
        rng = random.Random(seed)
        streamer = Streamer(layers, NAMES, device, rng.randint(0, LAYERS))

        def change(index: int, rng: random.Random = rng, streamer: Streamer = streamer) -> None:
            if rng.random() < 0.5:
                streamer.resize(rng.randint(0, LAYERS))

        x = draw(1, 4, WIDTH).to(device)
        for _ in range(3):
            x = run(streamer, x, change)
        assert torch.equal(x, whole), seed
        streamer.close()


def test_what_is_held_follows_the_number(layers: PreparedFile) -> None:
    sizes = [layers.segments[name].bytes for name in NAMES]
    streamer = Streamer(layers, NAMES, CPU, LAYERS)
    assert (streamer.kept, streamer.resident_bytes, streamer.slot_bytes) == (LAYERS, sum(sizes), 0)
    streamer.resize(2)  # layers 0 and 4
    assert (streamer.kept, streamer.resident_bytes) == (2, sizes[0] + sizes[4])
    assert streamer.slot_bytes == 2 * max(sizes)
    streamer.resize(LAYERS)
    assert (streamer.resident_bytes, streamer.slot_bytes) == (sum(sizes), 0)
    streamer.close()
    assert (streamer.kept, streamer.resident_bytes, streamer.slot_bytes) == (0, 0, 0)


def test_without_room_to_grow_it_is_as_it_was(
    layers: PreparedFile,
    expected: Callable[[torch.device], Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streamer = Streamer(layers, NAMES, CPU, 2)

    def full(*_: object) -> None:
        raise MemoryError("full")

    def grow(index: int) -> None:
        if index in (1, 4):
            with monkeypatch.context() as patch, pytest.raises(MemoryError, match="full"):
                patch.setattr("coscheduler.engines.streaming.streamer.load_block", full)
                streamer.resize(LAYERS if index == 1 else 5)

    x = draw(1, 4, WIDTH)
    for _ in range(3):
        x = run(streamer, x, grow)
    assert torch.equal(x, expected(CPU))
    sizes = [layers.segments[name].bytes for name in NAMES]
    assert (streamer.kept, streamer.resident_bytes) == (2, sizes[0] + sizes[4])
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr("coscheduler.engines.streaming.streamer.load_block", full)
        patch.setattr(streamer, "_make_slots", full)
        streamer.resize(5)
    assert not streamer.is_open and streamer.resident_bytes == 0
    streamer.close()


def test_a_layer_in_use_is_whole_until_the_owner_goes_on(layers: PreparedFile) -> None:
    streamer = Streamer(layers, NAMES, CPU, LAYERS)
    for index, block in enumerate(streamer.blocks()):
        if index == 3:
            before = streamer.resident_bytes
            streamer.resize(0)
            assert streamer.resident_bytes == layers.segments["layer.3"].bytes < before
            assert torch.equal(block.tensors["weight"], draw(3, WIDTH, WIDTH) / WIDTH**0.5)
    assert streamer.resident_bytes == 0
    streamer.close()


def test_a_pass_that_is_left_early_does_no_harm(
    layers: PreparedFile, expected: Callable[[torch.device], Tensor]
) -> None:
    for stop in range(LAYERS):
        streamer = Streamer(layers, NAMES, CPU, 2)
        for index, _block in enumerate(streamer.blocks()):
            if index == stop:
                break
        assert torch.equal(passes(streamer, CPU), expected(CPU))
        streamer.close()


def test_two_passes_at_once_are_an_error(layers: PreparedFile) -> None:
    streamer = Streamer(layers, NAMES, CPU, 2)
    first = streamer.blocks()
    next(first)
    with pytest.raises(RuntimeError, match="another pass is at layer 0"):
        next(streamer.blocks())
    first.close()  # type: ignore[attr-defined]
    next(streamer.blocks())
    streamer.close()


def test_a_closed_streamer_says_so(layers: PreparedFile) -> None:
    streamer = Streamer(layers, NAMES, CPU, 2)
    streamer.close()
    streamer.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(streamer.blocks())


@pytest.mark.parametrize("kept", [-1, LAYERS + 1])
def test_a_number_out_of_range_is_an_error(layers: PreparedFile, kept: int) -> None:
    with pytest.raises(ValueError, match=f"{kept} of {LAYERS}"):
        Streamer(layers, NAMES, CPU, kept)


class LateSlot:
    """The worst copier allowed: a fill spoils the slot at once and is whole only when waited for.

    Counts how often it was filled.
    """

    def __init__(self, size: int, copier: "LateCopier") -> None:
        self.flat = allocate(size, CPU)
        self._copier = copier
        self._name = ""

    def fill(self, name: str) -> None:
        self.flat.fill_(255)
        self._name = name
        self._copier.fills.append(name)

    def wait(self) -> None:
        raw = self._copier.host.raw(self._name)
        self.flat[: len(raw)].copy_(torch.frombuffer(raw, dtype=torch.uint8))

    def used(self) -> None:
        self._copier.used += 1

    def close(self) -> None:
        pass


class LateCopier:
    def __init__(self, host: PreparedFile) -> None:
        self.host = host
        self.fills: list[str] = []
        self.used = 0
        self.expected: list[str] = []

    def expect(self, names: Sequence[str]) -> None:
        self.expected = list(names)

    def settle(self) -> None:
        pass

    def slot(self, size: int) -> Slot:
        return LateSlot(size, self)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_no_slot_is_filled_while_it_is_read(
    layers: PreparedFile, expected: Callable[[torch.device], Tensor], slots: int
) -> None:
    for seed in range(30):
        rng = random.Random(seed)
        copier = LateCopier(layers)
        streamer = Streamer(layers, NAMES, CPU, rng.randint(0, 6), slots=slots, copier=copier)

        def change(index: int, rng: random.Random = rng, streamer: Streamer = streamer) -> None:
            if rng.random() < 0.3:
                streamer.resize(rng.randint(0, LAYERS))

        x = draw(1, 4, WIDTH)
        for _ in range(3):
            x = run(streamer, x, change)
        assert torch.equal(x, expected(CPU)), seed


def test_each_streamed_layer_is_copied_once_in_a_pass(layers: PreparedFile) -> None:
    copier = LateCopier(layers)
    streamer = Streamer(layers, NAMES, CPU, 3, copier=copier)  # 0, 4 and 2 stay
    assert sorted(copier.expected) == ["layer.1", "layer.3", "layer.5", "layer.6"]
    passes(streamer, CPU, count=5)
    ahead = ["layer.1", "layer.3"]  # of the pass that might follow
    assert copier.fills == ["layer.1", "layer.3", "layer.5", "layer.6"] * 5 + ahead
    assert copier.used == 5 * 4


def test_what_fits_the_slots_is_copied_once_for_all_passes(layers: PreparedFile) -> None:
    copier = LateCopier(layers)
    streamer = Streamer(layers, NAMES, CPU, LAYERS - 2, copier=copier)
    passes(streamer, CPU, count=5)
    assert len(copier.fills) == 2


def test_a_copy_that_fails_is_raised_where_the_layer_is_asked_for(
    layers: PreparedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(target: object, source: object) -> None:
        raise OSError("the disk is gone")

    streamer = Streamer(layers, NAMES, CPU, 0)
    passes(streamer, CPU, count=1)
    monkeypatch.setattr("coscheduler.engines.streaming.copier.np.copyto", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        passes(streamer, CPU, count=2)
    streamer.close()


def test_settling_waits_for_all_work_put_before() -> None:
    done: list[int] = []

    class Noting:
        def __init__(self, number: int) -> None:
            self.number = number

        def run(self) -> None:
            done.append(self.number)

    worker = Worker("test")
    worker.settle()  # nothing was put: nothing to wait for
    for number in range(100):
        worker.put(Noting(number))
    worker.settle()
    assert done == list(range(100))
    worker.close()


@torch.inference_mode()
@pytest.mark.parametrize("device", DEVICES)
def test_slots_made_in_inference_mode_can_be_filled_outside_it(
    layers: PreparedFile, expected: Callable[[torch.device], Tensor], device: torch.device
) -> None:
    streamer = Streamer(layers, NAMES, device, 0)
    with torch.inference_mode(False):
        assert torch.equal(passes(streamer, device), expected(device))
    streamer.close()


OUTSIDE = """
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
import torch
from coscheduler.engines.streaming import prepared
from coscheduler.engines.streaming.prepared import SegmentPlan, TensorPlan
from coscheduler.engines.streaming.streamer import Streamer

COUNT, SIZE = 6, 4 * 1024 * 1024
parts = lambda i: iter((torch.full((SIZE,), float(i)),))
plans = [
    SegmentPlan(f"layer.{i}", (TensorPlan("w", (SIZE,), "float32", partial(parts, i)),))
    for i in range(COUNT)
]
path = Path(sys.argv[1]) / "outside.prepared"
file = prepared.prepare(path, "k", plans, Path("checkpoint.pt"), lambda done, total: None)
names = [plan.name for plan in plans]
streamer = Streamer(file, names, torch.device("cpu"), 0)

def run():
    for index, block in enumerate(streamer.blocks()):
        assert float(block.tensors["w"][-1]) == index
run()
for line in sys.stdin:
    streamer.resize(int(line)) if line.strip() != "close" else streamer.close()
    if line.strip() != "close":
        run()
    print("done", flush=True)
"""
LAYER_BYTES = 16 * 1024 * 1024


@pytest.mark.timeout(300)  # a new process that imports torch, on a machine that may be busy
def test_another_process_sees_each_layer_come_and_go(tmp_path: Path) -> None:
    meter, held = ProcessMeter(), []
    with subprocess.Popen(
        [sys.executable, "-c", OUTSIDE, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as child:  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        for order in ("0", "1", "2", "3", "2", "1", "0", "6", "0", "close"):
            child.stdin.write(order + "\n")
            child.stdin.flush()
            assert child.stdout.readline() == "done\n"
            held.append(meter.used_bytes(child.pid, 0))
    assert child.returncode == 0
    moved = [later - sooner for sooner, later in pairwise(held)]
    layers_moved = (1, 1, 1, -1, -1, -1, 4, -4, -2)  # two slots go where all stay, come and go
    for found, count in zip(moved, layers_moved, strict=True):
        assert abs(found - count * LAYER_BYTES) <= 0.05 * abs(count) * LAYER_BYTES, (moved, count)
