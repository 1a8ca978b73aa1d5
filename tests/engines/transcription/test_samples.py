from pathlib import Path

import numpy as np
import pytest

from coscheduler.engines.transcription.samples import Spool
from coscheduler.errors import EngineFault
from coscheduler.procfs import anonymous_bytes

MIB = 1024 * 1024


def test_blocks_are_joined_in_order_and_can_be_written_to(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    blocks = [np.arange(size, dtype=np.float32) for size in (3, 0, 70_000, 1)]
    for block in blocks:
        spool.add(block)
    samples = spool.samples()
    assert samples.dtype == np.float32
    assert samples.flags.writeable
    assert np.array_equal(samples, np.concatenate(blocks))


def test_nothing_has_a_name_that_could_be_left_behind(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.add(np.ones(10, np.float32))
    samples = spool.samples()
    assert list(tmp_path.iterdir()) == []
    assert samples.sum() == 10


def test_a_recording_without_samples_is_an_empty_array(tmp_path: Path) -> None:
    assert Spool(tmp_path).samples().shape == (0,)


def test_samples_are_no_memory_of_the_process(tmp_path: Path) -> None:
    spool, block = Spool(tmp_path), np.ones(MIB // 4, np.float32)
    before = anonymous_bytes("self")
    for _ in range(96):
        spool.add(block)
    samples = spool.samples()
    assert float(samples.max()) == 1.0  # every page was looked at
    assert samples.nbytes == 96 * MIB
    assert anonymous_bytes("self") - before < 24 * MIB


def test_a_full_disk_is_told_with_what_was_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.add(np.ones(5, np.float32))
    spool._file.close()
    with Path("/dev/full").open("r+b", buffering=0) as full, pytest.raises(EngineFault) as caught:
        spool._file = full
        spool.add(np.ones(5, np.float32))
    assert caught.value.reason == "DISK_FULL"
    assert caught.value.numbers == {"written_bytes": "20"}
