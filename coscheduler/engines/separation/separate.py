"""One separation, from samples to two signals, in slices.

What is as long as the recording (samples, features, ODE state) lies on the host; the device holds
the weights, one codec tile and one cohort of windows at a time.
"""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from coscheduler.engines.separation import recording as recordings
from coscheduler.engines.separation import text, transformer
from coscheduler.engines.separation.candidates import Candidates, Drawn
from coscheduler.engines.separation.model import LoadedModel
from coscheduler.engines.separation.ranking import RANKERS, Judged
from coscheduler.engines.separation.recording import Recording
from coscheduler.engines.separation.request import Request, anchor_ids
from coscheduler.engines.separation.resume import ResumePoints
from coscheduler.engines.separation.scheme import Limits
from coscheduler.engines.separation.steps import Progress, Step
from coscheduler.engines.separation.text import TextEncoderFolder
from coscheduler.engines.separation.velocity import WindowVelocity
from coscheduler.engines.streaming import heap
from coscheduler.engines.streaming.host_arrays import HostArrays


@dataclass(frozen=True)
class Separated:
    """The result: samples [2, N] (target, residual) as long as the mixture [N], on the host.

    `judged` are all candidates in the order in which they were drawn; `chosen` is the one kept.
    `resumed_steps`: ODE steps that an earlier attempt had done.
    """

    mixture: Tensor
    signals: Tensor
    window_count: int
    token_count: int
    judged: tuple[Judged, ...]
    chosen: Judged
    resumed_steps: int = 0


@dataclass(frozen=True)
class Workplace:
    """What a separation works with: a loaded model, its text encoder, room on the host, sizes.

    `cohort`: how many windows one layer serves at a time; the bits do not depend on it.
    """

    model: LoadedModel
    text_encoder: TextEncoderFolder
    arrays: HostArrays
    limits: Limits
    cohort: int = 1

    def tokens(self, prompt: str) -> list[int]:
        """The prompt's tokens. Raises InvalidInput PROMPT_EMPTY or PROMPT_TOO_LONG."""
        tokens_max = self.model.config.text_encoder.max_length
        return text.tokenize(self.text_encoder, prompt, tokens_max)

    def memory(self, tokens: list[int]) -> Tensor:
        """The text as the transformer reads it, [1, L, D]; the encoder is gone on return."""
        encoder = text.TextEncoder(self.text_encoder, self.model.device)
        return transformer.text_memory(self.model.weights("core"), encoder.encode(tokens))


def separate(
    place: Workplace,
    blocks: Iterable[NDArray[np.float32]],
    request: Request,
    points_for: Callable[[str], ResumePoints],
) -> Generator[Step, None, Separated]:
    """Separate the recording that `blocks` (float32 [n] at the model's rate) make up.

    `points_for` opens the resume points for samples of a sha256. Raises InvalidInput
    AUDIO_TOO_SHORT, SPAN_OUTSIDE, PROMPT_EMPTY or PROMPT_TOO_LONG, EngineFault DISK_FULL, and what
    `blocks` raises. The same arguments give the same bits on the same machine.
    """
    samples = yield from recordings.read(place.model.config, place.arrays, blocks)
    anchors = anchor_ids(request.spans, place.model.config, len(samples.mixture))
    tokens = place.tokens(request.prompt)
    points = points_for(samples.sha256)
    yield Step("text", 0, 0, "reading the prompt")
    memory = place.memory(tokens)
    windows = recordings.plan(place.model.config, place.limits, len(samples.mixture))
    progress = Progress(windows, place.limits, request.candidates)
    features = yield from _features(place, samples.mixture, progress, points)
    recording = Recording(samples.mixture, features, windows)
    return (yield from _prompted(place, recording, request, tokens, memory, anchors, points))


def separate_encoded(
    place: Workplace, recording: Recording, request: Request
) -> Generator[Step, None, Separated]:
    """One more prompt over a recording that is encoded already. Raises as `separate` does."""
    anchors = anchor_ids(request.spans, place.model.config, len(recording.mixture))
    tokens = place.tokens(request.prompt)
    yield Step("text", 0, 0, "reading the prompt")
    memory = place.memory(tokens)
    points = ResumePoints(None, "")
    return (yield from _prompted(place, recording, request, tokens, memory, anchors, points))


def _features(
    place: Workplace, mixture: Tensor, progress: Progress, points: ResumePoints
) -> Generator[Step, None, Tensor]:
    """The features of an earlier attempt, else new ones."""
    loading = points.load("features", place.arrays)
    while True:
        try:
            next(loading)
        except StopIteration as stop:
            point = stop.value
            break
        yield progress.encoded(0)
    if point is not None:
        features: Tensor = point.arrays["features"]
        return features
    features = yield from recordings.encode(
        place.model, place.arrays, place.limits, mixture, progress
    )
    heap.trim()  # holes that one phase leaves in the heap would add to the peak of the next
    return features


def _prompted(
    place: Workplace,
    recording: Recording,
    request: Request,
    tokens: list[int],
    memory: Tensor,
    anchors: Tensor,
    points: ResumePoints,
) -> Generator[Step, None, Separated]:
    velocity = WindowVelocity(place.model, recording.features, anchors, recording.windows, memory)
    candidates = Candidates(
        model=place.model,
        arrays=place.arrays,
        limits=place.limits,
        cohort=place.cohort,
        recording=recording,
        request=request,
        velocity=velocity,
        make_ranker=RANKERS[request.ranking],
        points=points,
    )
    drawn: Drawn = yield from candidates.run()
    return Separated(
        mixture=recording.mixture,
        signals=drawn.signals,
        window_count=len(recording.windows.starts),
        token_count=len(tokens),
        judged=drawn.judged,
        chosen=drawn.chosen,
        resumed_steps=drawn.resumed_steps,
    )
