"""One separation, from samples to two signals, in slices.

What is as long as the recording (samples, features, ODE state) lies on the host; the device holds
the weights, one codec tile and one window at a time.
"""

from collections.abc import Generator, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from coscheduler.engines.separation import sampler, text, transformer
from coscheduler.engines.separation.codec import Decoding, Encoding, reflect_pad
from coscheduler.engines.separation.model import LoadedModel
from coscheduler.engines.separation.sampler import Windows
from coscheduler.engines.separation.text import TextEncoderFolder
from coscheduler.engines.separation.transformer import Condition
from coscheduler.engines.streaming import heap
from coscheduler.engines.streaming.host_arrays import HostArrays
from coscheduler.errors import InvalidInput

TARGET, RESIDUAL = 0, 1


@dataclass(frozen=True)
class Limits:
    """How much of a recording is on the device at once, in latent frames."""

    window_frames: int
    encode_tile_frames: int
    decode_tile_frames: int


@dataclass(frozen=True)
class Step:
    """Progress: `done` of `total` units (0 = not known yet) and what is being done."""

    done: int
    total: int
    note: str


@dataclass(frozen=True)
class Separated:
    """The result: samples [2, N] (target, residual) as long as the mixture [N], on the host."""

    mixture: Tensor
    signals: Tensor
    window_count: int
    token_count: int


Steps = Generator[Step, None, None]


def separate(
    model: LoadedModel,
    text_encoder: TextEncoderFolder,
    arrays: HostArrays,
    limits: Limits,
    blocks: Iterable[NDArray[np.float32]],
    prompt: str,
    seed: int,
) -> Generator[Step, None, Separated]:
    """Separate the recording that `blocks` (float32 [n] at the model's rate) make up.

    Raises InvalidInput AUDIO_TOO_SHORT or PROMPT_TOO_LONG, EngineFault DISK_FULL, and what `blocks`
    raises. The same arguments give the same bits on the same machine.
    """
    mixture = yield from _read(arrays, blocks)
    check_length(len(mixture), model.config.audio_codec.hop)
    ids = text.tokenize(text_encoder, prompt, model.config.text_encoder.max_length)
    yield Step(0, 0, "reading the prompt")
    memory = _text_memory(model, text_encoder, ids)
    work = _Work(model, arrays, limits, mixture, memory)
    for phase in (work.encode(), work.sample(seed), work.decode()):
        yield from phase
        heap.trim()  # holes that one phase leaves in the heap would add to the peak of the next
    return Separated(mixture, work.signals, len(work.windows.starts), len(ids))


def check_length(sample_count: int, hop: int) -> None:
    """A recording must exceed the mirror image that fills its last frame.

    Raises InvalidInput AUDIO_TOO_SHORT with both counts.
    """
    shortest = hop // 2 + 1
    if sample_count < shortest:
        raise InvalidInput(
            "AUDIO_TOO_SHORT",
            f"the recording has {sample_count} samples at the model's rate; "
            f"separation needs at least {shortest}",
            sample_count=sample_count,
            sample_count_min=shortest,
        )


def _read(
    arrays: HostArrays, blocks: Iterable[NDArray[np.float32]]
) -> Generator[Step, None, Tensor]:
    reading = arrays.collect(blocks)
    while True:
        try:
            next(reading)
        except StopIteration as stop:
            mixture: Tensor = stop.value
            return mixture
        yield Step(0, 0, "reading")


def _text_memory(model: LoadedModel, source: TextEncoderFolder, ids: list[int]) -> Tensor:
    """The text as the transformer reads it, [1, L, D]; the encoder is gone on return."""
    encoder = text.TextEncoder(source, model.device)
    return transformer.text_memory(model.weights("core"), encoder.encode(ids))


