"""The candidates of one prompt: noise to latents to signals, one after the other, the best kept.

Candidates follow each other instead of running side by side: the device holds one cohort of windows
whatever their number. As long as every target is empty, further seeds are drawn, up to the
request's limit.

An interrupted run goes on at its last saved step. Saved are the features (once), the latents of the
best finished candidate, and the state of the one in the making; the best one's signals are decoded
again, which gives the same bits.
"""

from collections.abc import Generator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from coscheduler.engines.separation import sampler
from coscheduler.engines.separation.codec import Decoding, Watermark, message_bits
from coscheduler.engines.separation.model import LoadedModel
from coscheduler.engines.separation.ranking import Judged, MakeRanker, judge
from coscheduler.engines.separation.recording import Recording
from coscheduler.engines.separation.request import Request
from coscheduler.engines.separation.resume import Point, ResumePoints
from coscheduler.engines.separation.sampler import Integration, Velocity
from coscheduler.engines.separation.scheme import STEPS, Limits
from coscheduler.engines.separation.steps import Progress, Step, Steps
from coscheduler.engines.streaming import heap
from coscheduler.engines.streaming.host_arrays import HostArrays

TRIM_TILES = 16  # so often the holes that tiles leave in the heap are given back


@dataclass(frozen=True)
class Drawn:
    """The signals [2, N] of the chosen candidate, and all that was judged, in order."""

    signals: Tensor
    judged: tuple[Judged, ...]
    chosen: Judged
    resumed_steps: int


@dataclass
class _Best:
    judged: Judged
    signals: Tensor  # [2, frames * hop]
    latents: Tensor | None  # [frames, channels]; kept only where points are
    is_saved: bool = False


