"""What the recogniser is trained on, and the network in its own code and in Hugging Face's."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from tests.train import on_path

with on_path():
    from train import recogniser, whisper_export, whisper_tokens, windows
    from train.corpus import CLIP_LEVEL, Corpus
    from train.sounds import KINDS
    from train.speech import RATE_HZ, Word
    from train.whisper_model import POSITIONS, Shape, Whisper
    from train.windows import Window


TEXT = "I will send the report by Friday."


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Two sentences of noise, in which every word takes 0.2 s."""
    rng = np.random.default_rng(0)
    count, said = 2 * RATE_HZ, TEXT.split()
    words = [(word, 0.2 * n, 0.2 * n + 0.15) for n, word in enumerate(said)]
    index = tuple({"first": n * count, "count": count, "words": words} for n in range(2))
    pcm = (rng.standard_normal(2 * count) * 3000).astype(np.int16)
    clips = (rng.standard_normal((2, RATE_HZ)) * CLIP_LEVEL * 32768).astype(np.int16)
    return Corpus(pcm, index, dict.fromkeys(KINDS, clips))


@pytest.fixture(scope="module")
def net() -> Whisper:
    torch.manual_seed(0)
    shape = Shape(whisper_tokens.tokenizer().get_vocab_size(), 32, 64, 2, 1, 1)
    return Whisper(shape, recogniser.model_classes()).eval()


def test_windows_keep_words_within_the_sound_and_in_order(corpus: Corpus) -> None:
    for seed in range(30):
        window = windows.draw(corpus, np.random.default_rng(seed), 6.0, 3)
        seconds = len(window.samples) / RATE_HZ
        assert seconds <= 6.0 + 1.5 and np.abs(window.samples).max() <= 1.0
        starts = [word.start for word in window.words]
        assert starts == sorted(starts)
        assert all(0 <= word.start < word.end <= seconds + 0.05 for word in window.words)


def test_tokens_say_the_text_and_where_it_is_heard() -> None:
    said = (tuple(Word(word, n, n + 0.5) for n, word in enumerate(TEXT.split())),)
    prompt, tokens, guides = whisper_tokens.targets(said, timestamps=False)
    tokenizer = whisper_tokens.tokenizer()
    assert tokenizer.decode(tokens).strip() == TEXT
    assert len(prompt) == 4 and len(tokens) == len(guides)
    assert guides[0] == (0, 0.5) and guides[-1] is None
    _, timed, _ = whisper_tokens.targets(said, timestamps=True)
    assert timed[0] == whisper_tokens.timestamp(0.0) and timed[-2] == whisper_tokens.timestamp(6.5)


def test_the_bare_space_is_not_what_loaders_suppress() -> None:
    for mark in (" -", " '"):
        tokens = whisper_tokens.tokenizer().encode(mark, add_special_tokens=False).tokens
        assert tokens[0] != "Ġ"


def test_a_batch_agrees_with_its_windows() -> None:
    words = (Word("Thank", 0.1, 0.3), Word("you", 0.3, 0.5))
    window = Window(np.zeros(RATE_HZ, np.float32), (words,))
    made = recogniser.batch([window], np.random.default_rng(0), augment=False)
    heard = made.words[0].numpy()
    classes = recogniser._word_classes()
    assert set(heard[5:15]) == {classes["thank"]} and set(heard[15:25]) == {classes["you"]}
    assert not heard[:5].any() and not heard[25:].any()
    assert made.mel.shape[2] == 2 * len(made.places) and int(made.places[-1]) < POSITIONS
    guided = made.guides[0].any(0).nonzero().flatten()
    assert 0 < int(guided.min()) <= 5 and int(guided.max()) < 30


def test_a_few_positions_of_silence_stand_for_all(net: Whisper) -> None:
    rng = np.random.default_rng(1)
    window = Window((0.1 * rng.standard_normal(RATE_HZ)).astype(np.float32), ())
    few = recogniser.batch([window], rng, augment=False)
    count = few.words.shape[1]
    silence = few.mel[:, :, -1:].expand(-1, -1, 2 * (POSITIONS - count))
    whole = torch.cat([few.mel[:, :, : 2 * count], silence], dim=2)
    with torch.no_grad():
        wanted = net.encoder(whole, torch.arange(POSITIONS), torch.zeros(POSITIONS))
        found = net.encoder(few.mel, few.places, few.bias)
        without = net.encoder(few.mel, few.places, torch.zeros_like(few.bias))
    error, error_without = (
        float((rows[:, : count - 2] - wanted[:, : count - 2]).abs().mean())
        for rows in (found, without)
    )
    assert error < 0.5 * error_without
    assert float(few.bias[-1]) == pytest.approx(math.log((POSITIONS - count) / recogniser._TAIL))


def test_hugging_face_computes_the_same(net: Whisper, tmp_path: Path) -> None:
    whisper_export.write_hugging_face(net, tmp_path)
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path).eval()
    rng = np.random.default_rng(2)
    mel = torch.from_numpy(rng.standard_normal((1, 80, 2 * POSITIONS)).astype(np.float32))
    tokens = torch.tensor([[whisper_tokens.special(whisper_tokens.START), 5, 6, 7]])
    with torch.no_grad():
        heard = net.encoder(mel, torch.arange(POSITIONS), torch.zeros(POSITIONS))
        ours, _ = net.decoder(tokens, heard, torch.zeros(POSITIONS))
        logits = theirs(input_features=mel, decoder_input_ids=tokens).logits
    torch.testing.assert_close(ours, logits, atol=1e-4, rtol=1e-4)


def test_the_loss_falls(corpus: Corpus, net: Whisper) -> None:
    torch.manual_seed(0)
    learner = Whisper(net.shape, recogniser.model_classes())
    optimizer = torch.optim.AdamW(learner.parameters(), 3e-3)
    drawn = [windows.draw(corpus, np.random.default_rng(seed), 3.0, 1) for seed in range(2)]
    data = recogniser.batch(drawn, np.random.default_rng(0))
    seen = []
    for _ in range(6):
        loss = recogniser.losses(learner, data)["loss"]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < 0.8 * seen[0]
