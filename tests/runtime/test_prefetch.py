"""Prefetching: in pieces, at most one at a time, never more than memory has room for."""

from pathlib import Path

import pytest

from coscheduler.runtime import prefetch
from coscheduler.runtime.prefetch import CHUNK_BYTES, Prefetch, Prefetcher

SIZE = 2 * CHUNK_BYTES + 5


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(bytes(SIZE))
    return (str(tmp_path / "one"), str(tmp_path / "two"))


def test_all_of_the_files_is_read(files: tuple[str, ...]) -> None:
    prefetcher = Prefetcher(lambda: 10 * SIZE)
    prefetcher.want(files)
    assert prefetcher.current is not None
    prefetcher.current.join()
    assert prefetcher.current.read_bytes == 2 * SIZE


def test_the_same_wish_is_not_begun_again(files: tuple[str, ...]) -> None:
    prefetcher = Prefetcher(lambda: 10 * SIZE)
    prefetcher.want(files)
    first = prefetcher.current
    prefetcher.want(files)
    assert prefetcher.current is first
    prefetcher.want(())
    assert prefetcher.current is None


class StopsItself(Prefetch):
    """Is cancelled when its first piece was read."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "read_bytes" and value:
            self.cancel()


def test_a_cancel_stops_between_two_pieces(files: tuple[str, ...]) -> None:
    work = StopsItself(tuple(map(Path, files)))
    work.run()
    assert work.read_bytes == CHUNK_BYTES


def test_another_wish_stops_the_one_before(files: tuple[str, ...]) -> None:
    prefetcher = Prefetcher(lambda: 10 * SIZE)
    prefetcher.want(files[:1])
    first = prefetcher.current
    assert first is not None
    prefetcher.want(files[1:])
    assert first._cancelled.is_set()
    assert prefetcher.current is not None and prefetcher.current is not first
    prefetcher.current.join()
    first.join()


def test_files_that_memory_has_no_room_for_are_left_alone(files: tuple[str, ...]) -> None:
    prefetcher = Prefetcher(lambda: 4 * SIZE - 1)
    prefetcher.want(files)
    assert prefetcher.current is None


def test_a_file_that_is_gone_is_passed_over(files: tuple[str, ...]) -> None:
    Path(files[0]).unlink()
    work = Prefetch(tuple(map(Path, files)))
    work.run()
    assert work.read_bytes == SIZE


def test_available_memory_is_read() -> None:
    assert prefetch.available_bytes() > 0
