"""The trained separator as a SAM-Audio folder: config.json, checkpoint.pt and its T5 in `t5/`.

Channels of the transformer: first WORK of `separator_net`, then BANDS that carry (target - state)
and BANDS that carry (residual - state), times TINY; the head multiplies them by SPEED / TINY. So
the velocity is SPEED x (estimate - state) at all times: each of the midpoint rule's 16 steps halves
the distance to the estimate, and neither the noise nor the time has a say in it. No layer reads
these channels. Matrices are bfloat16; what is all zeros takes the room of one number in the file.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coscheduler.demo import tiny_sam_audio
from train import separator_codec, separator_text
from train.separator_codec import BANDS
from train.separator_net import (
    CLASSES,
    DIM,
    HEAD_DIM,
    HEADS,
    WORK,
    Attention,
    FeedForward,
    Layer,
    Separator,
)
from train.separator_text import CODE_ROWS, CONSTANT_ROW, TEXT_DIM

SPEED = 16.0  # a step of 1/16 then halves the distance: 1 - 1 + 1/2
TINY = 2.0**-7
MAX_POSITIONS = 512  # frames in a window; training saw half as many
STATE, TIME_DIM, VISION_DIM, ANCHOR_DIM = 2 * BANDS, 256, 1024, 8
TARGET, RESIDUAL = slice(WORK, WORK + BANDS), slice(WORK + BANDS, DIM)
RATIO = (WORK / DIM) ** 0.5  # of a norm over WORK to one over DIM
Tensors = dict[str, Tensor]


def export(net: Separator, spread: Tensor, level: float, folder: Path) -> None:
    """Write the model's files in `folder`. `spread` [BANDS] divides the coefficients; `level` is
    the usual RMS of the last residual stream's work channels.
    """
    (folder / "t5").mkdir(parents=True, exist_ok=True)
    config = json.dumps(_config(len(net.layers)), indent=1) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8")
    torch.save(tensors(net, spread, level), folder / "checkpoint.pt")
    separator_text.write(folder / "t5")


@torch.no_grad()
def tensors(net: Separator, spread: Tensor, level: float) -> Tensors:
    """All tensors of the checkpoint under their official names."""
    out = separator_codec.tensors(spread) | _watermark() | _conditions() | _around(net, level)
    for index, layer in enumerate(net.stack()):
        parts = _layer(layer)
        out |= {f"transformer.layers.{index}.{name}": part for name, part in parts.items()}
    return out


def zeros(*shape: int) -> Tensor:
    """Zeros that take the room of one number, in memory and in the file."""
    return torch.zeros(1, dtype=torch.bfloat16).expand(shape)


def _config(layers: int) -> dict[str, Any]:
    return {
        "in_channels": 3 * STATE,
        "audio_codec": separator_codec.config(),
        "text_encoder": {
            "dim": TEXT_DIM, "name": "t5", "max_length": 512, "pad_mode": "longest"
        },
        "vision_encoder": {"dim": VISION_DIM, "name": "none"},
        "transformer": {
            "dim": DIM, "n_heads": HEADS, "n_layers": layers, "dropout": 0.1, "norm_eps": 1e-5,
            "qk_norm": True, "fc_bias": False, "ffn_exp": 4, "ffn_dim_multiplier": 1,
            "multiple_of": 64, "non_linearity": "swiglu", "use_rope": True,
            "max_positions": MAX_POSITIONS, "frequency_embedding_dim": TIME_DIM,
            "timestep_non_linearity": "swiglu", "t_block_non_linearity": "silu",
            "t_block_bias": True, "context_dim": DIM, "context_non_linearity": "swiglu",
            "context_embedder_dropout": 0.0, "context_norm": False, "out_channels": STATE,
            "in_channels": None,
        },
        "num_anchors": 3,
        "anchor_embedding_dim": ANCHOR_DIM,
        "visual_ranker": None,
        "text_ranker": None,
        "span_predictor": None,
    }  # fmt: skip


def _watermark() -> Tensors:
    """A silent watermark of the official shapes."""
    sizes = tiny_sam_audio.Sizes(decoder_dim=separator_codec.DECODER_DIM)
    shapes = tiny_sam_audio.watermark_shapes(sizes, separator_codec.WATERMARK_RATES)
    return {name: zeros(*shape) for name, shape in shapes}


def _conditions() -> Tensors:
    """Video and anchors, which change nothing, and the text's way to the transformer."""
    memory = torch.zeros(DIM, TEXT_DIM)
    memory[list(CODE_ROWS), : len(CODE_ROWS)] = torch.eye(len(CODE_ROWS))
    return {
        "align_masked_video.gate": zeros(1),
        "align_masked_video.conv.weight": zeros(DIM, VISION_DIM, 1),
        "align_masked_video.conv.bias": zeros(DIM),
        "align_masked_video.layer_norm.weight": zeros(DIM),
        "align_masked_video.layer_norm.bias": zeros(DIM),
        "embed_anchors.gate": zeros(1),
        "embed_anchors.embed.weight": zeros(4, ANCHOR_DIM),
        "embed_anchors.proj.weight": zeros(DIM, ANCHOR_DIM),
        "memory_proj.weight": memory.bfloat16(),
        "memory_proj.bias": zeros(DIM),
    }


