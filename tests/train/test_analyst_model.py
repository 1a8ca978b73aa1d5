"""The shipped language model, run by the engine with its templates, on meetings it never read."""

from collections.abc import Iterator

import pytest

from coscheduler.engines.analysis.engine import AnalysisEngine
from tests.train import on_path

with on_path():
    from train import analyst_scores, options

ITEMS_MARGIN_PERCENT = 6.0  # five of the tasks in twelve meetings, on another processor
TALK = (
    ("SPEAKER_00", "Today we talk about marketing and security."),
    ("SPEAKER_01", "I will send the manual by Tuesday."),
    ("SPEAKER_00", "We decided to change the presentation in October."),
    ("SPEAKER_01", "Oscar, can you hire a driver by Monday?"),
)


@pytest.fixture(scope="module")
def engine() -> Iterator[AnalysisEngine]:
    with analyst_scores.opened(options.ANALYST, threads=1) as opened:
        yield opened


@pytest.mark.parametrize(("kind", "least"), [("known", 95.0), ("invented", 85.0)])
def test_tasks_of_meetings_that_it_never_read(
    engine: AnalysisEngine, kind: str, least: float
) -> None:
    found = analyst_scores.scores(engine, analyst_scores.meetings(options.MEETINGS, kind)).percent()
    assert found["valid"] == 100
    assert min(found["owner"], found["task"], found["due"]) >= least, found
    assert found["precision"] >= least - 5, found
    if kind == "known":
        wanted = options.committed()["analysis"]["f16"]["items"]
        assert found["items"] >= wanted - ITEMS_MARGIN_PERCENT


def test_a_coarser_cache_gives_up_no_more_than_it_did() -> None:
    wanted = options.committed()["analysis"]["q8_0"]
    found = options.analysis(("q8_0",))["q8_0"]
    assert found["valid"] == 100
    assert found["items"] >= wanted["items"] - ITEMS_MARGIN_PERCENT


def test_a_meeting_in_its_own_words(engine: AnalysisEngine) -> None:
    segments = [
        {"speaker": speaker, "text": text, "start": at, "end": at + 1}
        for at, (speaker, text) in enumerate(TALK)
    ]
    transcript = {"segments": segments, "language": "en"}
    answer = analyst_scores.ask(engine, "actions", transcript)
    assert answer is not None
    said = [(item["owner"], item["task"], item["due"]) for item in answer["actions"]]
    assert said == [
        ("SPEAKER_01", "send the manual", "Tuesday"),
        ("Oscar", "hire a driver", "Monday"),
    ]


def test_summaries_of_meetings_that_it_never_read(engine: AnalysisEngine) -> None:
    held_out = analyst_scores.meetings(options.MEETINGS, "known")
    assert analyst_scores.statements(engine, held_out) >= 85
