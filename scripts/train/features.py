"""Whisper's log mel spectrogram, for batches."""

import functools

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from train.speech import RATE_HZ

N_FFT, HOP, MELS = 400, 160, 80
FRAMES_PER_SECOND = RATE_HZ // HOP
_SILENCE = -10.0  # log10 of the least power
_RANGE = 8.0  # decades below the loudest that are kept


def log_mel(samples: Tensor) -> Tensor:
    """`samples` [B, N] at 16 kHz, N a multiple of HOP: log10 of mel powers [B, MELS, N / HOP]."""
    window = torch.hann_window(N_FFT, device=samples.device)
    spectrum = torch.stft(samples, N_FFT, HOP, window=window, return_complex=True)[..., :-1]
    power = spectrum.real.square() + spectrum.imag.square()
    return (_filters().to(samples.device) @ power).clamp(min=10**_SILENCE).log10()


def scaled(mel: Tensor) -> Tensor:
    """What the encoder is given: eight decades below the loudest place, brought to about -1..1."""
    floor = mel.amax(dim=(1, 2), keepdim=True) - _RANGE
    return (torch.maximum(mel, floor) + 4.0) / 4.0


def without_highs(mel: Tensor, cutoffs: Tensor) -> Tensor:
    """`mel` [B, MELS, T] with the bands from `cutoffs` [B] on silent, as after a narrow codec."""
    bands = torch.arange(MELS, device=mel.device)
    return mel.masked_fill((bands >= cutoffs[:, None])[:, :, None], _SILENCE)


@functools.cache
def _filters() -> Tensor:
    bank = mel_filter_bank(1 + N_FFT // 2, MELS, 0.0, RATE_HZ / 2, RATE_HZ, "slaney", "slaney")
    return torch.from_numpy(bank.T).float()
