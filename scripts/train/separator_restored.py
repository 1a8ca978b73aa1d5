"""The separator's trained part out of the folder that ships: what `separator_export` wrote, undone.

One pass of it is what the engine's 16 midpoint steps converge to, in a thirtieth of the time.
"""

from pathlib import Path

import torch
from torch import Tensor

from train import separator_codec as codec
from train.separator_codec import BANDS
from train.separator_export import MAX_POSITIONS, RATIO, STATE, TINY, Tensors
from train.separator_net import CLASSES, HEAD_DIM, HEADS, WORK, Separator
from train.speech import Samples

FRAMES = MAX_POSITIONS


def restored(folder: Path) -> tuple[Separator, Tensor]:
    """The network, and what divides each band's coefficients [BANDS], of a folder that
    `separator_export.export` wrote. Matrices were rounded to bfloat16 there.
    """
    kept = torch.load(folder / "checkpoint.pt", weights_only=True)
    count = 1 + max(int(name.split(".")[2]) for name in kept if "transformer.layers." in name)
    net = Separator(count)
    net.load_state_dict(_state(kept, count))
    spread = _matrix(kept, "audio_codec.quantizer.out_proj").diagonal()
    return net.eval(), spread.clone()


def _matrix(kept: Tensors, name: str) -> Tensor:
    """A convolution of width 1 with weight norm, [out, in]."""
    value, scale = kept[f"{name}.weight_v"].float(), kept[f"{name}.weight_g"].float()
    length = torch.linalg.vector_norm(value, dim=(1, 2), keepdim=True)
    matrix: Tensor = (value * scale / length)[:, :, 0]
    return matrix


def _state(kept: Tensors, layers: int) -> Tensors:
    features = slice(2 * STATE, 2 * STATE + BANDS)
    state = {
        "features.weight": kept["proj.weight"][:WORK, features],
        "features.bias": kept["proj.bias"][:WORK],
    }
    for index in range(2):
        key = f"transformer.x_embedder.block.block{index + 1}"
        state[f"blocks.{index}.weight"] = kept[f"{key}.groupnorm.weight"][:WORK]
        state[f"blocks.{index}.bias"] = kept[f"{key}.groupnorm.bias"][:WORK]
        state[f"blocks.{index}.project.weight"] = kept[f"{key}.project.weight"][:WORK, :WORK]
        state[f"blocks.{index}.project.bias"] = kept[f"{key}.project.bias"][:WORK]
    for index in range(layers):
        key = f"transformer.layers.{index}."
        mine = {n.removeprefix(key): part for n, part in kept.items() if n.startswith(key)}
        state |= {f"layers.{index}.{name}": part for name, part in _layer(mine).items()}
    return state


def _layer(kept: Tensors) -> Tensors:
    shifts = kept["scale_shift_table"][:, :WORK]
    by_head = [
        kept[f"attention.w{letter}.weight"][:, :WORK].reshape(HEAD_DIM, HEADS, WORK)
        for letter in "qkv"
    ]
    return {
        "text": kept["cross_attention.wo.weight"][:WORK, :CLASSES].T,
        "attention_norm.weight": kept["attention_norm.weight"][:WORK] / RATIO,
        "attention_norm.shift": shifts[0],
        "ffn_norm.weight": kept["ffn_norm.weight"][:WORK] / RATIO,
        "ffn_norm.shift": shifts[3],
        "attention.q_norm": kept["attention.q_norm.weight"],
        "attention.k_norm": kept["attention.k_norm.weight"],
        "attention.qkv.weight": torch.cat([part.transpose(0, 1).flatten(0, 1) for part in by_head]),
        "attention.work.weight": kept["attention.wo.weight"][:WORK],
        "attention.estimate.weight": kept["attention.wo.weight"][WORK : WORK + BANDS] / TINY,
        "ffn.gate.weight": kept["feed_forward.w1.weight"][:, :WORK],
        "ffn.value.weight": kept["feed_forward.w3.weight"][:, :WORK],
        "ffn.work.weight": kept["feed_forward.w2.weight"][:WORK],
        "ffn.estimate.weight": kept["feed_forward.w2.weight"][WORK : WORK + BANDS] / TINY,
    }


@torch.inference_mode()
def speech_of(net: Separator, spread: Tensor, mixture: Samples) -> Samples:
    """The speech in `mixture`, float32 [N] at 16 kHz, of the same length.

    As in the engine, windows of FRAMES overlap by half and are joined with tapered weights.
    """
    latents = codec.analyse(mixture) / spread
    starts = _starts(len(latents))
    cut = torch.stack([latents[at : at + FRAMES] for at in starts])
    device = next(net.parameters()).device
    with torch.autocast(device.type, torch.bfloat16):
        classes = torch.zeros(len(cut), dtype=torch.int64, device=device)
        estimates = net(cut.to(device), classes).float().cpu()
    taper = torch.hann_window(cut.shape[1] + 2, periodic=False)[1:-1, None]
    total, weights = torch.zeros_like(latents), torch.zeros(len(latents), 1)
    for at, estimate in zip(starts, estimates, strict=True):
        total[at : at + FRAMES] += estimate * taper
        weights[at : at + FRAMES] += taper
    return codec.synthesise(total / weights * spread)[: len(mixture)]


def _starts(count: int) -> list[int]:
    """Where windows over `count` frames begin; the last one is moved left to end with them."""
    last = max(0, count - FRAMES)
    return sorted({*range(0, last, FRAMES // 2), last})
