"""What is asked of a recording: a sound in words, where it is, how many tries, which residual."""

from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from coscheduler.engines.separation.anchors import Span, align
from coscheduler.engines.separation.config import ModelConfig
from coscheduler.errors import InvalidInput
from coscheduler.stages import SeparateParameters

SEEDS = 2**63  # a seed is a number below this; after the last one comes 0


@dataclass(frozen=True)
class Request:
    """One prompt over one recording. Candidate i is what `seed + i` alone would give.

    `redraws_max`: how many further seeds are tried as long as every target so far is empty.
    """

    prompt: str
    spans: tuple[Span, ...] = ()
    seed: int = 0
    candidates: int = 1
    ranking: str = "consistency"
    redraws_max: int = 0
    residual: Literal["generated", "mixture-minus-target"] = "generated"
    watermark: bool = True
    sample_rate_hz: int | None = None  # of the output; None: the model's

    def seed_of(self, candidate: int) -> int:
        """The seed of a candidate's noise."""
        return (self.seed + candidate) % SEEDS

    def fields(self) -> dict[str, object]:
        """All of it as plain values: two requests with the same ones are the same request."""
        return asdict(self)


def from_parameters(parameters: SeparateParameters) -> Request:
    """A stage's checked parameters, times in seconds as the model's positions have them."""
    return Request(
        prompt=parameters.prompt,
        spans=tuple(
            Span(span.sign, span.start_ms / 1000, span.end_ms / 1000) for span in parameters.spans
        ),
        seed=parameters.seed,
        candidates=parameters.candidates,
        ranking=parameters.ranking,
        redraws_max=parameters.redraws_max,
        residual=parameters.residual,
        watermark=parameters.watermark,
        sample_rate_hz=parameters.sample_rate_hz,
    )


def anchor_ids(spans: tuple[Span, ...], config: ModelConfig, sample_count: int) -> Tensor:
    """The anchor id of every frame of a recording, int64 [frames].

    Raises InvalidInput SPAN_OUTSIDE for a span that does not lie within the recording.
    """
    codec = config.audio_codec
    duration_ms = -(-sample_count * 1000 // codec.sample_rate)
    for span in spans:
        if span.start_s * 1000 >= duration_ms or round(span.end_s * 1000) > duration_ms:
            raise InvalidInput(
                "SPAN_OUTSIDE",
                f"the span {span.token}{span.start_s:g}-{span.end_s:g} s does not lie within the "
                f"recording, which is {duration_ms / 1000:g} s long",
                start_ms=round(span.start_s * 1000),
                end_ms=round(span.end_s * 1000),
                duration_ms=duration_ms,
            )
    aligned = align([config.frame_count(sample_count)], [spans], codec.sample_rate, codec.hop)
    return torch.tensor(aligned.frame_ids()[0], dtype=torch.int64)
