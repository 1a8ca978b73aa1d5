"""Prepared files: layout, damage, other checkpoints, death half way, two writers, memory."""

import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from coscheduler.engines.streaming import prepared
from coscheduler.engines.streaming.prepared import PreparedFile, SegmentPlan, TensorPlan
from coscheduler.engines.streaming.segments import PAGE_BYTES, TENSOR_ALIGN_BYTES
from coscheduler.errors import EngineFault

SOURCE = Path("checkpoint.pt")
REPO = Path(__file__).parents[3]


def quiet(done: int, total: int) -> None:
    assert 0 < done <= total


def plan(name: str, *parts: Tensor, dtype: str = "float32") -> TensorPlan:
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    return TensorPlan(name, shape, dtype, lambda: iter(parts))


def two_segments() -> tuple[SegmentPlan, ...]:
    odd = torch.arange(15, dtype=torch.float32).view(5, 3)
    return (
        SegmentPlan("a", (plan("odd", odd), plan("stacked", odd[:2] + 1, odd[2:] + 1))),
        SegmentPlan("b", (plan("half", torch.tensor([1.00390625, -2.0]), dtype="bfloat16"),)),
    )


def make(path: Path, key: str = "k") -> PreparedFile:
    return prepared.prepare(path, key, two_segments(), SOURCE, quiet)


def read(file: PreparedFile, segment: str, name: str) -> Tensor:
    entry = next(t for t in file.segments[segment].tensors if t.name == name)
    raw = torch.frombuffer(file.raw(segment), dtype=torch.uint8)
    flat = raw[entry.offset : entry.offset + entry.bytes].clone()
    return flat.view(prepared.DTYPES[entry.dtype]).view(entry.shape)


def test_tensors_come_back_stacked_and_cast(tmp_path: Path) -> None:
    file = make(tmp_path / "x.prepared")
    odd = torch.arange(15, dtype=torch.float32).view(5, 3)
    assert torch.equal(read(file, "a", "odd"), odd)
    assert torch.equal(read(file, "a", "stacked"), odd + 1)
    assert read(file, "b", "half").tolist() == [1.0, -2.0]  # rounded to bfloat16


def test_segments_start_at_pages_and_tensors_at_cache_lines(tmp_path: Path) -> None:
    file = make(tmp_path / "x.prepared")
    for segment in file.segments.values():
        assert segment.offset % PAGE_BYTES == 0
        assert segment.bytes % PAGE_BYTES == 0
        assert all(t.offset % TENSOR_ALIGN_BYTES == 0 for t in segment.tensors)
    assert file.path.stat().st_size == sum(s.bytes for s in file.segments.values()) + 4096


def untouchable() -> tuple[SegmentPlan, ...]:
    def never() -> Iterator[Tensor]:
        raise AssertionError("a whole file was made again")

    return (SegmentPlan("a", (TensorPlan("t", (1,), "float32", never),)),)


def test_a_whole_file_is_only_opened(tmp_path: Path) -> None:
    path = tmp_path / "x.prepared"
    make(path)
    again = prepared.prepare(path, "k", untouchable(), SOURCE, quiet)
    assert set(again.segments) == {"a", "b"}


def test_another_key_makes_it_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.prepared"
    make(path)
    assert PreparedFile.open(path, "other") is None
    make(path, "other")
    assert PreparedFile.open(path, "other") is not None


def test_a_new_file_replaces_those_of_the_same_source_and_kind(tmp_path: Path) -> None:
    old = make(tmp_path / "old.float32.prepared", "old")
    other_kind = make(tmp_path / "old.bfloat16.prepared", "old")
    other_source = tmp_path / "other.float32.prepared"
    prepared.prepare(other_source, "k", two_segments(), Path("elsewhere.pt"), quiet)
    make(tmp_path / "new.float32.prepared", "new")
    left = {path.name for path in tmp_path.glob("*.prepared")}
    assert left == {"new.float32.prepared", "old.bfloat16.prepared", "other.float32.prepared"}
    assert read(old, "b", "half").tolist() == [1.0, -2.0]  # still mapped
    assert other_kind.path.exists()


@pytest.mark.parametrize("kept", [0, 7, 16, 200, 5000])
def test_a_truncated_file_is_made_anew(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "x.prepared"
    whole = make(path).path.read_bytes()
    path.write_bytes(whole[:kept])
    assert PreparedFile.open(path, "k") is None
    assert make(path).path.read_bytes() == whole


@pytest.mark.parametrize(
    "prefix", [b"NOTMINE!" + bytes(8), struct.pack("<8sQ", prepared.MAGIC, 99)]
)
def test_a_foreign_header_is_no_prepared_file(tmp_path: Path, prefix: bytes) -> None:
    path = tmp_path / "x.prepared"
    path.write_bytes(prefix + b"[" * 200)
    assert PreparedFile.open(path, "k") is None


def test_a_tensor_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    plans = (SegmentPlan("a", (plan("weights", torch.tensor([1.0, float("nan")])),)),)
    with pytest.raises(EngineFault, match="weights is not finite") as caught:
        prepared.prepare(tmp_path / "x.prepared", "k", plans, SOURCE, quiet)
    assert caught.value.reason == "MODEL_CORRUPT"
    assert caught.value.numbers["key"] == "weights"
    assert [p.suffix for p in tmp_path.iterdir()] == [".lock"]


def test_parts_of_another_size_than_planned_are_refused(tmp_path: Path) -> None:
    short = TensorPlan("t", (4,), "float32", lambda: iter((torch.zeros(3),)))
    with pytest.raises(EngineFault, match="12 bytes where 16"):
        prepared.prepare(tmp_path / "x.prepared", "k", (SegmentPlan("a", (short,)),), SOURCE, quiet)
    assert not (tmp_path / "x.prepared").exists()


def test_a_full_disk_is_said_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    full = os.statvfs_result((*real[:4], 1, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(EngineFault) as caught:
        make(tmp_path / "x.prepared")
    assert caught.value.reason == "DISK_FULL"
    assert int(caught.value.numbers["required_bytes"]) > int(
        caught.value.numbers["available_bytes"]
    )


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineFault) as caught:
        make(tmp_path / "file" / "x.prepared")
    assert caught.value.reason == "PREPARED_UNWRITABLE"


def test_two_writers_at_once_write_one_file(tmp_path: Path) -> None:
    written: list[str] = []
    barrier = threading.Barrier(2)

    def slow() -> Iterator[Tensor]:
        written.append("part")
        yield torch.ones(4)

    plans = (SegmentPlan("a", (TensorPlan("t", (4,), "float32", slow),)),)

    def write() -> None:
        barrier.wait()
        prepared.prepare(tmp_path / "x.prepared", "k", plans, SOURCE, quiet)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written == ["part"]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from coscheduler.engines.streaming import prepared
from coscheduler.engines.streaming.prepared import SegmentPlan, TensorPlan

def die():
    yield torch.ones(1000)
    os.kill(os.getpid(), signal.SIGKILL)

plans = (SegmentPlan("a", (TensorPlan("t", (2000,), "float32", die),)),)
prepared.prepare(Path(sys.argv[1]), "k", plans, Path("checkpoint.pt"), lambda done, total: None)
"""


@pytest.mark.timeout(300)  # a new process that imports torch, on a machine that may be busy
def test_a_writer_killed_half_way_leaves_nothing_that_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.prepared"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=REPO, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.with_suffix(".partial").exists()
    assert PreparedFile.open(path, "k") is None
    make(path)  # its lock died with it
    assert PreparedFile.open(path, "k") is not None
    assert not path.with_suffix(".partial").exists()
