"""What the files of Whisper and an aligner would say of their sizes, from their config.json alone.

Counted are the tensors of CTranslate2's layout: matrices of linear layers and embeddings, which the
integer types quantise row by row, and everything else.
"""

from coscheduler.engines.transcription.checkpoint import AlignerModel, WhisperModel
from coscheduler.shapes import AlignerShape, TranscriptionShape

FLOAT32_BYTES = 4


def whisper(shape: TranscriptionShape, name: str) -> WhisperModel:
    """The model that the shape describes, stored as float16."""
    dim, positions = shape.d_model, shape.max_source_positions
    encoder_hidden = shape.encoder_ffn_dim or 4 * dim
    decoder_hidden = shape.decoder_ffn_dim or 4 * dim
    encoder, decoder = shape.encoder_layers, shape.decoder_layers
    attention = 4 * dim * dim
    matrices = encoder * (attention + 2 * dim * encoder_hidden)
    matrices += decoder * (2 * attention + 2 * dim * decoder_hidden) + shape.vocab_size * dim
    rows = encoder * (5 * dim + encoder_hidden) + decoder * (9 * dim + decoder_hidden)
    # Norms (scale and shift) and biases; keys have none.
    others = encoder * (2 * 2 * dim + 4 * dim + dim + encoder_hidden)
    others += decoder * (3 * 2 * dim + 8 * dim + dim + decoder_hidden) + 2 * 2 * dim
    others += 3 * dim * (shape.num_mel_bins + dim) + 2 * dim
    others += dim * (positions + shape.max_target_positions)
    return WhisperModel(
        name=name,
        stored_bytes=2 * (matrices + others),
        matrix_count=matrices,
        matrix_row_count=rows + shape.vocab_size,
        other_count=others,
        hidden_dim=dim,
        head_count=shape.encoder_attention_heads,
        encoder_layer_count=encoder,
        decoder_layer_count=decoder,
        vocabulary_count=shape.vocab_size,
        mel_count=shape.num_mel_bins,
        audio_position_count=positions,
    )


def aligner(shape: AlignerShape, name: str) -> AlignerModel:
    """The aligner that the shape describes."""
    return AlignerModel(
        name=name,
        parameter_bytes=FLOAT32_BYTES * shape.parameters,
        conv_dims=shape.conv_dim,
        conv_strides=shape.conv_stride,
        has_layer_norms=shape.feat_extract_norm == "layer",
    )