class Candidates:
    """One prompt over one recording."""

    def __init__(
        self,
        *,
        model: LoadedModel,
        arrays: HostArrays,
        limits: Limits,
        cohort: int,
        recording: Recording,
        request: Request,
        velocity: Velocity,
        make_ranker: MakeRanker,
        points: ResumePoints,
    ) -> None:
        self._model, self._arrays, self._limits = model, arrays, limits
        self._recording, self._request = recording, request
        self._make_ranker, self._points = make_ranker, points
        self._progress = Progress(recording.windows, limits, request.candidates)
        shape = (recording.frames, model.config.latent_channels)
        self._state, middle, speed = (arrays.zeros(*shape) for _ in range(3))
        self._integration = Integration(
            self._state[None], middle[None], speed[None], recording.windows, velocity, cohort
        )
        self._judged: list[Judged] = []
        self._best: _Best | None = None
        self._first_step = self._resumed_steps = 0
        self._features_saved = False

    def run(self) -> Generator[Step, None, Drawn]:
        """Draw all. Raises EngineFault DISK_FULL."""
        yield from self._go_on()
        while self._is_another_wanted():
            yield from self._draw()
        best = self._best
        assert best is not None  # the first candidate is always wanted
        if self._request.watermark:
            yield from self._mark(best.signals, best.judged.seed)
        signals = best.signals[:, : len(self._recording.mixture)]
        return Drawn(signals, tuple(self._judged), best.judged, self._resumed_steps)

    def _is_another_wanted(self) -> bool:
        number = len(self._judged)
        if number < self._request.candidates:
            return True
        all_empty = all(judged.is_empty for judged in self._judged)
        return all_empty and number < self._request.candidates + self._request.redraws_max

    def _draw(self) -> Steps:
        number = len(self._judged)
        self._progress.begin(number)
        yield from self._sample(number)
        heap.trim()  # holes that one phase leaves in the heap would add to the peak of the next
        signals = yield from self._decode(self._state)
        heap.trim()
        ranker = self._make_ranker(self._model.config, self._request.prompt)
        mixture = self._recording.mixture
        heard = signals[:, : len(mixture)]  # without the watermark, which is no part of the sound
        judging = judge(ranker, self._request.seed_of(number), mixture, heard)
        while True:
            try:
                next(judging)
            except StopIteration as stop:
                judged: Judged = stop.value
                break
            yield self._progress.waiting("rank", "judging")
        self._judged.append(judged)
        if self._best is None or judged.beats(self._best.judged):
            self._best = _Best(judged, signals, self._latents_to_keep())

    def _latents_to_keep(self) -> Tensor | None:
        """A copy of the state for points to come; None where nothing comes after it."""
        if not self._points.is_kept or not self._is_another_wanted():
            return None
        return self._arrays.zeros(*self._state.shape).copy_(self._state)

    def _sample(self, number: int) -> Steps:
        """Noise, or the state that was saved, to latents, in the state."""
        if self._first_step == 0:
            sampler.draw_noise(self._request.seed_of(number), self._state)
        for index in range(self._first_step, STEPS):
            for windows in self._integration.step(index):
                yield self._progress.sampled(index, windows)
            if self._points.is_due():
                yield from self._save(index + 1)
        self._first_step = 0

    def _decode(self, latents: Tensor) -> Generator[Step, None, Tensor]:
        """Latents [frames, channels] -> signals [2, frames * hop]."""
        codec, tile = self._model.config.audio_codec, self._limits.decode_tile_frames
        signals = self._arrays.zeros(2, self._recording.frames * codec.hop)
        decoding = Decoding(self._model.weights("decoder"), codec)
        frames, ready = self._recording.frames, 0
        for number, start in enumerate(range(0, frames, tile)):
            piece = latents[start : start + tile].to(self._model.device)
            rows = torch.stack(piece.chunk(2, dim=1)).transpose(1, 2)
            samples = decoding.push(rows, start + tile >= frames)[:, 0].cpu()
            signals[:, ready : ready + samples.shape[1]] = samples
            ready += samples.shape[1]
            if number % TRIM_TILES == 0:
                heap.trim()
            yield self._progress.decoded(number + 1)
        return signals

    def _mark(self, signals: Tensor, seed: int) -> Steps:
        """Add the watermark in place: what comes out of it never overtakes what goes in. Its
        weights are in memory for so long only.
        """
        codec, device = self._model.config.audio_codec, self._model.device
        weights = self._model.watermark()
        bits = message_bits(weights, seed, rows=len(signals))
        mark = Watermark(weights, codec, bits.to(device))
        count, tile = signals.shape[1], self._limits.decode_tile_frames * codec.hop
        ready = 0
        for number, start in enumerate(range(0, count, tile)):
            piece = signals[:, None, start : start + tile].to(device)
            samples = mark.push(piece, start + tile >= count)[:, 0].cpu()
            signals[:, ready : ready + samples.shape[1]] = samples
            ready += samples.shape[1]
            if number % TRIM_TILES == 0:
                heap.trim()
            yield self._progress.waiting("mark", "adding the watermark")
        heap.trim()

    def _save(self, step: int) -> Steps:
        """A point after `step` steps of the candidate in the making.

        The state comes last: whoever finds it finds what it refers to.
        """
        saving: list[tuple[str, dict[str, Any], dict[str, Tensor]]] = []
        if not self._features_saved:
            saving.append(("features", {}, {"features": self._recording.features}))
            self._features_saved = True
        best = self._best
        if best is not None and best.latents is not None and not best.is_saved:
            saving.append(("best", {"seed": best.judged.seed}, {"latents": best.latents}))
            best.is_saved = True
        facts = {
            "step": step,
            "judged": [asdict(judged) for judged in self._judged],
            "best_seed": None if best is None else best.judged.seed,
        }
        saving.append(("state", facts, {"state": self._state}))
        for name, known, arrays in saving:
            for _ in self._points.save(name, known, arrays):
                yield self._progress.sampled(step - 1, 2 * len(self._recording.windows.starts))
        self._points.mark()

    def _go_on(self) -> Steps:
        """Take up what an earlier attempt left, if it is whole."""
        state = yield from self._loaded("state")
        if state is None:
            return
        seed = state.facts["best_seed"]
        best = None if seed is None else (yield from self._loaded("best"))
        if seed is not None and (best is None or best.facts["seed"] != seed):
            return
        judged = [Judged(**known) for known in state.facts["judged"]]
        if best is not None:
            latents = best.arrays["latents"]
            signals = yield from self._decode(latents)
            chosen = next(one for one in judged if one.seed == seed)
            self._best = _Best(chosen, signals, latents, is_saved=True)
        self._judged = judged
        self._state.copy_(state.arrays["state"])
        self._first_step = int(state.facts["step"])
        self._resumed_steps = len(judged) * STEPS + self._first_step

    def _loaded(self, name: str) -> Generator[Step, None, Point | None]:
        loading = self._points.load(name, self._arrays)
        while True:
            try:
                next(loading)
            except StopIteration as stop:
                point: Point | None = stop.value
                return point
            yield self._progress.encoded(0)
