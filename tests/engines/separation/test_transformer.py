"""The transformer against the plain one, its masks, and its precisions."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from coscheduler.engines.separation import model, transformer
from coscheduler.engines.separation.checkpoint import open_checkpoint
from coscheduler.engines.separation.model import LoadedModel, ModelFolder
from coscheduler.engines.separation.transformer import Condition
from tests.engines.separation import naive

ROWS, FRAMES, TOKENS = 2, 17, 5


@pytest.fixture(scope="module")
def inputs(source: ModelFolder) -> Mapping[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(ROWS, FRAMES, dtype=torch.bool)
    mask[1, 12:] = False
    text_mask = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    text_mask[0, 3:] = False
    width = source.config.text_encoder.dim
    return {
        "noisy": torch.randn(ROWS, FRAMES, 256, generator=generator),
        "features": torch.randn(ROWS, FRAMES, 128, generator=generator),
        "anchor_ids": torch.randint(0, 4, (ROWS, FRAMES), generator=generator),
        "text": torch.randn(ROWS, TOKENS, width, generator=generator),
        "text_mask": text_mask,
        "frame_mask": mask,
        "time": torch.tensor([0.25, 0.71875]),
    }


def fast(loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    net, core = loaded.config.transformer, loaded.weights("core")
    with torch.inference_mode():
        condition = Condition(
            transformer.text_memory(core, inputs["text"]),
            inputs["text_mask"],
            inputs["frame_mask"],
            transformer.rotary_table(net, FRAMES, loaded.device),
        )
        at = transformer.times(core, net, inputs["time"])
        now = transformer.moment(core, condition, at, torch.arange(ROWS))
        fixed = transformer.fixed_input(core, inputs["features"], inputs["anchor_ids"])
        h = transformer.embed(core, inputs["noisy"], fixed)
        for index in range(net.n_layers):
            h = transformer.layer(loaded.layer(index), net, h, now, condition)
        return transformer.head(core, net, h, now)


def plain(source: ModelFolder, inputs: Mapping[str, Tensor]) -> Tensor:
    tensors = torch.load(source.checkpoint_path, mmap=True, weights_only=True)
    with torch.inference_mode():
        return naive.velocity(tensors, source.config, **inputs)


def test_it_computes_what_the_plain_one_computes(
    loaded: LoadedModel, source: ModelFolder, inputs: Mapping[str, Tensor]
) -> None:
    wanted = plain(source, inputs)
    assert wanted.abs().mean() > 0.1
    torch.testing.assert_close(fast(loaded, inputs), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["noisy", "features", "anchor_ids", "text", "time"])
def test_every_input_matters(loaded: LoadedModel, inputs: Mapping[str, Tensor], name: str) -> None:
    changed = dict(inputs)
    changed[name] = inputs[name].roll(1, dims=0)
    assert not torch.allclose(fast(loaded, changed), fast(loaded, inputs), atol=1e-3)


def test_masked_text_is_not_heard(loaded: LoadedModel, inputs: Mapping[str, Tensor]) -> None:
    changed = dict(inputs)
    changed["text"] = inputs["text"].clone()
    changed["text"][0, 3:] = 100.0
    torch.testing.assert_close(fast(loaded, changed), fast(loaded, inputs))


def test_bfloat16_stays_close_to_float32(
    models: Path, source: ModelFolder, loaded: LoadedModel, inputs: Mapping[str, Tensor]
) -> None:
    prepared = source.prepare("bfloat16", models / "prepared", lambda done, total: None)
    half = model.load(source.config, prepared, loaded.device, lambda done, total: None)
    exact, rounded = fast(loaded, inputs), fast(half, inputs)
    assert rounded.dtype == torch.float32
    error = (rounded - exact).square().mean() / exact.square().mean()
    assert 1e-9 < error < 1e-3  # better than 30 dB, and not secretly float32
    assert half.bytes < loaded.bytes


def test_loading_reports_progress_to_the_end(models: Path, source: ModelFolder) -> None:
    seen: list[tuple[int, int]] = []
    prepared = source.prepare("float32", models / "prepared", lambda done, total: None)
    loaded = model.load(
        source.config, prepared, torch.device("cpu"), lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (loaded.bytes, loaded.bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    with pytest.raises(KeyError):
        loaded.weights("watermark")  # only on request
    assert "proj.weight" in open_checkpoint(source.checkpoint_path)
