"""Train the demonstration's language model: meetings in, `actions` and `summary` out.

Example: python scripts/train analyst --minutes 25 --work .train
         python scripts/train analyst --minutes 25 --export coscheduler/demo/models/analyst.gguf
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from train import analyst_data, analyst_file, training
from train.analyst_data import ANSWER, BOS, END, Document
from train.analyst_net import Analyst, Shape

VOCABULARY = 1024
TOKENIZER_DOCUMENTS = 4000
PROMPT_WEIGHT, GUIDE_WEIGHT = 0.1, 0.3
BATCH_TOKENS = 4500
LINES_MAX_EARLY, LINES_MAX = 10, 26


def main(arguments: list[str]) -> int:
    """Train and, when asked, export. Returns the exit status."""
    parser = training.parser("analyst", __doc__ or "", minutes=25)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    folder = options.work / "analyst"
    tokenizer = tokenizer_in(folder, options.seed)
    model = Analyst(Shape(tokenizer.get_vocab_size())).to(options.device)
    on_processor = options.device == "cpu"
    recipe = training.Recipe(
        options.minutes, 2e-3, 0.02, (0.9, 0.98), options.seed, processor_time=on_processor
    )
    training.fit(model, Losses(model, tokenizer, options.device), recipe, folder / "last.pt")
    if options.export:
        analyst_file.write(options.export, model, tokenizer)
        print(f"written: {options.export}", file=sys.stderr)
    return 0


def tokenizer_in(folder: Path, seed: int) -> Tokenizer:
    """The kept tokenizer, or one made from training documents: byte-level BPE as of GPT-2."""
    path = folder / "tokenizer.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _train_tokenizer(np.random.default_rng([seed, 1])).save(str(path))
    return Tokenizer.from_file(str(path))


def _train_tokenizer(rng: np.random.Generator) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, END, ANSWER],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made = (drawn(rng, 16) for _ in track(range(TOKENIZER_DOCUMENTS), "tokenizer"))
    tokenizer.train_from_iterator((item.prompt + item.answer for item in made), trainer)
    return tokenizer


def drawn(rng: np.random.Generator, lines_max: int, lines_min: int = 1) -> Document:
    """A training document of so many lines."""
    kind = "actions" if rng.random() < 0.6 else "summary"
    is_invented = rng.random() < analyst_data.INVENTED_SHARE
    line_count = int(rng.integers(lines_min, lines_max + 1))
    return analyst_data.document(rng, "train", kind, line_count, is_invented)


class Losses:
    """Cross-entropy, mostly of the answers; and where the guided heads look for what they copy."""

    def __init__(self, model: Analyst, tokenizer: Tokenizer, device: str) -> None:
        self._model, self._tokenizer, self._device = model, tokenizer, device

    def __call__(self, rng: np.random.Generator, share: float) -> dict[str, Tensor]:
        """The terms for one batch; documents become longer after a third of the time."""
        batch = self._batch(rng, LINES_MAX_EARLY if share < 0.35 else LINES_MAX)
        tokens, weights, guides = encoded(self._tokenizer, batch)
        tokens, weights = tokens.to(self._device), weights.to(self._device)
        with torch.autocast(self._device, torch.bfloat16):
            logits, attention = self._model(tokens[:, :-1])
        losses = nnf.cross_entropy(
            logits.float().transpose(1, 2), tokens[:, 1:], reduction="none", label_smoothing=0.01
        )
        text = (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()
        guide = guide_loss(attention, guides)
        return {"loss": text + GUIDE_WEIGHT * guide, "text": text, "guide": guide}

    def _batch(self, rng: np.random.Generator, lines_max: int) -> list[Document]:
        """Documents of about the same length: as many as make BATCH_TOKENS. Long ones are the
        hardest, and most often drawn.
        """
        top = max(2, round(lines_max * rng.random() ** (1 / 3)))
        count = max(4, BATCH_TOKENS // (40 + 24 * top))
        some = [drawn(rng, top, max(1, top * 3 // 4)) for _ in range(3 * count)]
        some.sort(key=lambda document: len(document.text))
        first = int(rng.integers(2 * count + 1))
        return some[first : first + count]


def guide_loss(attention: Tensor, guides: Sequence[tuple[int, int, int, int]]) -> Tensor:
    """-log of the attention, averaged over heads, that falls on the place that is copied.

    A guide is (document, query, first, end): the query predicts a token that stands at `first`
    to `end` of the same text.
    """
    if not guides:
        return attention.new_zeros(())
    document, query, first, end = torch.tensor(guides, device=attention.device).T
    sums = nnf.pad(attention[document, :, query].cumsum(-1), (1, 0))  # (guides, heads, time + 1)
    heads = torch.arange(sums.shape[1], device=sums.device)
    row = torch.arange(len(guides), device=sums.device)[:, None]
    mass = sums[row, heads, end[:, None]] - sums[row, heads, first[:, None]]
    return -(mass.mean(-1).clamp_min(1e-6)).log().mean()


def encoded(
    tokenizer: Tokenizer, batch: Sequence[Document]
) -> tuple[Tensor, Tensor, list[tuple[int, int, int, int]]]:
    """Tokens and loss weights (documents, time), 0 behind the end; and the guides."""
    found = tokenizer.encode_batch([document.text for document in batch])
    length = max(len(each.ids) for each in found)
    tokens = torch.zeros(len(batch), length, dtype=torch.int64)
    weights = torch.zeros(len(batch), length)
    guides: list[tuple[int, int, int, int]] = []
    for row, (document, each) in enumerate(zip(batch, found, strict=True)):
        tokens[row, : len(each.ids)] = torch.tensor(each.ids)
        answer_at = each.ids.index(tokenizer.token_to_id(ANSWER)) + 1
        weights[row, :answer_at] = PROMPT_WEIGHT
        weights[row, answer_at : len(each.ids)] = 1.0
        guides += [(row, *guide) for guide in _guides(document, each, answer_at)]
    return tokens, weights, guides


def _guides(document: Document, found: Any, answer_at: int) -> list[tuple[int, int, int]]:
    """(query, first, end) for each token of a copy; the query is the token before it."""
    prompt_at = len(BOS)
    text_at = prompt_at + len(document.prompt) + len(ANSWER)
    token_of = _token_at_each_character(found.offsets, text_at + len(document.answer))
    guides = []
    for (first, end), (source, _) in document.copies:
        for token in range(token_of[text_at + first], token_of[text_at + end - 1] + 1):
            a, b = found.offsets[token]
            a, b = max(a, text_at + first), min(b, text_at + end)
            if a >= b or token < answer_at:
                continue
            shift = prompt_at + source - text_at - first
            guides.append((token - 1, token_of[a + shift], token_of[b - 1 + shift] + 1))
    return guides


def _token_at_each_character(offsets: Sequence[tuple[int, int]], length: int) -> list[int]:
    token_of = [0] * (length + 1)
    for token, (first, end) in enumerate(offsets):
        token_of[first:end] = [token] * (end - first)
    return token_of[: length + 1]