class _Work:
    """The three long phases over one recording and what they hand on."""

    def __init__(
        self,
        model: LoadedModel,
        arrays: HostArrays,
        limits: Limits,
        mixture: Tensor,
        memory: Tensor,
    ) -> None:
        config = model.config
        self._model, self._arrays, self._limits = model, arrays, limits
        self._mixture, self._memory = mixture, memory
        self._frames = config.frame_count(len(mixture))
        self.windows: Windows = sampler.plan_windows(self._frames, limits.window_frames)
        self._features = arrays.zeros(self._frames, config.audio_codec.codebook_dim)
        self._state = arrays.zeros(self._frames, config.latent_channels)
        self.signals = arrays.zeros(2, len(mixture))
        encode_tiles = -(-self._frames // limits.encode_tile_frames)
        decode_tiles = -(-self._frames // limits.decode_tile_frames)
        self._units = (encode_tiles, sampler.EVALUATIONS, decode_tiles)

    def encode(self) -> Steps:
        """Mixture -> features [frames, codebook_dim]."""
        codec, tile = self._model.config.audio_codec, self._limits.encode_tile_frames
        encoding = Encoding(self._model.weights("encoder"), codec)
        tail = reflect_pad(self._mixture, codec.hop)
        ready = 0
        for number, start in enumerate(range(0, self._frames, tile)):
            piece = self._mixture[start * codec.hop : (start + tile) * codec.hop]
            last = start + tile >= self._frames
            piece = torch.cat((piece, tail)) if last else piece
            features = encoding.push(piece.to(self._model.device)[None, None], last)
            self._features[ready : ready + features.shape[2]] = features[0].T.cpu()
            ready += features.shape[2]
            yield self._step(0, number + 1, "encoding")

    def sample(self, seed: int) -> Steps:
        """Noise -> latents [frames, 2 * codebook_dim]."""
        sampler.draw_noise(seed, self._state)
        state, middle, speed = (
            part[None]
            for part in (
                self._state,
                self._arrays.zeros(*self._state.shape),
                self._arrays.zeros(*self._state.shape),
            )
        )
        velocity = _Velocity(self._model, self._features, self.windows, self._memory)
        for done in sampler.integrate(state, middle, speed, self.windows, velocity):
            yield self._step(1, done, "separating")

    def decode(self) -> Steps:
        """Latents -> signals [2, N], cut to the mixture's length."""
        codec, tile = self._model.config.audio_codec, self._limits.decode_tile_frames
        decoding = Decoding(self._model.weights("decoder"), codec)
        ready = 0
        for number, start in enumerate(range(0, self._frames, tile)):
            piece = self._state[start : start + tile].to(self._model.device)
            latents = torch.stack(piece.chunk(2, dim=1)).transpose(1, 2)
            samples = decoding.push(latents, start + tile >= self._frames)[:, 0].cpu()
            room = self.signals[:, ready : ready + samples.shape[1]]
            room.copy_(samples[:, : room.shape[1]])
            ready += samples.shape[1]
            yield self._step(2, number + 1, "decoding")

    def _step(self, phase: int, done: int, note: str) -> Step:
        return Step(sum(self._units[:phase]) + done, sum(self._units), note)


class _Velocity:
    """The transformer over one window, layer by layer."""

    def __init__(
        self, model: LoadedModel, features: Tensor, windows: Windows, memory: Tensor
    ) -> None:
        self._model, self._features, self._windows = model, features, windows
        self._memory = memory
        net, core = model.config.transformer, model.weights("core")
        at = sampler.evaluation_times().to(model.device)
        self._times = transformer.times(core, net, at)
        self._rotary = transformer.rotary_table(net, windows.frames, model.device)
        self._condition: tuple[int, Condition] | None = None

    def __call__(self, state: Tensor, window: int, number: int) -> Generator[None, None, Tensor]:
        """[1, frames, channels] on the host -> velocity of the same shape on the host."""
        net, core = self._model.config.transformer, self._model.weights("core")
        condition = self._conditioned(window)
        now = transformer.moment(core, condition, self._times, number)
        h = transformer.embed(core, state.to(self._model.device), condition.fixed)
        for index in range(net.n_layers):
            h = transformer.layer(self._model.layer(index), net, h, now, condition)
            yield
        return transformer.head(core, net, h, now).to(state.device)

    def _conditioned(self, window: int) -> Condition:
        """The window's condition. Only the last one is kept: making it again costs one thin matrix
        product, keeping all would grow with the recording.
        """
        if self._condition is None or self._condition[0] != window:
            self._condition = None
            features = self._features[self._windows.slice(window)].to(self._model.device)[None]
            anchors = torch.zeros(features.shape[:2], dtype=torch.int64, device=features.device)
            fixed = transformer.fixed_input(self._model.weights("core"), features, anchors)
            self._condition = (window, Condition(fixed, self._memory, None, None, self._rotary))
        return self._condition[1]
