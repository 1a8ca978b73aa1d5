"""The language model's training data, network and file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.train import on_path

with on_path():
    from train import analyst, analyst_data, analyst_file, analyst_scores, sentences
    from train.analyst_net import Analyst, Shape

LINES = (1, 2, 7, 24)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(analyst, "TOKENIZER_DOCUMENTS", 60)
    made = analyst.tokenizer_in(tmp_path_factory.mktemp("analyst"), seed=0)
    patch.undo()
    return made


@pytest.mark.parametrize("kind", ["actions", "summary"])
@pytest.mark.parametrize("is_invented", [False, True])
@pytest.mark.parametrize("count", LINES)
def test_answers_are_json_and_copies_stand_in_the_prompt(
    kind: str, is_invented: bool, count: int
) -> None:
    rng = np.random.default_rng(count)
    for _ in range(20):
        analyst_data.check(analyst_data.document(rng, "train", kind, count, is_invented))


def test_actions_are_what_was_promised_or_asked() -> None:
    rng = np.random.default_rng(5)
    lines = analyst_data.meeting(rng, "test", 40, False)
    starts = {line.number: 0 for line in lines}
    actions = analyst_data.actions_of(lines, starts)
    said = {line.number: line for line in lines}
    assert len(actions) > 10
    for action in actions:
        line = said[action.number]
        assert action.task in line.text
        if action.due:
            assert f"{action.task} by {action.due}" in line.text
        by_speaker = f"I will {action.task}" in line.text
        assert action.owner == line.speaker if by_speaker else action.owner in line.text


def test_held_out_sentences_and_invented_words_are_in_no_training_text() -> None:
    rng = np.random.default_rng(6)
    for line in analyst_data.meeting(rng, "test", 30, False):
        for sentence, _ in line.spans:
            assert sentences.split_of(sentence.text) == "test"
    words = {split: {analyst_data.invented_word(rng, split) for _ in range(200)}
             for split in ("train", "test")}  # fmt: skip
    assert not words["train"] & words["test"]


def test_a_guide_leads_from_each_copied_token_to_the_same_text(tokenizer: Any) -> None:
    rng = np.random.default_rng(7)
    batch = [analyst_data.document(rng, "train", "actions", 9, True) for _ in range(4)]
    tokens, weights, guides = analyst.encoded(tokenizer, batch)
    assert tokens.shape == weights.shape and len(guides) > 20
    for row, query, first, end in guides:
        copied = tokenizer.decode([int(tokens[row, query + 1])]).strip('":,[]} ')
        source = tokenizer.decode(tokens[row, first:end].tolist())
        assert copied in source
        assert end <= query + 1, "it looks back"


def test_llama_cpp_computes_what_was_trained(tokenizer: Any, tmp_path: Path) -> None:
    import llama_cpp

    torch.manual_seed(1)
    shape = Shape(
        tokenizer.get_vocab_size(), layer_count=2, width=64, head_count=2, feed_forward=96
    )
    model = Analyst(shape)
    path = tmp_path / "analyst.gguf"
    analyst_file.write(path, model, tokenizer)
    text = analyst_data.document(np.random.default_rng(8), "test", "actions", 5).text
    tokens = tokenizer.encode(text).ids
    library = llama_cpp.Llama(str(path), n_ctx=512, logits_all=True, verbose=False, n_threads=1)
    assert library.tokenize(text.encode(), add_bos=False, special=True) == tokens
    library.eval(tokens)
    with torch.no_grad():
        ours = model(torch.tensor([tokens]))[0][0].numpy()
    theirs = library.scores[: len(tokens)]
    library.close()
    assert np.abs(ours - theirs).max() < 0.05 * np.abs(ours).max()  # Q8_0 weights
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999


def test_a_few_steps_learn(tokenizer: Any) -> None:

    torch.manual_seed(2)
    shape = Shape(
        tokenizer.get_vocab_size(), layer_count=3, width=64, head_count=2, feed_forward=96
    )
    model = Analyst(shape)
    losses = analyst.Losses(model, tokenizer, "cpu")
    before = float(losses(np.random.default_rng(0), 0.0)["text"].detach())
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(6):
        optimizer.zero_grad()
        losses(np.random.default_rng(step), 0.0)["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(losses(np.random.default_rng(0), 0.0)["text"].detach()) < 0.9 * before


def test_scores_count_what_is_right() -> None:
    total = analyst_scores.Scores()
    place = [{"segment": 3}]
    answer = {
        "actions": [
            {"owner": "Anna", "task": "sign the form", "due": "Friday", "cites": place},
            {"owner": "Peter", "task": "call", "due": "", "cites": place},
        ]
    }
    wanted = [("Anna", "sign the form", "Friday", 3), ("Emma", "read the list", "", 4)]
    analyst_scores._count(total, answer, wanted)
    analyst_scores._count(total, None, [])
    percent = total.percent()
    assert percent["valid"] == 50 and percent["exact"] == 0
    assert percent["items"] == percent["owner"] == percent["due"] == 50
    assert percent["precision"] == 50
