"""The T5 text encoder: needed for a fraction of a second, and a third of the small model's size.

So it never is in device memory as a whole: a prompt goes through all layers once, and each is
copied from `model.safetensors` when its turn has come.
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

from coscheduler.engines.separation import sizes, t5
from coscheduler.engines.streaming.blocks import Block, allocate
from coscheduler.engines.streaming.segments import SegmentEntry
from coscheduler.errors import EngineFault, InvalidInput

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
EMBEDDING = "shared.weight"


@dataclass(frozen=True)
class TextEncoderFolder:
    """A T5 folder: its config, and where the tensors of a layer go."""

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
    _check_shapes(folder / WEIGHTS, config)
    return TextEncoderFolder(folder, config, sizes.text_segment(config))


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
    """The encoder for one prompt: a layer at a time is in device memory, in one allocation."""

    def __init__(self, source: TextEncoderFolder, device: torch.device) -> None:
        self._source, self._device = source, device

    def encode(self, ids: list[int]) -> Tensor:
        """Token ids [L] -> last hidden state, float32 [1, L, dim]."""
        source = self._source
        held = Block(source.segment, allocate(source.segment.bytes, self._device)).tensors
        bias, last_norm = held[sizes.FIRST_LAYER + sizes.BIAS], held[sizes.FINAL_NORM]
        layer = {
            name.removeprefix(sizes.FIRST_LAYER): tensor
            for name, tensor in held.items()
            if tensor is not bias and tensor is not last_norm
        }
        with safe_open(source.folder / WEIGHTS, framework="pt") as file:
            bias.copy_(file.get_tensor(sizes.FIRST_LAYER + sizes.BIAS))
            last_norm.copy_(file.get_tensor(sizes.FINAL_NORM))
            positions = t5.position_bias(bias, source.config, len(ids))
            h = file.get_tensor(EMBEDDING)[torch.tensor(ids)].to(self._device)
            for index in range(source.config["num_layers"]):
                for name, tensor in layer.items():
                    tensor.copy_(file.get_tensor(f"encoder.block.{index}.layer.{name}"))
                h = t5.layer(layer, source.config, h, positions)
        return t5.norm(h, last_norm, source.config)[None]


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EngineFault("MODEL_CORRUPT", f"{path} is not JSON: {error}", file=path) from None
    if not isinstance(config, dict) or config.get("model_type") != "t5":
        raise EngineFault("MODEL_CORRUPT", f"{path} does not describe a T5 model", file=path)
    activation = config.get("feed_forward_proj", "relu")
    if activation not in t5.ACTIVATIONS:
        known = ", ".join(t5.ACTIVATIONS)
        raise EngineFault(
            "MODEL_CORRUPT",
            f"{path}: feed_forward_proj is {activation}; known are {known}",
            file=path, key="feed_forward_proj", expected=known, found=activation,
        )  # fmt: skip
    return config


def _check_shapes(path: Path, config: Mapping[str, Any]) -> None:
    """Every tensor of the encoder is there in the shape that the config implies."""
    try:
        with safe_open(path, framework="pt") as file:
            present = {
                name: tuple(file.get_slice(name).get_shape())
                for name in file.keys()  # noqa: SIM118 (the file is no mapping)
            }
    except SafetensorError as error:
        raise EngineFault("MODEL_CORRUPT", f"{path}: {error}", file=path) from None
    for name, shape in sizes.text_shapes(config).items():
        if present.get(name) != shape:
            found = present.get(name, "missing")
            raise EngineFault(
                "MODEL_CORRUPT",
                f"{path}: {name} is {found}, expected {shape}",
                file=path, key=name, expected=shape, found=found,
            )  # fmt: skip
