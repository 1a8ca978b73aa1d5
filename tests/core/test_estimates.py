"""Expected ends: the order of the queue, the loads on the way, and what was learned."""

from coscheduler.core import events as ev
from coscheduler.core.learning import Learned
from coscheduler.core.model import Priority, StageKind, total_bytes
from tests.core.build import S, T, description, job, limits, option
from tests.core.story import OOPS, Story

ALL = tuple(StageKind)


def ends(story: Story, *names: str) -> list[int | None]:
    return [story.scheduler.expected_end_ms(name) for name in names]


def test_jobs_queue_up_behind_each_other() -> None:
    story = Story()
    story.submit(job("jobs/1"), job("jobs/2"))
    now = story.now_ms
    assert ends(story, "jobs/1", "jobs/2") == [now + 100 + 100, now + 100 + 2 * 100]


def test_a_higher_class_is_expected_before_and_delays_the_rest() -> None:
    story = Story()
    story.submit(job("jobs/1"), job("jobs/2", priority=Priority.INTERACTIVE, arrival_ms=9))
    first, second = ends(story, "jobs/1", "jobs/2")
    assert first is not None and second is not None and second < first


def test_engines_that_fit_together_work_at_once_and_those_that_do_not_take_turns() -> None:
    both = (job("jobs/1"), job("jobs/2", StageKind.TRANSCRIBE))
    wide, narrow = Story(capacity=1000), Story(capacity=200)
    for story in (wide, narrow):
        story.submit(*both)
    assert ends(wide, "jobs/1", "jobs/2") == [wide.now_ms + 200, wide.now_ms + 200]
    assert ends(narrow, "jobs/1", "jobs/2") == [narrow.now_ms + 200, narrow.now_ms + 400]
    single = Story(lim=limits(compute_slots=1))
    single.submit(*both)
    assert ends(single, "jobs/1", "jobs/2") == [single.now_ms + 200, single.now_ms + 400]


def test_stages_follow_each_other_and_what_ran_already_counts() -> None:
    story = Story()
    story.submit(job("jobs/1", *ALL))
    assert ends(story, "jobs/1") == [story.now_ms + 3 * 200]
    story.loaded(S)
    story.on(ev.CancelRequested("jobs/none"), after_ms=1060)
    assert story.scheduler.expected_end_ms("jobs/1") == story.now_ms + 2 * 200


def test_an_estimate_is_kept_for_a_second_and_made_anew_for_a_new_job() -> None:
    story = Story()
    story.submit(job("jobs/1"))
    before = ends(story, "jobs/1")
    story.on(ev.Ticked(), after_ms=500)
    assert ends(story, "jobs/1") == before
    story.submit(job("jobs/2"))
    assert ends(story, "jobs/2", "jobs/1") != [None, *before]
    story.on(ev.Ticked(), after_ms=1000)
    assert ends(story, "jobs/1") != before


def test_an_engine_that_has_not_said_what_it_is_cannot_be_judged() -> None:
    story = Story()
    story.scheduler.engines[T].description = None
    story.submit(job("jobs/1", StageKind.TRANSCRIBE), job("jobs/2"))
    assert ends(story, "jobs/1") == [None]
    assert ends(story, "jobs/2") != [None]


def test_only_options_that_fit_are_expected() -> None:
    story = Story(capacity=100)
    story.on(ev.Described(S, description(S, option("big", speed=1), option("small", 40, speed=50))))
    story.submit(job())
    assert ends(story, "jobs/1") == [story.now_ms + 40 + 500]


def test_times_are_averaged_and_the_newest_counts_for_a_quarter() -> None:
    learned, way = Learned(), option(speed=10)
    assert learned.expected_run_ms(way, 10_000) == 100
    learned.note_run("full", 10_000, 200)
    assert learned.expected_run_ms(way, 10_000) == 200
    learned.note_run("full", 20_000, 800)
    assert learned.expected_run_ms(way, 10_000) == 250
    assert learned.expected_run_ms(way, 0) == 0
    learned.note_run("full", 0, 80)
    assert learned.expected_run_ms(way, 0) == 80
    assert learned.expected_load_ms(way) == 100
    learned.note_load("full", 20)
    learned.note_load("full", 60)
    assert learned.expected_load_ms(way) == 30


def test_what_was_learned_of_bytes_is_on_a_line_of_its_own_in_every_phase() -> None:
    learned, way = Learned(), option()
    learned.resident_bytes["full"], learned.run_bytes["full"] = 7, 5
    learned.guess("full", 3, until_ms=50)
    corrected = learned.corrected(way)
    assert corrected.peak_bytes(0) == way.peak_bytes(0) + 7 + 5 + 3
    assert total_bytes(corrected.resident) == 107
    assert not learned.forget_old_guesses(49) and learned.forget_old_guesses(50)
    assert learned.corrected(way).peak_bytes(0) == way.peak_bytes(0) + 12
    twin = learned.copy()
    twin.run_bytes["full"] = 0
    assert learned.run_bytes["full"] == 5


def test_only_a_stage_that_ran_once_teaches_how_long_a_run_takes() -> None:
    story = Story()
    story.submit(job())
    story.loaded(S)
    story.on(ev.StageFailed(S, "jobs/1", OOPS, True, 120), after_ms=5_000)
    story.done(S, "jobs/1")
    learned = story.scheduler.engines[S].learned
    assert learned.expected_run_ms(option(), 10_000) == 100, "as predicted"
