"""The transformer over windows of a recording, layer by layer.

A layer runs over all windows of a cohort before the next layer does, so that each layer is needed
once for the cohort. Every window is computed by itself: batching them would change the bits.
"""

from collections.abc import Generator, Sequence

from torch import Tensor

from coscheduler.engines.separation import sampler, transformer
from coscheduler.engines.separation.model import LoadedModel
from coscheduler.engines.separation.sampler import Windows
from coscheduler.engines.separation.transformer import Condition, Moment


class WindowVelocity:
    """What the ODE asks for (`sampler.Velocity`), under one prompt.

    `features` float32 [frames, codebook_dim] and `anchors` int64 [frames] (the anchor id of every
    frame) span the recording and lie on the host; `memory` [1, L, D] is the text on the device. The
    device holds one residual stream for each window of the cohort, and what one layer needs.
    """

    def __init__(
        self,
        model: LoadedModel,
        features: Tensor,
        anchors: Tensor,
        windows: Windows,
        memory: Tensor,
    ) -> None:
        self._model, self._windows = model, windows
        self._features, self._anchors = features, anchors
        net, core = model.config.transformer, model.weights("core")
        at = sampler.evaluation_times().to(model.device)
        self._times = transformer.times(core, net, at)
        rotary = transformer.rotary_table(net, windows.frames, model.device)
        self._condition = Condition(memory, None, None, rotary)
        self._only_fixed: Tensor | None = None
        self._moment: tuple[int, Moment] | None = None

    def __call__(
        self, states: Sequence[Tensor], windows: range, number: int
    ) -> Generator[None, None, list[Tensor]]:
        """[1, frames, channels] each, on the host -> velocities of the same shape on the host."""
        net, core = self._model.config.transformer, self._model.weights("core")
        now = self._now(number)
        streams = []
        for state, window in zip(states, windows, strict=True):
            noisy = state.to(self._model.device)
            streams.append(transformer.embed(core, noisy, self._fixed(window)))
            yield
        for weights in self._model.layers():
            for place, h in enumerate(streams):
                streams[place] = transformer.layer(weights, net, h, now, self._condition)
                yield
        for place, h in enumerate(streams):
            streams[place] = transformer.head(core, net, h, now).to(states[place].device)
        return streams

    def _now(self, number: int) -> Moment:
        """The evaluation's time and text, the same for all windows."""
        if self._moment is None or self._moment[0] != number:
            core = self._model.weights("core")
            now = transformer.moment(core, self._condition, self._times, number)
            self._moment = (number, now)
        return self._moment[1]

    def _fixed(self, window: int) -> Tensor:
        """What features and anchors add to the window's input.

        That of the only window is kept. Of several none is: making it again costs one thin matrix
        product, keeping all would grow with the recording.
        """
        if self._only_fixed is not None:
            return self._only_fixed
        frames, device = self._windows.slice(window), self._model.device
        features = self._features[frames].to(device)[None]
        anchors = self._anchors[frames].to(device)[None]
        fixed = transformer.fixed_input(self._model.weights("core"), features, anchors)
        if len(self._windows.starts) == 1:
            self._only_fixed = fixed
        return fixed
