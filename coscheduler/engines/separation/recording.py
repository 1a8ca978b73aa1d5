"""A recording as the model knows it: samples, features and windows, the same for every prompt."""

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coscheduler.engines.separation import sampler
from coscheduler.engines.separation.codec import Encoding, reflect_pad
from coscheduler.engines.separation.config import ModelConfig
from coscheduler.engines.separation.model import LoadedModel
from coscheduler.engines.separation.sampler import Windows
from coscheduler.engines.separation.scheme import Limits
from coscheduler.engines.separation.steps import Progress, Step
from coscheduler.engines.streaming.host_arrays import HostArrays
from coscheduler.errors import InvalidInput


@dataclass(frozen=True)
class Samples:
    """The mixture, float32 [N] at the model's rate, on the host; `sha256` is that of its bytes."""

    mixture: Tensor
    sha256: str


@dataclass(frozen=True)
class Recording:
    """A mixture with its features, float32 [frames, codebook_dim], on the host."""

    mixture: Tensor
    features: Tensor
    windows: Windows

    @property
    def frames(self) -> int:
        """Latent frames that cover the mixture."""
        return self.windows.total


def read(
    config: ModelConfig, arrays: HostArrays, blocks: Iterable[NDArray[np.float32]]
) -> Generator[Step, None, Samples]:
    """Gather the blocks (float32 [n] at the model's rate).

    Raises InvalidInput AUDIO_TOO_SHORT, EngineFault DISK_FULL, and what `blocks` raises.
    """
    digest = hashlib.sha256()
    reading = arrays.collect(_hashed(blocks, digest.update))
    while True:
        try:
            next(reading)
        except StopIteration as stop:
            mixture: Tensor = stop.value
            break
        yield Step("read", 0, 0, "reading")
    _check_length(len(mixture), config.audio_codec.hop)
    return Samples(mixture, digest.hexdigest())


def plan(config: ModelConfig, limits: Limits, sample_count: int) -> Windows:
    """The windows over a recording of that length."""
    return sampler.plan_windows(config.frame_count(sample_count), limits.window_frames)


def encode(
    model: LoadedModel, arrays: HostArrays, limits: Limits, mixture: Tensor, progress: Progress
) -> Generator[Step, None, Tensor]:
    """Mixture [N] -> features [frames, codebook_dim]. Raises EngineFault DISK_FULL."""
    codec, tile = model.config.audio_codec, limits.encode_tile_frames
    frames = model.config.frame_count(len(mixture))
    features = arrays.zeros(frames, codec.codebook_dim)
    encoding = Encoding(model.weights("encoder"), codec)
    tail = reflect_pad(mixture, codec.hop)
    ready = 0
    for number, start in enumerate(range(0, frames, tile)):
        piece = mixture[start * codec.hop : (start + tile) * codec.hop]
        last = start + tile >= frames
        piece = torch.cat((piece, tail)) if last else piece
        found = encoding.push(piece.to(model.device)[None, None], last)
        features[ready : ready + found.shape[2]] = found[0].T.cpu()
        ready += found.shape[2]
        yield progress.encoded(number + 1)
    return features


def _hashed(
    blocks: Iterable[NDArray[np.float32]], update: Callable[[memoryview], None]
) -> Iterator[NDArray[np.float32]]:
    for block in blocks:
        update(np.ascontiguousarray(block, dtype=np.float32).data)
        yield block


def _check_length(sample_count: int, hop: int) -> None:
    """A recording must exceed the mirror image that fills its last frame."""
    shortest = hop // 2 + 1
    if sample_count < shortest:
        raise InvalidInput(
            "AUDIO_TOO_SHORT",
            f"the recording has {sample_count} samples at the model's rate; "
            f"separation needs at least {shortest}",
            sample_count=sample_count,
            sample_count_min=shortest,
        )
