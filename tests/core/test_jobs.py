"""The book of unfinished jobs: what it counts agrees with what it holds."""

from coscheduler.core.jobs import JobBook
from coscheduler.core.model import EngineName, StageKind, StageState
from tests.core.build import A, S, T, job

ALL = (StageKind.SEPARATE, StageKind.TRANSCRIBE, StageKind.ANALYZE)


def counted(book: JobBook) -> dict[EngineName, int]:
    """By looking at every stage."""
    stages = [stage for made in book.all() for stage in made.stages]
    left = [s.engine for s in stages if s.state is not StageState.SUCCEEDED]
    return {engine: left.count(engine) for engine in EngineName}


def ahead(book: JobBook) -> dict[EngineName, int]:
    return {engine: book.ahead(engine) for engine in EngineName}


def test_what_is_ahead_of_an_engine_follows_the_stages() -> None:
    book = JobBook(attempts_max=3, ageing_ms=1)
    book.put(job("jobs/1", *ALL, arrival_ms=1))
    book.put(job("jobs/2", StageKind.TRANSCRIBE, arrival_ms=2))
    assert ahead(book) == counted(book) == {S: 1, T: 2, A: 1}
    book.start("jobs/1")
    book.set_current("jobs/1", state=StageState.RUNNING)
    assert ahead(book) == counted(book) == {S: 1, T: 2, A: 1}
    book.set_current("jobs/1", state=StageState.SUCCEEDED)
    assert ahead(book) == counted(book) == {S: 0, T: 2, A: 1}
    book.cancel("jobs/2")
    assert ahead(book) == counted(book) == {S: 0, T: 1, A: 1}
    book.cancel("jobs/1")
    assert ahead(book) == counted(book) == {S: 0, T: 0, A: 0}


def test_a_restored_book_counts_the_same() -> None:
    book = JobBook(attempts_max=3, ageing_ms=1)
    book.put(job("jobs/1", *ALL))
    other = JobBook(attempts_max=3, ageing_ms=1)
    other.restore(book.all())
    assert ahead(other) == ahead(book)
