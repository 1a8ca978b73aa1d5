"""config.json and checkpoint.pt: what is read from them, and how damage is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from coscheduler.engines.separation import checkpoint, config, model
from coscheduler.engines.separation.checkpoint import open_checkpoint
from coscheduler.engines.separation.layout import plan_segments
from coscheduler.engines.separation.model import ModelFolder
from coscheduler.errors import EngineFault


def edited(models: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the config with dotted fields changed (`transformer__dim=7`)."""
    document = json.loads((models / "sam" / "config.json").read_text())
    for path, value in changes.items():
        at = document
        *parents, last = path.split("__")
        for name in parents:
            at = at[name]
        at[last] = value
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def test_rates_follow_the_config(models: Path, tmp_path: Path) -> None:
    rates = {"audio_codec__encoder_rates": [3, 5], "audio_codec__decoder_rates": [5, 3]}
    read = config.read(edited(models, tmp_path, audio_codec__sample_rate=16_000, **rates))
    assert read.audio_codec.hop == 15
    assert read.frame_rate_hz == 16_000 / 15
    assert [read.frame_count(n) for n in (1, 15, 16)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"transformer__dim": -1}, "transformer.dim"),
        ({"transformer__n_heads": 3}, "transformer"),
        ({"transformer__qk_norm": False}, "transformer.qk_norm"),
        ({"transformer__non_linearity": "gelu"}, "transformer.non_linearity"),
        ({"audio_codec__decoder_rates": [12, 10, 8, 4]}, "audio_codec"),
        ({"transformer__out_channels": 200}, "file"),
        ({"in_channels": 700}, "file"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(
    models: Path, tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    with pytest.raises(EngineFault) as caught:
        config.read(edited(models, tmp_path, **changes))
    assert caught.value.reason == "MODEL_CORRUPT"
    assert caught.value.numbers["key"] == key
    assert caught.value.numbers["file"] == str(tmp_path / "config.json")


def test_a_missing_config_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(EngineFault) as caught:
        config.read(tmp_path)
    assert caught.value.reason == "MODEL_MISSING"
    assert str(tmp_path / "config.json") in caught.value.message


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
def test_a_config_that_is_no_json_object_is_corrupt(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(EngineFault) as caught:
        config.read(tmp_path)
    assert caught.value.reason == "MODEL_CORRUPT"


def test_a_missing_checkpoint_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(EngineFault) as caught:
        open_checkpoint(tmp_path / "checkpoint.pt")
    assert caught.value.reason == "MODEL_MISSING"


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_checkpoint_is_corrupt(models: Path, tmp_path: Path, share: float) -> None:
    whole = (models / "sam" / "checkpoint.pt").read_bytes()
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(EngineFault) as caught:
        open_checkpoint(path)
    assert caught.value.reason == "MODEL_CORRUPT"
    assert caught.value.numbers["file"] == str(path)
    assert caught.value.numbers["size_bytes"] == str(path.stat().st_size)


def test_a_checkpoint_of_foreign_objects_is_corrupt(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "checkpoint.pt")
    with pytest.raises(EngineFault, match="no table of tensors"):
        open_checkpoint(tmp_path / "checkpoint.pt")


def replaced(source: ModelFolder, folder: Path, key: str, tensor: torch.Tensor | None) -> Path:
    tensors = torch.load(source.checkpoint_path, weights_only=True)
    tensors.pop(key)
    if tensor is not None:
        tensors[key] = tensor
    torch.save(tensors, folder / "checkpoint.pt")
    shutil.copy(source.folder / "config.json", folder)
    return folder


@pytest.mark.parametrize(
    ("key", "tensor", "expected", "found"),
    [
        ("transformer.layers.1.attention.wq.weight", None, "128x128", "missing"),
        ("transformer.layers.2.feed_forward.w3.weight", torch.zeros(3, 128), "384x128", "3x128"),
        ("audio_codec.encoder.block.0.weight_v", torch.zeros(8, 7), "8x1x?", "8x7"),
        ("embed_anchors.gate", torch.zeros(()), "1", "scalar"),
        ("proj.bias", torch.zeros(128, dtype=torch.int64), "128", "128"),
        ("audio_codec.decoder.wm_model.encoder_block.post.2.bias", torch.zeros(9), "8", "9"),
    ],
)
def test_a_wrong_tensor_is_named_with_both_shapes(
    source: ModelFolder,
    tmp_path: Path,
    key: str,
    tensor: torch.Tensor | None,
    expected: str,
    found: str,
) -> None:
    folder = model.open_folder(replaced(source, tmp_path, key, tensor))
    with pytest.raises(EngineFault) as caught:
        folder.segments("float32")
    assert caught.value.reason == "MODEL_CORRUPT"
    numbers = caught.value.numbers
    assert numbers["key"].endswith(key)
    assert (numbers["expected"], numbers["found"]) == (expected, found)


def test_the_vision_model_is_not_in_any_segment(source: ModelFolder) -> None:
    opened = open_checkpoint(source.checkpoint_path)
    assert "vision_encoder.model.visual.conv1.weight" in opened
    names = [
        tensor.name
        for segment in plan_segments(opened, source.config, "float32")
        for tensor in segment.tensors
    ]
    assert not any("vision" in name for name in names)


def test_only_the_matrices_of_the_transformer_are_cast(source: ModelFolder) -> None:
    full = {s.name: s for s in source.segments("float32")}
    half = {s.name: s for s in source.segments("bfloat16")}
    assert half["decoder"] == full["decoder"].__class__(
        "decoder", half["decoder"].offset, full["decoder"].bytes, full["decoder"].tensors
    )
    cast = {t.name for t in half["layer.0"].tensors if t.dtype == "bfloat16"}
    assert cast == {
        "self.qkv.weight", "self.out.weight", "cross.q.weight", "cross.kv.weight",
        "cross.out.weight", "ffn.gate.weight", "ffn.out.weight",
    }  # fmt: skip


def test_the_fingerprint_changes_with_the_content(source: ModelFolder, tmp_path: Path) -> None:
    copy = tmp_path / "checkpoint.pt"
    shutil.copy2(source.checkpoint_path, copy)
    assert checkpoint.fingerprint(copy) == checkpoint.fingerprint(source.checkpoint_path)
    with copy.open("r+b") as file:
        file.seek(4096)
        file.write(b"x")
    assert checkpoint.fingerprint(copy) != checkpoint.fingerprint(source.checkpoint_path)
