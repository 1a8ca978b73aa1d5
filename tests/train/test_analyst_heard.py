"""What the language model found is counted item by item."""

from tests.train import on_path

with on_path():
    from train.analyst_heard import Found

WANTED = [("anna", "send the report", "monday"), ("speaker_00", "call the bank", "")]


def test_all_that_was_said_is_right() -> None:
    found = Found()
    found.count(WANTED, WANTED)
    assert found == Found(tasks=2, written=2, owner=2, task=2, due=2, items=2)


def test_a_wrong_owner_costs_the_item_and_nothing_else() -> None:
    found = Found()
    found.count(WANTED, [("peter", "send the report", "monday")])
    assert found == Found(tasks=2, written=1, owner=0, task=1, due=1, items=0)


def test_parts_of_two_answers_make_no_item() -> None:
    found = Found()
    answer = [("anna", "send the report", "friday"), ("peter", "send the report", "monday")]
    found.count(WANTED[:1], answer)
    assert (found.owner, found.due, found.items) == (1, 1, 0)
