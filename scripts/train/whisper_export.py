"""A trained recogniser as files: a Hugging Face folder, and from it a CTranslate2 folder."""

import json
import tempfile
from pathlib import Path
from typing import Any

import ctranslate2.converters
import tokenizers
import torch
import transformers

from train import whisper_tokens
from train.features import HOP, MELS, N_FFT
from train.whisper_model import POSITIONS, TEXT_POSITIONS, Shape, Whisper

hf: Any = transformers  # its classes are untyped
WINDOW_SECONDS = 30


def write(net: Whisper, folder: Path, hugging_face: Path | None = None) -> None:
    """The CTranslate2 model in float16, which loads as float32 and int8 too, into `folder`; the
    files that it is made from into `hugging_face`, where that is given.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source = hugging_face or Path(scratch)
        write_hugging_face(net, source)
        converter = ctranslate2.converters.TransformersConverter(
            str(source), copy_files=["tokenizer.json", "preprocessor_config.json"]
        )
        converter.convert(str(folder), quantization="float16", force=True)


def write_hugging_face(net: Whisper, folder: Path) -> None:
    """Fill `folder` with config, weights in float32, tokenizer and feature extractor."""
    folder.mkdir(parents=True, exist_ok=True)
    made = hf.WhisperForConditionalGeneration(_config(net.shape))
    made.generation_config = _generation(net.shape)
    weights = {f"model.{name}": value for name, value in net.state_dict().items()}
    weights = {name: value for name, value in weights.items() if ".frames." not in name}
    weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"]
    made.load_state_dict(weights)
    made.save_pretrained(folder)
    _write_tokenizer(folder)
    features = {"feature_size": MELS, "sampling_rate": 16_000, "hop_length": HOP, "n_fft": N_FFT,
                "chunk_length": WINDOW_SECONDS, "padding_value": 0.0,
                "feature_extractor_type": "WhisperFeatureExtractor",
                "processor_class": "WhisperProcessor"}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(features), encoding="utf-8")


def load(checkpoint: Path, net: Whisper) -> Whisper:
    """`net` with the weights of a checkpoint of `training.fit`."""
    kept = torch.load(checkpoint, weights_only=True, map_location="cpu")
    net.load_state_dict(kept["model"])
    return net.eval()


def _write_tokenizer(folder: Path) -> None:
    special = whisper_tokens.special_tokens()
    timestamps = special.index("<|0.00|>")
    made = hf.WhisperTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(whisper_tokens.tokenizer().to_str()),
        bos_token=whisper_tokens.END,
        eos_token=whisper_tokens.END,
        unk_token=whisper_tokens.END,
        pad_token=whisper_tokens.END,
        additional_special_tokens=special[1:timestamps],
    )
    made.save_pretrained(folder)


def _config(shape: Shape) -> Any:
    start, end = (whisper_tokens.special(t) for t in (whisper_tokens.START, whisper_tokens.END))
    return hf.WhisperConfig(
        vocab_size=shape.vocabulary,
        num_mel_bins=MELS,
        d_model=shape.hidden,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=shape.feed_forward,
        decoder_ffn_dim=shape.feed_forward,
        max_source_positions=POSITIONS,
        max_target_positions=TEXT_POSITIONS,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )


def _generation(shape: Shape) -> Any:
    """Which tokens mean what; the last decoder layer was taught to look where it listens."""
    start, end = (whisper_tokens.special(t) for t in (whisper_tokens.START, whisper_tokens.END))
    heads = [[shape.decoder_layers - 1, head] for head in range(shape.heads)]
    return hf.GenerationConfig(
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        is_multilingual=True,
        max_length=TEXT_POSITIONS,
        lang_to_id={
            f"<|{c}|>": whisper_tokens.special(f"<|{c}|>") for c in whisper_tokens.LANGUAGE_CODES
        },
        task_to_id={
            task: whisper_tokens.special(f"<|{task}|>") for task in ("transcribe", "translate")
        },
        no_timestamps_token_id=whisper_tokens.special("<|notimestamps|>"),
        alignment_heads=heads,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
