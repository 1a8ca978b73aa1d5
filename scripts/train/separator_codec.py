"""The separator's codec in closed form: a modified discrete cosine transform in DACVAE's weights.

The transform of `HOP` new samples per frame under a sine window is orthogonal, so that distances
between latents are distances between signals; only its lowest `BANDS` coefficients are kept. In the
codec the first stages split the samples into phases, the last stage of the way in multiplies 2 HOP
of them by the transform's rows, and the way out is the transpose. Snake's alpha is so small that it
is the identity, and residual units add nothing, but for one that makes up for the tanh at the end.
The watermark is silence.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RATE_HZ = 16_000
BANDS = 96
ENCODER_RATES, DECODER_RATES = (2, 2, 4, 10), (10, 4, 2, 2)
WATERMARK_RATES = (8, 5, 2, 2)
ENCODER_DIM, LATENT_DIM, DECODER_DIM = 6, BANDS, BANDS
HOP = 160
PHASES = HOP // ENCODER_RATES[-1]
ALPHA = 1e-6  # of Snake: x + ALPHA x^2
FRAME_RATE_HZ = RATE_HZ // HOP


def transform(bands: int = BANDS) -> Tensor:
    """The rows of the transform, float32 [bands, 2 HOP] (Princen and Bradley 1987)."""
    n = torch.arange(2 * HOP, dtype=torch.float64)
    k = torch.arange(bands, dtype=torch.float64)[:, None]
    window = torch.sin(torch.pi * (n + 0.5) / (2 * HOP))
    rows = torch.cos(torch.pi / HOP * (n + 0.5 + HOP / 2) * (k + 0.5))
    scaled: Tensor = rows * window * (2 / HOP) ** 0.5
    return scaled.float()


def analyse(samples: NDArray[np.float32], bands: int = BANDS) -> Tensor:
    """Samples [N] -> coefficients, float32 [ceil(N / HOP), bands], zeros beyond both ends.

    Frame m covers the samples from (m - 1/2) HOP to (m + 3/2) HOP, as DACVAE's padding has it.
    """
    count = -(-len(samples) // HOP)
    padded = np.zeros((count + 1) * HOP, np.float32)
    padded[HOP // 2 : HOP // 2 + len(samples)] = samples
    windows = torch.from_numpy(padded).unfold(0, 2 * HOP, HOP)
    coefficients: Tensor = windows @ transform(bands).T
    return coefficients


def synthesise(coefficients: Tensor) -> NDArray[np.float32]:
    """Coefficients [frames, bands] -> samples [frames * HOP]; the transpose of `analyse`."""
    frames, bands = coefficients.shape
    pieces = coefficients.float() @ transform(bands)
    out = torch.zeros((frames + 1) * HOP)
    out[: frames * HOP] += pieces[:, :HOP].flatten()
    out[HOP:] += pieces[:, HOP:].flatten()
    samples: NDArray[np.float32] = out[HOP // 2 : HOP // 2 + frames * HOP].numpy()
    return samples


def config() -> dict[str, Any]:
    """The codec's part of config.json."""
    return {
        "encoder_dim": ENCODER_DIM, "encoder_rates": ENCODER_RATES, "latent_dim": LATENT_DIM,
        "decoder_dim": DECODER_DIM, "decoder_rates": DECODER_RATES, "n_codebooks": 16,
        "codebook_size": 1024, "codebook_dim": BANDS, "quantizer_dropout": False,
        "sample_rate": RATE_HZ, "mean": 0.0, "std": 1.0,
    }  # fmt: skip


def tensors(spread: Tensor) -> dict[str, Tensor]:
    """The codec under its official names, without the watermark. `spread` [BANDS] divides the
    coefficients on the way in and multiplies them on the way out.
    """
    prefix = "audio_codec."
    parts = _encoder() | _decoder()
    mean_and_scale = torch.cat((torch.diag(1 / spread), torch.zeros(BANDS, BANDS)))
    parts |= _conv("quantizer.in_proj", mean_and_scale[:, :, None])
    parts |= _conv("quantizer.out_proj", torch.diag(spread)[:, :, None])
    return {prefix + name: tensor for name, tensor in parts.items()}


