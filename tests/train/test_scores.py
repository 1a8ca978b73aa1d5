"""How transcripts are counted."""

import pytest

from tests.train import on_path

with on_path():
    from train.meetings import Turn
    from train.scores import Label, WordErrors, speaker_error, start_errors_ms, word_errors
    from train.speech import Word


@pytest.mark.parametrize(
    ("said", "written", "errors"),
    [
        ("Send the report.", "send the report", 0),
        ("send the report", "send a report", 1),
        ("send the report", "send report", 1),
        ("send the report", "please send the report now", 2),
        ("send the report", "", 3),
    ],
)
def test_word_errors_are_the_least_edits(said: str, written: str, errors: int) -> None:
    assert word_errors(said, written) == WordErrors(errors, 3)


def test_rates_of_several_recordings_weigh_by_words() -> None:
    assert (WordErrors(1, 2) + WordErrors(0, 8)).rate == pytest.approx(0.1)
    assert WordErrors(0, 0).rate == 0.0


def test_starts_are_compared_for_the_words_that_were_recognised() -> None:
    said = [Word("Send", 0.0, 0.2), Word("the", 0.3, 0.4), Word("report.", 0.5, 0.9)]
    written = [Word("send", 0.01, 0.2), Word("a", 0.3, 0.4), Word("report", 0.53, 0.9)]
    assert start_errors_ms(said, written) == pytest.approx([10.0, 30.0])


def turns() -> tuple[Turn, ...]:
    return (
        Turn(0, "yes", (Word("yes", 0.0, 1.0),)),
        Turn(1, "no", (Word("no", 2.0, 3.0),)),
    )


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ([Label(0.0, 1.5, "B"), Label(1.5, 3.0, "A")], 0.0),  # names are only names
        ([Label(0.0, 3.0, "A")], 0.5),
        ([Label(0.0, 1.0, "A"), Label(2.5, 3.0, "B")], 0.25),  # nobody is wrong too
        ([], 1.0),
    ],
)
def test_speaker_error_is_the_share_of_spoken_time(labels: list[Label], error: float) -> None:
    assert speaker_error(turns(), labels) == pytest.approx(error, abs=0.02)
