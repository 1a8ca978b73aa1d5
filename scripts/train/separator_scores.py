"""How good a separation is, of the trained part alone: no engine, a second for each minute."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train import separator_codec as codec
from train.separator_data import Example
from train.separator_net import Separator


def si_sdr_db(estimate: NDArray[np.float32], target: NDArray[np.float32]) -> float:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al. 2019, without removing means)."""
    x, y = (part.astype(np.float64).ravel() for part in (estimate, target))
    aligned = y * (x @ y / (y @ y))
    return float(10 * np.log10(np.sum(aligned**2) / np.sum((x - aligned) ** 2)))


@torch.inference_mode()
def improvements_db(net: Separator, spread: Tensor, held_out: list[Example]) -> dict[str, float]:
    """Mean SI-SDR improvement of speech by kind of interference, and the mean of these. The
    transform is orthogonal: what holds of coefficients, those beyond the codec's bands included,
    holds of samples.
    """
    by_kind: dict[str, list[float]] = {}
    for example in held_out:
        mixture, target = (codec.analyse(x, codec.HOP) for x in (example.mixture, example.target))
        estimate = torch.zeros_like(target)
        estimate[:, : codec.BANDS] = estimated(net, spread, mixture[:, : codec.BANDS])
        gain = si_sdr_db(estimate.numpy(), target.numpy())
        gain -= si_sdr_db(mixture.numpy(), target.numpy())
        by_kind.setdefault(example.kind, []).append(gain)
    means = {kind: float(np.mean(values)) for kind, values in by_kind.items()}
    return {**means, "mean": float(np.mean(list(means.values())))}


@torch.inference_mode()
def estimated(net: Separator, spread: Tensor, coefficients: Tensor, wanted: int = 0) -> Tensor:
    """What of a mixture's coefficients [T, bands] is of class `wanted`, of the same shape."""
    device = next(net.parameters()).device
    latents = (coefficients / spread)[None].to(device)
    estimate: Tensor = net(latents, torch.tensor([wanted], device=device))[0]
    return estimate.cpu() * spread