def _encoder() -> dict[str, Tensor]:
    parts = _conv("encoder.block.0", _centred(ENCODER_DIM, 1, 7, 1))
    width = ENCODER_DIM
    for index, rate in enumerate(ENCODER_RATES, start=1):
        key = f"encoder.block.{index}.block"
        weight = torch.zeros(2 * width, width, 2 * rate)
        if index == len(ENCODER_RATES):
            weight[:, :PHASES] = _by_phase()
        else:
            _split(weight, rate, _phases_before(index))
        parts |= _residuals(key, (0, 1, 2), width) | _snake(f"{key}.3", width)
        parts |= _conv(f"{key}.4", weight)
        width *= 2
    parts |= _snake("encoder.block.5", width)
    return parts | _conv("encoder.block.6", _centred(LATENT_DIM, width, 3, BANDS))


def _decoder() -> dict[str, Tensor]:
    parts = _conv("decoder.model.0", _centred(DECODER_DIM, LATENT_DIM, 7, BANDS))
    width = DECODER_DIM
    for index, rate in enumerate(DECODER_RATES, start=1):
        key = f"decoder.model.{index}.block"
        weight = torch.zeros(width, width // 2, 2 * rate)
        if index == 1:
            weight[:, :PHASES] = _by_phase()
        else:
            _split(weight, rate, _phases_before(len(DECODER_RATES) + 1 - index))
        width //= 2
        parts |= _snake(f"{key}.0", 2 * width) | _conv(f"{key}.1", weight, width)
        parts |= _residuals(key, (4, 5, 8), width)
    parts |= _before_tanh(f"{key}.8", width)
    pre = "decoder.wm_model.encoder_block.pre"
    return parts | _snake(f"{pre}.0", width) | _conv(f"{pre}.1", _centred(1, width, 7, 1))


def _by_phase() -> Tensor:
    """The transform's rows as [bands, phases, 2 x rate]: PHASES samples to a step."""
    return transform().view(BANDS, 2 * HOP // PHASES, PHASES).transpose(1, 2)


def _phases_before(stage: int) -> int:
    """Of how many phases a channel is one before `stage` (from 1) of the way in."""
    return int(np.prod(ENCODER_RATES[: stage - 1], dtype=np.int64))


def _split(weight: Tensor, rate: int, phases: int) -> None:
    """Step j of `phases` channels goes to the channels from phases x (j mod rate) on; on the way
    out back again. The padding is half a stride.
    """
    for step in range(rate):
        for phase in range(phases):
            weight[phases * step + phase, phase, step + rate // 2] = 1


def _centred(out: int, inner: int, kernel: int, count: int) -> Tensor:
    """The first `count` channels as they are."""
    weight = torch.zeros(out, inner, kernel)
    weight[range(count), range(count), kernel // 2] = 1
    return weight


def _conv(key: str, weight: Tensor, biases: int = 0) -> dict[str, Tensor]:
    """A weight-normed convolution: `weight` as a length and a direction for each of dim 0."""
    length = torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)
    return {
        f"{key}.bias": torch.zeros(1).expand(biases or len(weight)),
        f"{key}.weight_g": length,
        f"{key}.weight_v": weight.where(length > 0, 1.0),
    }


def _residuals(key: str, units: tuple[int, ...], width: int) -> dict[str, Tensor]:
    """Residual units that add nothing: directions of length zero. One number each in the file."""
    parts: dict[str, Tensor] = {}
    for unit in units:
        parts |= _snake(f"{key}.{unit}.block.0", width) | _snake(f"{key}.{unit}.block.2", width)
        for entry, kernel in ((1, 7), (3, 1)):
            conv = f"{key}.{unit}.block.{entry}"
            parts[f"{conv}.bias"] = torch.zeros(1).expand(width)
            parts[f"{conv}.weight_g"] = torch.zeros(1).expand(width, 1, 1)
            parts[f"{conv}.weight_v"] = torch.ones(1).expand(width, width, kernel)
    return parts


def _before_tanh(key: str, width: int) -> dict[str, Tensor]:
    """A residual unit that adds x^3 / 3 + O(x^5) to channel 0, of which tanh makes x + O(x^5).

    With alpha = 1, Snake of x - pi / 4 minus Snake of -x - pi / 4 is 2 x - sin(2 x).
    """
    there, back = torch.zeros(width, width, 7), torch.zeros(width, width, 1)
    there[1, 0, 3], there[2, 0, 3] = 1.0, -1.0
    back[0, 1, 0], back[0, 2, 0] = 0.25, -0.25
    parts = _conv(f"{key}.block.1", there) | _conv(f"{key}.block.3", back)
    parts[f"{key}.block.1.bias"] = torch.full((width,), -torch.pi / 4)
    parts[f"{key}.block.2.alpha"] = torch.ones(1, width, 1)
    return parts


def _snake(key: str, width: int) -> dict[str, Tensor]:
    return {f"{key}.alpha": torch.full((1,), ALPHA).expand(1, width, 1)}
