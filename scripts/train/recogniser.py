"""Train a tiny Whisper on synthetic meetings.

    python scripts/train recogniser --minutes 17 --work .train
    python scripts/train recogniser --minutes 0 --export coscheduler/demo/trained

The loss has four terms: the next token; where the last decoder layer looks for it (the word's
interval is known); which word, and which of its letters, is spoken in every frame. The last two
have a head of their own, which is not exported. They make the encoder learn within minutes what the
tokens alone would take hours to teach.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from train import (
    corpus,
    features,
    sentences,
    separated,
    training,
    whisper_export,
    whisper_tokens,
    windows,
)
from train.speech import RATE_HZ
from train.whisper_model import POSITIONS, Shape, Whisper
from train.windows import Window

NAME = "whisper-demo"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
_TAIL = 32  # positions that stand for the silence up to 30 s
_POSITION_SECONDS = 0.02
_GUIDE_MARGIN_SECONDS = 0.05
_IGNORED = -100
_TIMESTAMP_SHARE, _ZERO_PADDING_SHARE, _NARROW_SHARE, _MASK_SHARE = 0.25, 0.15, 0.3, 0.4
_SINGLE_SHARE, _SEPARATED_SHARE = 0.15, 0.33  # of the time; of the windows after it
_SMOOTHING = 0.03
_WEIGHTS = {"guide": 0.3, "word": 0.5, "letter": 0.25}


def shape() -> Shape:
    """Of the model in the repository."""
    return Shape(vocabulary=whisper_tokens.tokenizer().get_vocab_size())


def model() -> Whisper:
    """Untrained."""
    return Whisper(shape(), model_classes())


def model_classes() -> int:
    """What a frame may hold: a word or none, and a letter or none."""
    return 1 + len(sentences.words()) + 1 + len(LETTERS)


@dataclass(frozen=True)
class Batch:
    """Windows as tensors. P positions, of which the last _TAIL stand for the silence; L tokens."""

    mel: Tensor  # [B, 80, 2 P]
    places: Tensor  # [P]
    bias: Tensor  # [P]
    tokens: Tensor  # [B, L]
    labels: Tensor  # [B, L], the next token or _IGNORED
    guides: Tensor  # [B, L, P], whether a position belongs to the next token's word
    words: Tensor  # [B, P - _TAIL], the word spoken there, 0 = none
    letters: Tensor  # likewise

    def to(self, device: str) -> "Batch":
        """On `device`."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


def batch(drawn: list[Window], rng: np.random.Generator, augment: bool = True) -> Batch:
    """What the model sees of some windows."""
    seconds = max(len(window.samples) for window in drawn) / RATE_HZ
    count = math.ceil(seconds / _POSITION_SECONDS) + 1
    tail = np.sort(rng.choice(np.arange(count, POSITIONS), _TAIL, replace=False))
    bias = np.zeros(count + _TAIL, np.float32)
    bias[count:] = math.log((POSITIONS - count) / _TAIL)
    labels = [_labels(window, count, rng) for window in drawn]
    length = max(len(tokens) for tokens, _, _ in labels)
    guides = np.zeros((len(drawn), length, count + _TAIL), bool)
    for row, (_, _, spans) in enumerate(labels):
        for column, (first, last) in enumerate(spans):
            guides[row, column, first:last] = True
    frames = [_frames(window, count) for window in drawn]
    return Batch(
        mel=_mel(drawn, count, rng, augment),
        places=torch.from_numpy(np.concatenate([np.arange(count), tail])),
        bias=torch.from_numpy(bias),
        tokens=_filled(
            [tokens for tokens, _, _ in labels], whisper_tokens.special("<|endoftext|>")
        ),
        labels=_filled([wanted for _, wanted, _ in labels], _IGNORED),
        guides=torch.from_numpy(guides),
        words=torch.from_numpy(np.stack([words for words, _ in frames])),
        letters=torch.from_numpy(np.stack([letters for _, letters in frames])),
    )


def _filled(rows: list[list[int]], filler: int) -> Tensor:
    length = max(len(row) for row in rows)
    return torch.tensor([row + [filler] * (length - len(row)) for row in rows])


