"""Sizes of models as a config may state them, for plans made where the files are not.

The fields are those of the models' own files, under their own names: config.json of SAM-Audio, T5,
Whisper and wav2vec2, the metadata of a GGUF. `coscheduler plan` reads the files where they are
there; a daemon never reads these sections.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Quantization = Literal["F16", "Q8_0", "Q6_K", "Q4_K_M"]


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TransformerShape(_Shape):
    """`transformer` in SAM-Audio's config.json."""

    dim: Positive
    n_heads: Positive
    n_layers: Positive


class CodecShape(_Shape):
    """`audio_codec` in SAM-Audio's config.json; the defaults are those of all published models."""

    encoder_dim: Positive = 64
    encoder_rates: tuple[Positive, ...] = (2, 8, 10, 12)
    latent_dim: Positive = 1024
    decoder_dim: Positive = 1536
    decoder_rates: tuple[Positive, ...] = (12, 10, 8, 2)


class TextEncoderShape(_Shape):
    """config.json of the T5 encoder; the defaults are those of t5-base."""

    d_model: Positive = 768
    d_ff: Positive = 3072
    d_kv: Positive = 64
    num_heads: Positive = 12
    num_layers: Positive = 12
    vocab_size: Positive = 32_128


class SeparationShape(_Shape):
    """A SAM-Audio model and its text encoder."""

    transformer: TransformerShape
    audio_codec: CodecShape = CodecShape()
    text_encoder: TextEncoderShape = TextEncoderShape()


class AlignerShape(_Shape):
    """config.json of a wav2vec2 aligner, and how many parameters it has."""

    parameters: Positive
    conv_dim: tuple[Positive, ...] = (512,) * 7
    conv_stride: tuple[Positive, ...] = (5, 2, 2, 2, 2, 2, 2)
    feat_extract_norm: Literal["group", "layer"] = "group"


class TranscriptionShape(_Shape):
    """config.json of Whisper, an aligner, and the bytes of a diarizer's weights (0: none).

    Without `encoder_ffn_dim` and `decoder_ffn_dim`: four times `d_model`, as in all published ones.
    """

    d_model: Positive
    encoder_layers: Positive
    decoder_layers: Positive
    encoder_attention_heads: Positive
    encoder_ffn_dim: Positive | None = None
    decoder_ffn_dim: Positive | None = None
    vocab_size: Positive
    num_mel_bins: Positive = 80
    max_source_positions: Positive = 1500
    max_target_positions: Positive = 448
    aligner: AlignerShape | None = None
    diarizer_bytes: ByteSize = ByteSize(0)


class AnalysisShape(_Shape):
    """Metadata of a GGUF of the llama architecture. `attention_key_length` None: the width shared
    out among the heads. `vocabulary_size` is the number of tokens.
    """

    block_count: Positive
    embedding_length: Positive
    feed_forward_length: Positive
    attention_head_count: Positive
    attention_head_count_kv: Positive
    attention_key_length: Positive | None = None
    context_length: Positive
    vocabulary_size: Positive
    quantization: Quantization = "Q4_K_M"
    tied_embeddings: bool = False
