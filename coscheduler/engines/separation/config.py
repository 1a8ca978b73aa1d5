"""`config.json` of a SAM-Audio folder. Every rate and width of the model comes from here.

Fields that upstream's code has defaults for may be missing; what this implementation does not know
how to compute is refused by name instead of being computed wrongly.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from coscheduler.errors import EngineFault

Positive = Annotated[int, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class CodecConfig(_Part):
    """The DACVAE codec: samples at `sample_rate` Hz to `codebook_dim` channels and back."""

    encoder_dim: Positive
    encoder_rates: tuple[Positive, ...] = Field(min_length=1)
    latent_dim: Positive
    decoder_dim: Positive
    decoder_rates: tuple[Positive, ...] = Field(min_length=1)
    codebook_dim: Positive = 128
    sample_rate: Positive = 48_000

    @property
    def hop(self) -> int:
        """Samples per latent frame."""
        return math.prod(self.encoder_rates)

    @model_validator(mode="after")
    def _same_hop(self) -> "CodecConfig":
        if math.prod(self.decoder_rates) != self.hop:
            raise ValueError(
                f"encoder_rates multiply to {self.hop}, decoder_rates to "
                f"{math.prod(self.decoder_rates)}"
            )
        return self


class TransformerConfig(_Part):
    """The DiT. Only the published kind of it is supported; the Literals say what that means."""

    dim: Positive
    n_heads: Positive
    n_layers: Positive
    norm_eps: float = 1e-5
    max_positions: Positive = 10_000
    frequency_embedding_dim: Annotated[int, Field(gt=0, multiple_of=2)] = 256
    context_dim: Positive | None = None
    out_channels: Positive = 256
    qk_norm: Literal[True] = True
    use_rope: Literal[True] = True
    fc_bias: Literal[False] = False
    context_norm: Literal[False] = False
    non_linearity: Literal["swiglu"] = "swiglu"
    timestep_non_linearity: Literal["swiglu"] = "swiglu"
    context_non_linearity: Literal["swiglu"] = "swiglu"
    t_block_non_linearity: Literal["silu"] = "silu"

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.n_heads

    @property
    def rope_theta(self) -> float:
        """Base of the rotary frequencies; it grows with the longest input."""
        return float(max(10_000, 2 * self.max_positions))

    @model_validator(mode="after")
    def _heads_divide(self) -> "TransformerConfig":
        if self.dim % (2 * self.n_heads):
            raise ValueError(f"dim {self.dim} is no even multiple of n_heads {self.n_heads}")
        return self


class TextEncoderConfig(_Part):
    """The T5 encoder, which lies in a folder of its own."""

    dim: Positive = 768
    name: str = "t5-base"
    max_length: Positive = 512


class ModelConfig(_Part):
    """The whole file."""

    in_channels: Positive = 768
    audio_codec: CodecConfig
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    transformer: TransformerConfig
    num_anchors: Positive = 3
    anchor_embedding_dim: Positive = 128

    @property
    def latent_channels(self) -> int:
        """Channels of the ODE state: target, then residual."""
        return 2 * self.audio_codec.codebook_dim

    @property
    def frame_rate_hz(self) -> float:
        """Latent frames per second."""
        return self.audio_codec.sample_rate / self.audio_codec.hop

    def frame_count(self, sample_count: int) -> int:
        """Frames that cover `sample_count` samples, the last one padded."""
        return -(-sample_count // self.audio_codec.hop)

    @model_validator(mode="after")
    def _channels_agree(self) -> "ModelConfig":
        out = self.transformer.out_channels
        if out != self.latent_channels:
            raise ValueError(f"out_channels {out} is not twice codebook_dim")
        if self.in_channels != 3 * out:
            raise ValueError(f"in_channels {self.in_channels} is not three times {out}")
        return self


def read(folder: Path) -> ModelConfig:
    """Read `folder/config.json`. Raises EngineFault MODEL_MISSING or MODEL_CORRUPT with the key."""
    path = folder / "config.json"
    try:
        return ModelConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise EngineFault(
            "MODEL_MISSING", f"cannot read {path}: {error.strerror}", file=path
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise EngineFault(
            "MODEL_CORRUPT", f"{path}: {where}: {first['msg']}", file=path, key=where
        ) from None
    except ValueError as error:
        raise EngineFault("MODEL_CORRUPT", f"{path} is not JSON: {error}", file=path) from None
