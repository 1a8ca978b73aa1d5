"""The tiny model: official layout, the same bytes every time, sound that is not absurd."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from coscheduler import audio
from coscheduler.demo import tiny_sam_audio
from coscheduler.engines.base import Task
from coscheduler.engines.separation.engine import SeparationEngine
from tests.engines.separation.conftest import RATE, finish, noise

OFFICIAL_GROUPS = {
    "audio_codec.encoder", "audio_codec.quantizer", "audio_codec.decoder", "transformer.layers",
    "transformer.norm", "transformer.output", "transformer.x_embedder", "transformer.y_embedder",
    "transformer.t_embedder", "transformer.t_block", "transformer.final_layer_scale_shift_table",
    "proj.weight", "proj.bias", "memory_proj.weight", "memory_proj.bias", "align_masked_video.conv",
    "align_masked_video.layer_norm", "align_masked_video.gate", "embed_anchors.embed",
    "embed_anchors.proj", "embed_anchors.gate", "vision_encoder.model",
}  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "prepared" not in path.parts
    }


def test_the_same_seed_gives_the_same_bytes(models: Path, tmp_path: Path) -> None:
    tiny_sam_audio.write(tmp_path / "sam", tmp_path / "t5")
    assert digests(tmp_path) == digests(models)
    tiny_sam_audio.write(tmp_path / "sam", tmp_path / "t5", seed=1)
    assert digests(tmp_path)["sam/checkpoint.pt"] != digests(models)["sam/checkpoint.pt"]


def test_every_official_group_of_keys_is_there(models: Path) -> None:
    tensors = torch.load(models / "sam" / "checkpoint.pt", weights_only=True)
    assert {".".join(name.split(".")[:2]) for name in tensors} == OFFICIAL_GROUPS
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_what_it_makes_of_a_recording_is_neither_silent_nor_clipped(
    engine: SeparationEngine, task: Callable[..., Task]
) -> None:
    made = task(noise(2.0))
    result, _ = finish(engine, made)
    target = audio.read_mono(made.output_dir / "target.wav", RATE)
    assert 1e-3 < float(np.sqrt(np.mean(np.square(target)))) < 0.5
    assert result.numbers["clipped_count"] == 0
