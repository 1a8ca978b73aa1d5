"""The text encoder: transformers' own result, limits, and damaged folders."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

from coscheduler.engines.separation import sizes, text
from coscheduler.engines.separation.text import TextEncoder, open_text_encoder, tokenize
from coscheduler.errors import EngineFault, InvalidInput

CPU = torch.device("cpu")


@pytest.fixture
def copied(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "t5", tmp_path / "t5"))


def test_it_computes_what_transformers_computes(models: Path) -> None:
    source = open_text_encoder(models / "t5", 64)
    ids = tokenize(source, "a dog barking in the rain", 512)
    with torch.inference_mode():
        found = TextEncoder(source, CPU).encode(ids)
        reference = T5EncoderModel.from_pretrained(models / "t5").eval()
        wanted = reference(input_ids=torch.tensor([ids])).last_hidden_state
    assert found.shape == (1, len(ids), 64)
    torch.testing.assert_close(found, wanted)


def test_a_gated_one_too(copied: Path) -> None:
    """As T5 1.1 has it, over more tokens than there are buckets of distances."""
    config = json.loads((copied / text.CONFIG).read_text())
    config |= {"feed_forward_proj": "gated-gelu", "relative_attention_max_distance": 20}
    (copied / text.CONFIG).write_text(json.dumps(config))
    torch.manual_seed(0)
    reference = T5EncoderModel(T5Config.from_dict(config)).train(False)
    tensors = {k: v.clone() for k, v in reference.state_dict().items() if "embed_tokens" not in k}
    save_file(tensors, copied / text.WEIGHTS)
    ids = torch.randint(2, config["vocab_size"], (1, 90))
    with torch.inference_mode():
        found = TextEncoder(open_text_encoder(copied, 64), CPU).encode(ids[0].tolist())
        wanted = reference(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_another_activation_is_refused(copied: Path) -> None:
    config = json.loads((copied / text.CONFIG).read_text())
    (copied / text.CONFIG).write_text(json.dumps({**config, "feed_forward_proj": "tanh"}))
    with pytest.raises(EngineFault) as caught:
        open_text_encoder(copied, 64)
    assert caught.value.numbers["key"] == "feed_forward_proj"


def test_a_layer_at_a_time_is_what_it_takes(models: Path) -> None:
    source = open_text_encoder(models / "t5", 64)
    whole = sum(4 * math.prod(shape) for shape in sizes.text_shapes(source.config).values())
    assert source.segment.bytes < 0.6 * whole


def test_the_end_token_closes_every_prompt(models: Path) -> None:
    source = open_text_encoder(models / "t5", 64)
    assert tokenize(source, "dog", 512)[-1] == 1


@pytest.mark.parametrize("prompt", ["", "  ", "\n"])
def test_a_prompt_without_text_is_refused(models: Path, prompt: str) -> None:
    source = open_text_encoder(models / "t5", 64)
    with pytest.raises(InvalidInput) as caught:
        tokenize(source, prompt, 512)
    assert caught.value.reason == "PROMPT_EMPTY"


def test_512_tokens_fit_and_513_do_not(models: Path) -> None:
    source = open_text_encoder(models / "t5", 64)
    prompt = "dog " * 510 + "dog"
    assert len(tokenize(source, prompt, 512)) == 512
    with pytest.raises(InvalidInput) as caught:
        tokenize(source, prompt + " dog", 512)
    assert caught.value.reason == "PROMPT_TOO_LONG"
    assert caught.value.numbers == {"token_count": "513", "token_count_max": "512"}


@pytest.mark.parametrize("name", [text.CONFIG, text.WEIGHTS, text.TOKENIZER])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(EngineFault) as caught:
        open_text_encoder(copied, 64)
    assert caught.value.reason == "MODEL_MISSING"
    assert caught.value.numbers["file"] == str(copied / name)


def test_another_width_than_the_model_needs_is_corrupt(models: Path) -> None:
    with pytest.raises(EngineFault) as caught:
        open_text_encoder(models / "t5", 768)
    assert caught.value.numbers["expected"] == "768"
    assert caught.value.numbers["found"] == "64"


@pytest.mark.parametrize(("name", "content"), [(text.CONFIG, "{"), (text.CONFIG, "{}")])
def test_a_config_of_something_else_is_corrupt(copied: Path, name: str, content: str) -> None:
    (copied / name).write_text(content)
    with pytest.raises(EngineFault) as caught:
        open_text_encoder(copied, 64)
    assert caught.value.reason == "MODEL_CORRUPT"


def test_truncated_weights_are_corrupt(copied: Path) -> None:
    whole = (copied / text.WEIGHTS).read_bytes()
    (copied / text.WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EngineFault) as caught:
        open_text_encoder(copied, 64)
    assert caught.value.reason == "MODEL_CORRUPT"


def test_a_wrong_tensor_is_named_with_both_shapes(copied: Path) -> None:
    tensors = load_file(copied / text.WEIGHTS)
    key = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    tensors[key] = tensors[key].T.contiguous()
    save_file(tensors, copied / text.WEIGHTS)
    with pytest.raises(EngineFault) as caught:
        open_text_encoder(copied, 64)
    assert caught.value.numbers["key"] == key
    assert caught.value.numbers["expected"] == "(64, 128)"
    assert caught.value.numbers["found"] == "(128, 64)"


def test_a_damaged_tokenizer_is_corrupt(copied: Path) -> None:
    (copied / text.TOKENIZER).write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(EngineFault) as caught:
        tokenize(open_text_encoder(copied, 64), "dog", 512)
    assert caught.value.reason == "MODEL_CORRUPT"
