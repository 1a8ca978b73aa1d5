"""Write a tiny wav2vec2 aligner in the Hugging Face layout, deterministically and in seconds.

Random weights, with one arrangement: the blank is likely in every frame and the letters differ from
frame to frame, as in a trained CTC model, so that an alignment spreads over the whole recording.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

hf: Any = transformers  # its classes are untyped
SAMPLE_RATE_HZ = 16_000
VOCABULARY = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")
_BLANK_BIAS = 12.0
_LETTER_SCALE = 0.4


def write(folder: Path, seed: int = 0) -> None:
    """Fill `folder` (made if missing) with config.json, model.safetensors and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    processor().save_pretrained(folder)
    _model(seed).save_pretrained(folder)


def processor() -> Any:
    """The tokenizer of VOCABULARY and the feature extractor."""
    with tempfile.TemporaryDirectory() as scratch:
        vocabulary = Path(scratch) / "vocab.json"
        codes = {token: code for code, token in enumerate(VOCABULARY)}
        vocabulary.write_text(json.dumps(codes), encoding="utf-8")
        tokenizer = hf.Wav2Vec2CTCTokenizer(str(vocabulary))
    extractor = hf.Wav2Vec2FeatureExtractor(sampling_rate=SAMPLE_RATE_HZ, do_normalize=True)
    return hf.Wav2Vec2Processor(extractor, tokenizer)


def _model(seed: int) -> Any:
    config = hf.Wav2Vec2Config(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=(32,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = hf.Wav2Vec2ForCTC(config)
        torch.nn.init.normal_(model.lm_head.weight, std=_LETTER_SCALE)
        torch.nn.init.zeros_(model.lm_head.bias)
        model.lm_head.bias[0] = _BLANK_BIAS
    return model.eval()
