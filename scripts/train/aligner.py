"""Train a tiny wav2vec2 that says when each letter of a known text is spoken.

    python scripts/train aligner --minutes 6.2 --work .train

Every letter has one frame: the first of a word lies where the word begins, the others follow
evenly, and `|` lies where it ends. So a forced alignment, which looks for the first frame of the
first letter, finds the beginning of the word. Cross entropy over the frames teaches that;
connectionist temporal classification is added, by which the whole text stays the likeliest one.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from coscheduler.demo import tiny_aligner
from train import corpus, sentences, training, windows
from train.speech import RATE_HZ
from train.windows import Loudness, Window

hf: Any = transformers  # its classes are untyped
NAME = "aligner-demo"
BATCH, SECONDS_MAX, SENTENCES_MAX = 12, 4.0, 1
LOUDNESS = Loudness(0.4, (8.0, 25.0))
HOP, FIRST = 320, 200  # samples from frame to frame; the middle of the first
_BLANK_WEIGHT, _CTC_WEIGHT = 0.25, 0.3
_CODES = {token.lower(): code for code, token in enumerate(tiny_aligner.VOCABULARY)}
_BLANK, _BETWEEN = _CODES["<pad>"], _CODES["|"]


def model() -> Any:
    """Untrained, 0.6 million weights."""
    config = hf.Wav2Vec2Config(
        vocab_size=len(tiny_aligner.VOCABULARY),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=384,
        conv_dim=(48, 64, 96, 96, 128, 128, 128),
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=8,
        pad_token_id=_BLANK,
        bos_token_id=_CODES["<s>"],
        eos_token_id=_CODES["</s>"],
        apply_spec_augment=False,
        layerdrop=0.0,
        **dict.fromkeys(_DROPOUTS, 0.0),
    )
    return hf.Wav2Vec2ForCTC(config)


_DROPOUTS = ("activation_dropout", "attention_dropout", "feat_proj_dropout", "final_dropout",
             "hidden_dropout")  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Windows as tensors, with T frames."""

    samples: Tensor  # [B, N]
    frames: Tensor  # [B, T], the token of each frame
    tokens: Tensor  # the tokens of all windows, one after the other
    lengths: Tensor  # [B], how many tokens each has


def batch(drawn: list[Window]) -> Batch:
    """What the model learns from some windows."""
    count = max(len(window.samples) for window in drawn)
    samples = np.zeros((len(drawn), count), np.float32)
    frames = np.full((len(drawn), frame_count(count)), _BLANK, np.int64)
    tokens = []
    for row, window in enumerate(drawn):
        samples[row, : len(window.samples)] = window.samples
        said = list(_placed(window))
        for place, token in said:
            if place < frames.shape[1]:
                frames[row, place] = token
        tokens.append([token for _, token in said])
    return Batch(
        torch.from_numpy(samples),
        torch.from_numpy(frames),
        torch.tensor([token for row in tokens for token in row]),
        torch.tensor([len(row) for row in tokens]),
    )


def frame_count(samples: int) -> int:
    """Frames that the convolutions make of `samples`."""
    return (samples - 400) // HOP + 1


def _placed(window: Window) -> list[tuple[int, int]]:
    """(frame, token) in order: the letters of each word, and `|` after all but the last."""
    placed: list[tuple[int, int]] = []
    words = window.words
    for index, word in enumerate(words):
        text = sentences.normalised(word.text)
        start, end = _frame(word.start), _frame(word.end)
        if index and word.start == words[index - 1].start:  # spoken as one with the word before
            start = placed[-1][0] + 1
        step = max(1.0, (end - start) / len(text))
        placed += [(start + int(step * place), _CODES[letter]) for place, letter in enumerate(text)]
        if index + 1 < len(words):
            placed.append((max(end - 1, placed[-1][0] + 1), _BETWEEN))
    return placed


def _frame(seconds: float) -> int:
    return max(0, round((seconds * RATE_HZ - FIRST) / HOP))


def losses(net: nn.Module, data: Batch) -> dict[str, Tensor]:
    """The terms and their weighted sum `loss`."""
    logits = net(data.samples).logits.float()
    weights = torch.ones(logits.shape[-1], device=logits.device)
    weights[_BLANK] = _BLANK_WEIGHT
    frame = functional.cross_entropy(logits.flatten(0, 1), data.frames.flatten(), weights)
    lengths = torch.full((len(logits),), logits.shape[1], device=logits.device)
    ctc = functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        data.tokens,
        lengths,
        data.lengths,
        blank=_BLANK,
        zero_infinity=True,
    )
    return {"frame": frame, "ctc": ctc, "loss": frame + _CTC_WEIGHT * ctc}


@dataclass(frozen=True)
class Windows:
    """Losses of one step."""

    net: nn.Module
    data: corpus.Corpus
    device: str

    def __call__(self, rng: np.random.Generator, share: float) -> dict[str, Tensor]:
        """See `training.Losses`."""
        drawn = [
            windows.draw(self.data, rng, SECONDS_MAX, SENTENCES_MAX, LOUDNESS) for _ in range(BATCH)
        ]
        made = batch(drawn)
        made = Batch(**{name: value.to(self.device) for name, value in vars(made).items()})
        with torch.autocast(self.device, torch.bfloat16):
            return losses(self.net, made)


def write(net: Any, folder: Path) -> None:
    """A Hugging Face folder: config, weights in float32, tokenizer, feature extractor."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tiny_aligner.processor().save_pretrained(folder)
    net.save_pretrained(folder)


def main(arguments: list[str]) -> int:
    """Train, and export where that is asked for."""
    options = training.parser("aligner", __doc__ or "", 6.2).parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    net = model().to(options.device).train()
    data = corpus.open_or_make(options.work)
    checkpoint = options.work / "aligner" / "checkpoint.pt"
    recipe = training.Recipe(
        options.minutes, seed=options.seed, processor_time=options.device == "cpu"
    )
    training.fit(net, Windows(net, data, options.device), recipe, checkpoint)
    if options.export:
        write(net.cpu().eval(), options.export / NAME)
    return 0
