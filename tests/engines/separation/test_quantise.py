"""int8 weights: levels, scales, products, and what they cost in a whole velocity."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coscheduler import config
from coscheduler.engines.separation import model, parity_precision, parity_report, quantise
from coscheduler.engines.separation.model import LoadedModel, ModelFolder
from coscheduler.errors import EngineFault, InvalidInput
from tests.engines.separation.test_parity import VECTORS

CPU = torch.device("cpu")


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.floats(1e-20, 1e20), st.integers(1, 9))
def test_rounding_is_off_by_half_a_level_at_most(seed: int, size: float, rows: int) -> None:
    matrix = size * torch.randn(rows, 33, generator=torch.Generator().manual_seed(seed))
    scale, levels = quantise.scales(matrix), quantise.levels(matrix)
    assert bool((levels.abs() <= 127).all())
    assert torch.equal(levels, levels.round())
    error = (levels * scale[:, None] - matrix).abs()
    assert bool((error <= 0.501 * scale[:, None]).all())
    assert bool((levels.abs().amax(dim=-1) == 127).all())


def test_a_row_of_zeros_stays_zero() -> None:
    assert torch.equal(quantise.levels(torch.zeros(2, 4)), torch.zeros(2, 4))


def test_a_product_is_that_of_the_rounded_matrix() -> None:
    matrix, x = torch.randn(40, 64), torch.randn(2, 5, 64).bfloat16().float()
    levels, scale = quantise.levels(matrix).to(torch.int8), quantise.scales(matrix)
    found = quantise.product(x, levels, scale)
    wanted = x @ (levels.float() * scale[:, None]).T
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, wanted, rtol=2**-7, atol=0.02)


def test_only_the_matrices_of_the_layers_are_int8(models: Path, source: ModelFolder) -> None:
    segments = {s.name: s for s in source.segments("int8")}
    layer = {tensor.name: tensor for tensor in segments["layer.0"].tensors}
    matrices = {name for name, tensor in layer.items() if tensor.dtype == "int8"}
    assert matrices == {
        "self.qkv.weight", "self.out.weight", "cross.q.weight", "cross.kv.weight",
        "cross.out.weight", "ffn.gate.weight", "ffn.out.weight",
    }  # fmt: skip
    for name in matrices:
        scale = layer[name.replace(".weight", ".scale")]
        assert (scale.dtype, scale.shape) == ("float32", layer[name].shape[:1])
    rest = {t.dtype for name in ("core", "encoder", "decoder") for t in segments[name].tensors}
    assert rest == {"float32", "bfloat16"}


def test_a_layer_is_the_float32_one_within_a_level(
    models: Path, source: ModelFolder, loaded: LoadedModel
) -> None:
    prepared = source.prepare("int8", models / "prepared", lambda done, total: None)
    small = model.load(source.config, prepared, CPU, lambda done, total: None)
    for name in ("self.qkv", "ffn.gate", "ffn.out"):
        exact = loaded.layer(1)[f"{name}.weight"]
        scale = small.layer(1)[f"{name}.scale"]
        found = small.layer(1)[f"{name}.weight"].float() * scale[:, None]
        assert bool(((found - exact).abs() <= 0.501 * scale[:, None]).all())


@pytest.mark.skipif(not VECTORS.is_dir(), reason=f"no reference vectors in {VECTORS}")
def test_the_loss_of_every_precision_is_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    (first, *_) = sorted(path.parent for path in VECTORS.rglob("checkpoint.pt"))
    assert parity_report.main([str(first), "--precision", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    lowest = dict.fromkeys(parity_precision.PRECISIONS, 1000.0)
    for row in report["rows"]:
        if row["array"] in ("velocity", "latent_final"):
            lowest[row["precision"]] = min(lowest[row["precision"]], row["snr_db"])
    assert lowest["bfloat16"] > 36
    assert lowest["int8"] > 32
    assert "float16 is refused" in report["refused"]["float16"]


def test_float16_is_refused_with_the_reason(tmp_path: Path) -> None:
    section = {"model": "sam", "text_encoder": "t5", "precisions": ["float16"]}
    with pytest.raises(InvalidInput, match="bfloat16 takes the same bytes") as caught:
        config.parse({"separation": section}, tmp_path)
    assert caught.value.numbers["field"] == "separation.precisions"


def test_a_weight_that_is_no_number_is_named(models: Path, tmp_path: Path) -> None:
    tensors = torch.load(models / "sam" / "checkpoint.pt", weights_only=True)
    tensors["transformer.layers.2.attention.wo.weight"][3, 4] = torch.nan
    torch.save(tensors, tmp_path / "checkpoint.pt")
    (tmp_path / "config.json").write_bytes((models / "sam" / "config.json").read_bytes())
    with pytest.raises(EngineFault) as caught:
        model.open_folder(tmp_path).prepare("int8", tmp_path / "p", lambda done, total: None)
    assert caught.value.reason == "MODEL_CORRUPT"
    assert "self.out" in caught.value.numbers["key"]
