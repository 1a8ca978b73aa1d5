"""The T5 text encoder: loaded for one prompt, then gone again.

It is a third of the small model's size and needed for a fraction of a second. Its weights are one
allocation, copied from `model.safetensors`; transformers' module is built without memory of its own
and bound to views of it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from coscheduler.engines.separation import sizes
from coscheduler.engines.streaming.blocks import Block, allocate
from coscheduler.engines.streaming.prepared import SegmentPlan, TensorPlan
from coscheduler.engines.streaming.segments import SegmentEntry, lay_out
from coscheduler.errors import EngineFault, InvalidInput

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
EMBEDDING = "shared.weight"
EMBEDDING_ALIAS = "encoder.embed_tokens.weight"  # the same tensor under transformers' second name


@dataclass(frozen=True)
class TextEncoderFolder:
    """A T5 folder: its config, and where its encoder's tensors go."""

    folder: Path
    config: Mapping[str, Any]
    segment: SegmentEntry


def open_text_encoder(folder: Path, dim: int) -> TextEncoderFolder:
    """Read the headers of a T5 folder whose output has `dim` channels.

    Raises EngineFault MODEL_MISSING or MODEL_CORRUPT (file, key, expected and found shape).
    """
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        if not (folder / name).is_file():
            raise EngineFault(
                "MODEL_MISSING", f"there is no file {folder / name}", file=folder / name
            )
    config = _read_config(folder / CONFIG)
    if config.get("d_model") != dim:
        raise EngineFault(
            "MODEL_CORRUPT",
            f"{folder / CONFIG}: d_model is {config.get('d_model')}, the model needs {dim}",
            file=folder / CONFIG, key="d_model", expected=dim, found=config.get("d_model"),
        )  # fmt: skip
    return TextEncoderFolder(folder, config, _segment(folder / WEIGHTS, config))


def tokenize(source: TextEncoderFolder, prompt: str, tokens_max: int) -> list[int]:
    """The prompt's token ids, the end token included.

    Raises InvalidInput PROMPT_EMPTY (the end token alone is no text) or PROMPT_TOO_LONG with both
    counts, EngineFault MODEL_CORRUPT.
    """
    path = source.folder / TOKENIZER
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise EngineFault("MODEL_CORRUPT", f"{path}: {error}", file=path) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids: list[int] = tokenizer.encode(prompt).ids
    if not prompt.strip():
        raise InvalidInput("PROMPT_EMPTY", "the prompt has no text", token_count=0)
    if len(ids) > tokens_max:
        raise InvalidInput(
            "PROMPT_TOO_LONG",
            f"the prompt has {len(ids)} tokens, the text encoder takes {tokens_max}",
            token_count=len(ids),
            token_count_max=tokens_max,
        )
    return ids


class TextEncoder:
    """The encoder in device memory; dropping it frees all of it."""

    def __init__(self, source: TextEncoderFolder, device: torch.device) -> None:
        self._device = device
        flat = allocate(source.segment.bytes, device)
        tensors = Block(source.segment, flat).tensors
        with safe_open(source.folder / WEIGHTS, framework="pt") as file:
            for name, tensor in tensors.items():
                tensor.copy_(file.get_tensor(name))
        self._module = _bind(source.config, tensors)

    def encode(self, ids: list[int]) -> Tensor:
        """Token ids [L] -> last hidden state, float32 [1, L, dim]."""
        tokens = torch.tensor([ids], dtype=torch.int64, device=self._device)
        output: Tensor = self._module(input_ids=tokens).last_hidden_state
        return output


def _bind(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    from transformers import T5Config, T5EncoderModel  # heavy: only the engine's process pays

    with torch.device("meta"):
        module = T5EncoderModel(T5Config.from_dict(dict(config)))
    state = {**tensors, EMBEDDING_ALIAS: tensors[EMBEDDING]}
    module.load_state_dict(state, assign=True)
    module.train(False)
    return module


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EngineFault("MODEL_CORRUPT", f"{path} is not JSON: {error}", file=path) from None
    if not isinstance(config, dict) or config.get("model_type") != "t5":
        raise EngineFault("MODEL_CORRUPT", f"{path} does not describe a T5 model", file=path)
    return config


def _segment(path: Path, config: Mapping[str, Any]) -> SegmentEntry:
    """The encoder's tensors laid out in one segment, float32, shapes checked against the config."""
    try:
        with safe_open(path, framework="pt") as file:
            present = {
                name: tuple(file.get_slice(name).get_shape())
                for name in file.keys()  # noqa: SIM118 (the file is no mapping)
            }
    except SafetensorError as error:
        raise EngineFault("MODEL_CORRUPT", f"{path}: {error}", file=path) from None
    plans = []
    for name, shape in sizes.text_shapes(config).items():
        if present.get(name) != shape:
            found = present.get(name, "missing")
            raise EngineFault(
                "MODEL_CORRUPT",
                f"{path}: {name} is {found}, expected {shape}",
                file=path, key=name, expected=shape, found=found,
            )  # fmt: skip
        plans.append(TensorPlan(name, shape, "float32", lambda: iter(())))
    (segment,) = lay_out((SegmentPlan("text", tuple(plans)),), 0)
    return segment
