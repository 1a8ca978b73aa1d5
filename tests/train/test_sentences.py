"""The grammar of the meetings, and which of its sentences a model may learn from."""

import numpy as np

from tests.train import on_path

with on_path():
    from train import sentences


def drawn(split: sentences.Split, seed: int, count: int = 400) -> set[str]:
    rng = np.random.default_rng(seed)
    return {sentences.draw(rng, split).text for _ in range(count)}


def test_there_are_at_least_200_words() -> None:
    assert len(sentences.words()) >= 200


def test_sentences_are_made_of_the_words_that_are_listed() -> None:
    said = {word for text in drawn("train", 0) for word in sentences.normalised(text).split()}
    assert said <= set(sentences.words())
    assert len(said) > 150


def test_a_sentence_belongs_to_one_split_whatever_the_seed() -> None:
    train, test = drawn("train", 1) | drawn("train", 2), drawn("test", 1) | drawn("test", 3)
    assert not train & test
    assert all(sentences.split_of(text) == "test" for text in test)
    assert sentences.split_of("I agree with Anna.") == sentences.split_of("i agree with ANNA")


def test_about_a_tenth_is_held_out_short_sentences_too() -> None:
    rng = np.random.default_rng(4)
    texts = {sentences._filled("Good morning {name}.", rng).text for _ in range(300)}
    assert {sentences.split_of(text) for text in texts} == {"train", "test"}
    share = np.mean([sentences.split_of(f"sentence {n}") == "test" for n in range(2000)])
    assert 0.07 < share < 0.13


def test_a_task_says_what_fills_its_slots() -> None:
    rng = np.random.default_rng(5)
    sentence = sentences.draw(rng, "train", (sentences.CAN_YOU_BY,))
    name, task, due = (sentence.slot(slot) for slot in ("name", "task", "due"))
    assert sentence.text == f"{name}, can you {task} by {due}?"
    assert sentence.slot("topic") == ""
