"""Where there is speech: WhisperX's bundled pyannote model, driven batch by batch.

The model scores windows of 5 s every 0.5 s; overlapping scores are averaged, thresholded and merged
into chunks of at most one Whisper window. The result is that of calling the pipeline once, but the
caller gets control back after every batch.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coscheduler.engines.streaming import heap
from coscheduler.engines.transcription.libraries import module

SAMPLE_RATE_HZ = 16_000
WINDOWS_PER_BATCH = {"cpu": 8, "cuda": 32}  # 32, the pipeline's own, takes 180 MiB

BATCHES_PER_TRIM = 64


@dataclass(frozen=True)
class Chunk:
    """A stretch of the recording to transcribe at once, in seconds; how much of it is speech."""

    start: float
    end: float
    speech_seconds: float


@dataclass(frozen=True)
class Thresholds:
    """When speech begins and ends (probabilities), and the greatest length of a chunk."""

    onset: float
    offset: float
    chunk_seconds: float


def chunks(
    vad: Any, samples: NDArray[np.float32], thresholds: Thresholds
) -> Generator[tuple[int, int], None, list[Chunk]]:
    """Find the chunks of `samples` (float32 [N] at 16 kHz) with a `whisperx.vads.Pyannote`.

    Yields (done, total) windows after every batch.
    """
    scores = yield from _scores(vad.vad_pipeline._segmentation, samples)
    merged = vad.merge_chunks(
        scores, thresholds.chunk_seconds, onset=thresholds.onset, offset=thresholds.offset
    )
    return joined(merged)


def bound_front_end(vad: Any) -> None:
    """Let the convolutions of a `whisperx.vads.Pyannote` see a batch window by window.

    Their output is far longer than that of the recurrent layers, which want the whole batch to be
    fast. The result is the same; a batch of 8 takes 16 MiB, where 4 at once took 24.
    """
    torch, front_end = module("torch"), vad.vad_pipeline._segmentation.model.sincnet
    whole = front_end.forward

    def forward(waveforms: Any) -> Any:
        return torch.cat([whole(window) for window in waveforms.split(1)])

    front_end.forward = forward


def joined(merged: list[dict[str, Any]]) -> list[Chunk]:
    """WhisperX's merged segments as chunks."""
    return [
        Chunk(entry["start"], entry["end"], sum(end - start for start, end in entry["segments"]))
        for entry in merged
    ]


def _scores(inference: Any, samples: NDArray[np.float32]) -> Generator[tuple[int, int], None, Any]:
    """Speech probability per frame of the model, as a pyannote SlidingWindowFeature."""
    core = module("pyannote.core")
    scores = yield from _window_scores(inference, samples)
    averaged = inference.aggregate(
        core.SlidingWindowFeature(
            scores,
            core.SlidingWindow(start=0.0, duration=inference.duration, step=inference.step),
        ),
        inference.model.receptive_field,
        warm_up=inference.warm_up,
        hamming=True,
        missing=0.0,
    )
    if _padding(inference, len(samples)):
        whole = core.Segment(0.0, len(samples) / SAMPLE_RATE_HZ)
        averaged.data = averaged.crop(whole, mode="loose")
    return averaged


def _window_scores(
    inference: Any, samples: NDArray[np.float32]
) -> Generator[tuple[int, int], None, NDArray[np.float32]]:
    """The greatest class probability: float32 [windows, frames, 1]. Pads the end with zeros."""
    torch = module("torch")
    size, step, count = _windows(inference, len(samples))
    found = []
    batch_size = WINDOWS_PER_BATCH[inference.device.type]
    for first in range(0, count, batch_size):
        last = min(first + batch_size, count)
        part = samples[first * step : (last - 1) * step + size]
        part = np.pad(part, (0, (last - first - 1) * step + size - len(part)))
        windows = torch.from_numpy(part).unfold(0, size, step)[:, None]
        found.append(inference.pre_aggregation_hook(inference.infer(windows)))
        if len(found) % BATCHES_PER_TRIM == 0:
            heap.trim()  # the scores that are kept leave holes
        yield last, count
    return np.vstack(found)


def _windows(inference: Any, sample_count: int) -> tuple[int, int, int]:
    """Size and step of the windows in samples, and how many cover the recording."""
    size = inference.model.audio.get_num_samples(inference.duration)
    step = round(inference.step * SAMPLE_RATE_HZ)
    return size, step, 1 + max(0, -(-(sample_count - size) // step))


def _padding(inference: Any, sample_count: int) -> int:
    """Zeros that fill up the last window, in samples."""
    size, step, count = _windows(inference, sample_count)
    return size + (count - 1) * step - sample_count