def _around(net: Separator, level: float) -> Tensors:
    """What stands before and after the layers."""
    eye = torch.eye(BANDS)
    project = torch.zeros(DIM, 3 * STATE)
    project[TARGET, :BANDS] = -TINY * eye
    project[RESIDUAL, BANDS:STATE] = -TINY * eye
    features = slice(2 * STATE, 2 * STATE + BANDS)
    project[:WORK, features] = net.features.weight
    project[RESIDUAL, features] = TINY * eye
    final = torch.zeros(DIM)
    final[WORK:] = RATIO * level
    output = torch.zeros(STATE, DIM)
    output[:, WORK:] = SPEED / TINY * torch.eye(STATE)
    out = {
        "proj.weight": project,
        "proj.bias": _padded(net.features.bias),
        "transformer.norm.weight": final,
        "transformer.output.weight": output.bfloat16(),
        "transformer.final_layer_scale_shift_table": zeros(2, DIM),
        "transformer.t_block.weight": zeros(6 * DIM, DIM),
        "transformer.t_block.bias": zeros(6 * DIM),
    }
    for name in ("w1", "w3"):
        out[f"transformer.t_embedder.projection.{name}.weight"] = zeros(DIM, TIME_DIM)
    out["transformer.t_embedder.projection.w2.weight"] = zeros(DIM, DIM)
    for number, block in enumerate(net.local(), start=1):
        key = f"transformer.x_embedder.block.block{number}"
        weight, bias = torch.zeros(DIM, DIM, 3), torch.zeros(DIM)
        weight[:WORK, :WORK], bias[:WORK] = block.project.state_dict().values()
        if number == len(net.blocks):
            weight[0], bias[0] = 0, 0  # the constant channel is written to by nobody
        out[f"{key}.groupnorm.weight"] = _padded(block.weight)
        out[f"{key}.groupnorm.bias"] = _padded(block.bias)
        out[f"{key}.project.weight"], out[f"{key}.project.bias"] = weight.bfloat16(), bias
    return out | _context()


def _context() -> Tensors:
    """The codes of the text's tokens, as they are, in the first rows of the context; a 1 in the
    row behind them. CONSTANT_ROW of the memory is cos of next to nothing: 1 at all times.
    """
    count, opened = len(CODE_ROWS), 4.0
    gate, value, out = torch.zeros(DIM, DIM), torch.zeros(DIM, DIM), torch.zeros(DIM, DIM)
    gate[: count + 1, CONSTANT_ROW] = opened
    value[range(count), list(CODE_ROWS)] = 1.0
    value[count, CONSTANT_ROW] = 1.0
    silu = torch.nn.functional.silu(torch.tensor(opened))
    out[range(count + 1), range(count + 1)] = 1 / silu
    key = "transformer.y_embedder.projection"
    return {
        f"{key}.{name}.weight": part.bfloat16()
        for name, part in (("w1", gate), ("w3", value), ("w2", out))
    }


def _layer(layer: Layer) -> Tensors:
    attention, ffn = layer.attention, layer.ffn
    shift = [_padded(norm.shift) for norm in (layer.attention_norm, layer.ffn_norm)]
    nothing, one = torch.zeros(DIM), torch.ones(DIM)
    rows = attention.qkv.weight.view(3, HEADS, HEAD_DIM, WORK).transpose(1, 2)
    out = {
        # Shift, scale and gate of the self attention, then of the feed-forward.
        "scale_shift_table": torch.stack((shift[0], nothing, one, shift[1], nothing, one)),
        "attention_norm.weight": _padded(layer.attention_norm.weight * RATIO),
        "ffn_norm.weight": _padded(layer.ffn_norm.weight * RATIO),
        "attention.q_norm.weight": attention.q_norm.clone(),
        "attention.k_norm.weight": attention.k_norm.clone(),
        "attention.wo.weight": _written(attention),
        "feed_forward.w1.weight": _wide(ffn.gate.weight),
        "feed_forward.w3.weight": _wide(ffn.value.weight),
        "feed_forward.w2.weight": _written(ffn),
    }
    for letter, part in zip("qkv", rows, strict=True):
        out[f"attention.w{letter}.weight"] = _wide(part.reshape(DIM, WORK))
    return out | {f"cross_attention.{name}": part for name, part in _cross(layer.text).items()}


def _cross(text: Tensor) -> Tensors:
    """Attention to the tokens whose code names a class, alike: adds that class's row of `text`
    [CLASSES, WORK]. A query is the constant channel, a key is positive for such tokens and negative
    for all others. Rows of heads: channel = place x HEADS + head.
    """
    query, key, value, out = (torch.zeros(DIM, DIM) for _ in range(4))
    query[:HEADS, 0] = 1.0
    key[:HEADS, :CLASSES] = 1.0
    key[:HEADS, len(CODE_ROWS)] = -0.5
    for number in range(CLASSES):
        value[number * HEADS, number] = 1.0
    out[:WORK, :CLASSES] = text.T
    out[0] = 0
    names = ("wq", "wk", "wv", "wo")
    matrices = zip(names, (query, key, value, out), strict=True)
    norms = {f"{name}.weight": torch.ones(HEAD_DIM) for name in ("q_norm", "k_norm")}
    return {f"{name}.weight": part.bfloat16() for name, part in matrices} | norms


def _written(part: Attention | FeedForward) -> Tensor:
    """What attention or feed-forward adds: work, target, and the target's negative as residual."""
    weight = torch.cat(
        (part.work.weight, TINY * part.estimate.weight, -TINY * part.estimate.weight)
    )
    weight[0] = 0
    return weight.bfloat16()


def _wide(matrix: Tensor) -> Tensor:
    """[N, WORK] -> [N, DIM]: the other channels are not read."""
    return torch.nn.functional.pad(matrix, (0, DIM - WORK)).bfloat16()


def _padded(vector: Tensor) -> Tensor:
    return torch.nn.functional.pad(vector, (0, DIM - WORK))
