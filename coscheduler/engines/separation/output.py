"""From signals to files: the residual asked for, the rate asked for, and what the user should know.

Everything is mono: the model hears the mean over the recording's channels, and target and residual
have one channel each.
"""

from collections.abc import Generator, Iterator
from pathlib import Path

import torch
from torch import Tensor

from coscheduler import audio
from coscheduler.engines.separation.ranking import BLOCK_SAMPLES
from coscheduler.engines.separation.request import Request
from coscheduler.engines.separation.separate import Separated
from coscheduler.engines.separation.steps import Step, Steps
from coscheduler.engines.streaming.host_arrays import HostArrays, disk_fault

NAMES = ("target", "residual")
TARGET, RESIDUAL = 0, 1


def finish(
    separated: Separated, request: Request, arrays: HostArrays, model_rate_hz: int
) -> Generator[Step, None, tuple[Tensor, ...]]:
    """Target and residual as asked for: float32 [M] each, on the host, at the output's rate.

    The generated residual becomes mixture - target in place where that is wanted; then target and
    residual add up to the mixture exactly. Raises EngineFault DISK_FULL.
    """
    if request.residual == "mixture-minus-target":
        yield from _subtract(separated)
    rate_hz = request.sample_rate_hz or model_rate_hz
    if rate_hz == model_rate_hz:
        return tuple(separated.signals)
    signals = []
    for signal in separated.signals:
        signals.append((yield from _resample(signal, arrays, model_rate_hz, rate_hz)))
    return tuple(signals)


def write(signals: tuple[Tensor, ...], rate_hz: int, folder: Path) -> Generator[Step, None, int]:
    """Write target.wav and residual.wav, 16-bit; returns how many samples were clipped.

    Raises EngineFault OUTPUT_NOT_FINITE, DISK_FULL or WORK_FOLDER_UNUSABLE.
    """
    clipped = 0
    for name, signal in zip(NAMES, signals, strict=True):
        writing = audio.write_wav_in_blocks(folder / f"{name}.wav", signal.numpy(), rate_hz)
        while True:
            try:
                next(writing)
            except StopIteration as stop:
                clipped += stop.value
                break
            except OSError as error:
                raise disk_fault(error, folder, 2 * len(signal)) from error
            yield _WRITING
    return clipped


def notes_on(separated: Separated, clipped: int) -> tuple[str, ...]:
    """What the user should know of a result: silence, redraws, an empty target, clipping."""
    chosen, drawn = separated.chosen, separated.judged
    notes = []
    if chosen.is_silent:
        notes.append("The recording is silent (below -80 dB): there is nothing to separate.")
    elif chosen.is_empty:
        notes.append(
            f"The target is empty (60 dB below the recording) with {_seeds(separated)}: the model "
            "found nothing that fits the prompt. Another prompt or seed may help."
        )
    elif drawn[0].is_empty:
        notes.append(
            f"The target was empty with {sum(one.is_empty for one in drawn)} of {len(drawn)} "
            f"seeds; this one has seed {chosen.seed}."
        )
    if clipped:
        notes.append(f"{clipped} samples of the output exceeded full scale and were clipped.")
    return tuple(notes)


def _seeds(separated: Separated) -> str:
    seeds = [str(judged.seed) for judged in separated.judged]
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(seeds)}"


_WRITING = Step("write", 0, 0, "writing")


def _subtract(separated: Separated) -> Steps:
    target, residual = separated.signals
    for start in range(0, len(separated.mixture), BLOCK_SAMPLES):
        block = slice(start, start + BLOCK_SAMPLES)
        torch.sub(separated.mixture[block], target[block], out=residual[block])
        yield _WRITING


def _resample(
    signal: Tensor, arrays: HostArrays, source_hz: int, target_hz: int
) -> Generator[Step, None, Tensor]:
    """The signal at another rate, as long as it was in time, to the nearest sample."""
    blocks = (block.numpy() for block in _blocks(signal))
    found = arrays.zeros((len(signal) * target_hz + source_hz // 2) // source_hz)
    ready = 0
    for piece in audio.resampled(blocks, source_hz, target_hz):
        room = found[ready : ready + len(piece)]
        room.copy_(torch.from_numpy(piece[: len(room)]))
        ready += len(room)
        yield _WRITING
    return found


def _blocks(signal: Tensor) -> Iterator[Tensor]:
    return (signal[start : start + BLOCK_SAMPLES] for start in range(0, len(signal), BLOCK_SAMPLES))
