"""The transformer over one window of a recording, layer by layer."""

from collections.abc import Generator

from torch import Tensor

from coscheduler.engines.separation import sampler, transformer
from coscheduler.engines.separation.model import LoadedModel
from coscheduler.engines.separation.sampler import Windows
from coscheduler.engines.separation.transformer import Condition


class WindowVelocity:
    """What the ODE asks for (`sampler.Velocity`), under one prompt.

    `features` float32 [frames, codebook_dim] and `anchors` int64 [frames] (the anchor id of every
    frame) span the recording and lie on the host; `memory` [1, L, D] is the text on the device.
    """

    def __init__(
        self,
        model: LoadedModel,
        features: Tensor,
        anchors: Tensor,
        windows: Windows,
        memory: Tensor,
    ) -> None:
        self._model, self._windows, self._memory = model, windows, memory
        self._features, self._anchors = features, anchors
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
            frames, device = self._windows.slice(window), self._model.device
            features = self._features[frames].to(device)[None]
            anchors = self._anchors[frames].to(device)[None]
            fixed = transformer.fixed_input(self._model.weights("core"), features, anchors)
            self._condition = (window, Condition(fixed, self._memory, None, None, self._rotary))
        return self._condition[1]
