"""Blocks: views of one allocation each, and memory that comes back the moment it is dropped."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from coscheduler.engines.streaming import heap, prepared
from coscheduler.engines.streaming.blocks import Block, allocate, load_block
from coscheduler.engines.streaming.host_arrays import HostArrays
from coscheduler.engines.streaming.prepared import PreparedFile, SegmentPlan, TensorPlan
from coscheduler.errors import EngineFault
from coscheduler.procfs import anonymous_bytes

CPU = torch.device("cpu")
LAYER_BYTES = 16 * 1024 * 1024


def quiet(done: int, total: int) -> None:
    assert done <= total


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> PreparedFile:
    def rows(fill: float) -> Iterator[Tensor]:
        yield torch.full((LAYER_BYTES // 4,), fill)

    plans = [
        SegmentPlan(
            f"layer.{i}",
            (TensorPlan("w", (LAYER_BYTES // 4,), "float32", partial(rows, float(i))),),
        )
        for i in range(3)
    ]
    path = tmp_path_factory.mktemp("blocks") / "layers.prepared"
    return prepared.prepare(path, "k", plans, Path("checkpoint.pt"), quiet)


def test_a_block_holds_the_values_of_its_segment(layers: PreparedFile) -> None:
    block = load_block(layers, "layer.2", CPU)
    assert block.bytes == LAYER_BYTES
    assert torch.equal(block.tensors["w"], torch.full((LAYER_BYTES // 4,), 2.0))


def test_every_layer_returns_its_bytes_by_itself(layers: PreparedFile) -> None:
    pid = os.getpid()
    blocks: list[Block] = []
    heap.trim()
    before = anonymous_bytes(pid)
    for index in range(3):
        blocks.append(load_block(layers, f"layer.{index}", CPU))
    full = anonymous_bytes(pid)
    assert full - before == pytest.approx(3 * LAYER_BYTES, rel=0.05)
    del blocks[1]  # the middle one: no stack order is needed
    assert full - anonymous_bytes(pid) >= 0.95 * LAYER_BYTES
    blocks.clear()
    assert full - anonymous_bytes(pid) >= 0.95 * 3 * LAYER_BYTES


def test_a_mapped_prepared_file_is_not_device_memory(layers: PreparedFile) -> None:
    before = anonymous_bytes(os.getpid())
    assert sum(layers.raw("layer.0")[::4096]) >= 0  # touch every page
    assert anonymous_bytes(os.getpid()) - before < LAYER_BYTES // 8


def test_an_unknown_segment_is_a_key_error(layers: PreparedFile) -> None:
    with pytest.raises(KeyError):
        load_block(layers, "layer.9", CPU)


def test_an_allocation_is_zero_bytes_until_touched() -> None:
    before = anonymous_bytes(os.getpid())
    flat = allocate(LAYER_BYTES, CPU)
    assert anonymous_bytes(os.getpid()) - before < LAYER_BYTES // 8
    flat.fill_(1)
    assert anonymous_bytes(os.getpid()) - before >= 0.95 * LAYER_BYTES


def test_host_arrays_are_page_cache_and_leave_no_file(tmp_path: Path) -> None:
    arrays = HostArrays(tmp_path)
    before = anonymous_bytes(os.getpid())
    array = arrays.zeros(4, LAYER_BYTES // 16)
    array.fill_(3.0)
    assert anonymous_bytes(os.getpid()) - before < LAYER_BYTES // 8
    assert array.shape == (4, LAYER_BYTES // 16)
    assert float(array.sum()) == 3.0 * LAYER_BYTES / 4
    assert list(tmp_path.iterdir()) == []


def test_collected_blocks_stand_one_after_the_other(tmp_path: Path) -> None:
    blocks = [np.arange(n, dtype=np.float32) for n in (3, 0, 2)]
    run = HostArrays(tmp_path).collect(blocks)
    counts = []
    while True:
        try:
            counts.append(next(run))
        except StopIteration as stop:
            whole = stop.value
            break
    assert counts == [3, 3, 5]
    assert whole.tolist() == [0, 1, 2, 0, 1]


def test_nothing_collected_is_an_empty_array(tmp_path: Path) -> None:
    with pytest.raises(StopIteration) as stop:
        next(HostArrays(tmp_path).collect([]))
    assert stop.value.value.shape == (0,)


def test_a_full_disk_is_an_error_not_a_bus_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("coscheduler.engines.streaming.host_arrays.os.posix_fallocate", full)
    with pytest.raises(EngineFault) as caught:
        HostArrays(tmp_path).zeros(1000)
    assert caught.value.reason == "DISK_FULL"
    assert caught.value.numbers["required_bytes"] == "4000"


def test_a_work_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(EngineFault) as caught:
        HostArrays(tmp_path / "gone").zeros(1)
    assert caught.value.reason == "WORK_FOLDER_UNUSABLE"


HOLES = """
import os, torch
from coscheduler.engines.streaming import heap
from coscheduler.procfs import anonymous_bytes

assert heap.fix_thresholds(1024 * 1024, 64 * 1024 * 1024)
torch.ones(7 * 1024 * 1024)  # freeing it would raise a threshold that is not fixed to 28 MiB
tensors = [torch.ones(512 * 1024) for _ in range(32)]  # 2 MiB each
full = anonymous_bytes(os.getpid())
del tensors[::2]
print(full - anonymous_bytes(os.getpid()))
"""


@pytest.mark.timeout(300)  # a new process that imports torch, on a machine that may be busy
def test_freed_tensors_leave_holes_to_the_system() -> None:
    """In a process of its own: the holes of this one's heap would take some of the tensors."""
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 0.95 * 32 * 1024 * 1024
