"""The recogniser's tokenizer: byte-level BPE of the meetings' words, Whisper's special tokens."""

import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from train import sentences
from train.speech import Word

TEXT_TOKEN_COUNT = 1000
TIMESTAMP_COUNT = 1501  # 0.00 to 30.00 s in steps of 0.02
LANGUAGE_CODES = tuple(LANGUAGES)[:99]  # of the multilingual models up to large-v2
TASKS = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>",
         "<|notimestamps|>")  # fmt: skip
END, START = "<|endoftext|>", "<|startoftranscript|>"
_TEXTS = 4000


def special_tokens() -> list[str]:
    """In the order of their ids, as in the published models."""
    languages = [f"<|{code}|>" for code in LANGUAGE_CODES]
    timestamps = [f"<|{index * 0.02:.2f}|>" for index in range(TIMESTAMP_COUNT)]
    return [END, START, *languages, *TASKS, *timestamps]


@functools.cache
def tokenizer() -> Any:
    """The same one always. Its text vocabulary ends with the empty token, by which loaders know a
    multilingual model; `Ġ-` and `Ġ'` are tokens because faster-whisper suppresses the first token
    of " -" and of " '", which would be the bare space otherwise.
    """
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_TOKEN_COUNT - 1,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    rng = np.random.default_rng(0)
    texts = [f" {sentences.draw(rng, 'train').text}" for _ in range(_TEXTS)]
    made.train_from_iterator([*texts, *[" - '"] * _TEXTS], trainer)
    learned = json.loads(made.to_str())
    learned["model"]["vocab"][""] = len(learned["model"]["vocab"])
    made = Tokenizer.from_str(json.dumps(learned))
    made.add_special_tokens(special_tokens())
    return made


@functools.cache
def of_word(word: str) -> tuple[int, ...]:
    """Tokens of a word with the space before it."""
    return tuple(tokenizer().encode(f" {word}", add_special_tokens=False).ids)


@functools.cache
def special(token: str) -> int:
    """The id of a special token."""
    return int(tokenizer().token_to_id(token))


def timestamp(seconds: float) -> int:
    """The token of a time, rounded to a tenth of a second."""
    return special("<|0.00|>") + min(round(seconds * 10) * 5, TIMESTAMP_COUNT - 1)


Guide = tuple[float, float] | None  # where in the sound a token is heard, in seconds


def targets(
    said: Sequence[Sequence[Word]], timestamps: bool
) -> tuple[list[int], list[int], list[Guide]]:
    """Prompt tokens, and what follows them with the stretch of sound that each is heard in."""
    prompt = [special(START), special("<|en|>"), special("<|transcribe|>")]
    if not timestamps:
        prompt.append(special("<|notimestamps|>"))
    tokens: list[int] = []
    guides: list[Guide] = []
    for words in said:
        spoken = [(token, (w.start, w.end)) for w in words for token in of_word(w.text)]
        if timestamps:
            start, end = words[0].start, words[-1].end
            spoken = [(timestamp(start), (start, start)), *spoken, (timestamp(end), (end, end))]
        tokens += [token for token, _ in spoken]
        guides += [guide for _, guide in spoken]
    return prompt, [*tokens, special(END)], [*guides, None]