def _mel(drawn: list[Window], count: int, rng: np.random.Generator, augment: bool) -> Tensor:
    samples = np.zeros((len(drawn), (count + _TAIL) * 2 * features.HOP), np.float32)
    for row, window in enumerate(drawn):
        samples[row, : len(window.samples)] = window.samples
    mel = features.log_mel(torch.from_numpy(samples))
    if not augment:
        return features.scaled(mel)
    cutoffs = np.where(rng.random(len(drawn)) < _NARROW_SHARE, rng.integers(45, 80, len(drawn)), 80)
    mel = features.without_highs(mel, torch.from_numpy(cutoffs))
    for row in np.flatnonzero(rng.random(len(drawn)) < _MASK_SHARE).tolist():
        low, width = rng.integers(0, 72), rng.integers(2, 9)
        mel[row, low : low + width] -= rng.uniform(0.5, 4.0)
    mel = features.scaled(mel)
    for row in np.flatnonzero(rng.random(len(drawn)) < _ZERO_PADDING_SHARE).tolist():
        mel[row, :, -(-len(drawn[row].samples) // features.HOP) :] = 0.0  # as faster-whisper pads
    return mel


def _labels(
    window: Window, count: int, rng: np.random.Generator
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Tokens, the one after each of them, and the positions in which that is heard."""
    with_times = bool(rng.random() < _TIMESTAMP_SHARE)
    prompt, tokens, guides = whisper_tokens.targets(window.sentences, with_times)
    skipped = len(prompt) - 1  # what follows within the prompt need not be learned
    spans = [(0, 0)] * skipped + [
        (0, 0) if guide is None else _positions(guide, count) for guide in guides
    ]
    return [*prompt, *tokens[:-1]], [_IGNORED] * skipped + tokens, spans


def _positions(guide: tuple[float, float], count: int) -> tuple[int, int]:
    first = int((guide[0] - _GUIDE_MARGIN_SECONDS) / _POSITION_SECONDS)
    last = math.ceil((guide[1] + _GUIDE_MARGIN_SECONDS) / _POSITION_SECONDS)
    return max(0, first), min(count, last)


@functools.cache
def _word_classes() -> dict[str, int]:
    return {word: index for index, word in enumerate(sentences.words(), start=1)}


def _frames(window: Window, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Word and letter of each position; the letters of a word are spread evenly over it."""
    words, letters = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for word in window.words:
        text = sentences.normalised(word.text)
        first, last = round(word.start / _POSITION_SECONDS), round(word.end / _POSITION_SECONDS)
        words[first:last] = _word_classes()[text]
        spelled = np.array([1 + LETTERS.index(letter) for letter in text])
        steps = np.arange(last - first) * len(text) // max(1, last - first)
        letters[first:last] = spelled[steps][: len(letters[first:last])]
    return words, letters


def losses(net: Whisper, data: Batch) -> dict[str, Tensor]:
    """The terms and their weighted sum `loss`; `wrong` is the share of wrong next tokens."""
    heard = net.encoder(data.mel, data.places, data.bias)
    logits, seen = net.decoder(data.tokens, heard, data.bias)
    logits, flat = logits.float().flatten(0, 1), data.labels.flatten()
    heads = net.frames(heard[:, : data.words.shape[1]]).float()
    split = heads.shape[-1] - 1 - len(LETTERS)
    terms = {
        "token": functional.cross_entropy(
            logits, flat, ignore_index=_IGNORED, label_smoothing=_SMOOTHING
        ),
        "guide": _guide_loss(seen, data.guides),
        "word": _frame_loss(heads[..., :split], data.words),
        "letter": _frame_loss(heads[..., split:], data.letters),
    }
    loss = terms["token"] + sum(weight * terms[name] for name, weight in _WEIGHTS.items())
    asked = flat != _IGNORED
    wrong = (logits.argmax(-1) != flat)[asked].float().mean()
    return {**terms, "loss": loss, "wrong": wrong}


def _guide_loss(seen: Tensor, guides: Tensor) -> Tensor:
    """Minus the logarithm of the attention within the word, over heads and guided tokens."""
    within = (seen.float() * guides[:, None]).sum(-1)
    guided = guides.any(-1)[:, None].expand_as(within)
    return -within[guided].clamp(min=1e-4).log().mean() if guided.any() else within.sum() * 0


def _frame_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross entropy over frames, those without speech counting a third."""
    weights = torch.ones(logits.shape[-1], device=logits.device)
    weights[0] = 0.33
    return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weights)


@dataclass(frozen=True)
class Curriculum:
    """Losses of one step: single sentences first, then windows of up to 6.4 s, of which a share
    is what the separator leaves of speech among sounds.
    """

    net: Whisper
    data: corpus.Corpus
    pool: separated.Pool
    device: str

    def __call__(self, rng: np.random.Generator, share: float) -> dict[str, Tensor]:
        """See `training.Losses`."""
        if share < _SINGLE_SHARE:
            drawn = [windows.draw(self.data, rng, 4.0, 1) for _ in range(32)]
        else:
            drawn = [self._window(rng) for _ in range(20)]
        made = batch(drawn, rng).to(self.device)
        with torch.autocast(self.device, torch.bfloat16):
            return losses(self.net, made)

    def _window(self, rng: np.random.Generator) -> Window:
        if rng.random() < _SEPARATED_SHARE:
            return self.pool.draw(rng)
        return windows.draw(self.data, rng, 6.4, 3)


def main(arguments: list[str]) -> int:
    """Train, and export where that is asked for."""
    options = training.parser("recogniser", __doc__ or "", 17).parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    net = model().to(options.device)
    data = corpus.open_or_make(options.work)
    pool = separated.open_or_make(options.work, data)
    checkpoint = options.work / "recogniser" / "checkpoint.pt"
    recipe = training.Recipe(
        options.minutes, seed=options.seed, processor_time=options.device == "cpu"
    )
    training.fit(net, Curriculum(net, data, pool, options.device), recipe, checkpoint)
    if options.export:
        whisper_export.write(net.cpu().eval(), options.export / NAME)
    return 0
