"""The arithmetic of the footprint, on headers made by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coscheduler.engines.analysis import footprint
from coscheduler.engines.analysis.footprint import Footprint
from coscheduler.engines.analysis.header import Header, Tensor

MIB = 1024 * 1024


def model(layers: int = 40, tensors: tuple[Tensor, ...] = (), **values: Any) -> Footprint:
    keys: dict[str, Any] = {
        "block_count": layers,
        "embedding_length": 5120,
        "attention.head_count": 32,
        "attention.head_count_kv": 8,
        "attention.key_length": 128,
        "attention.value_length": 128,
        "context_length": 131_072,
    }
    keys |= {key.replace("__", "."): value for key, value in values.items()}
    named = {f"llama.{key}": value for key, value in keys.items() if value is not None}
    return footprint.of(Header({"general.architecture": "llama", **named}, {}, tensors))


@pytest.mark.parametrize(
    ("kv_type", "n_ctx", "mebibytes"),
    [("f16", 8192, 1280), ("q8_0", 8192, 680), ("q4_0", 8192, 360), ("q8_0", 4096, 340)],
)
def test_kv_cache_of_a_24b_model(kv_type: str, n_ctx: int, mebibytes: int) -> None:
    assert model().kv_bytes(n_ctx, kv_type, 512) == mebibytes * MIB


def test_context_is_rounded_up_to_256_cells() -> None:
    assert model().kv_bytes(8000, "f16", 512) == model().kv_bytes(8192, "f16", 512)


def test_head_size_from_the_width_where_the_header_has_none() -> None:
    small = model(  # 32 heads: 128 each
        embedding_length=4096, attention__key_length=None, attention__value_length=None
    )
    assert small.kv_bytes(8192, "f16", 512) == 1280 * MIB


def test_kv_heads_by_layer_with_layers_that_have_none() -> None:
    heads = (8,) * 10 + (0,) * 30
    assert model(attention__head_count_kv=heads).kv_bytes(8192, "f16", 512) == 320 * MIB


def test_sliding_windows_need_the_window_and_one_batch() -> None:
    full = model().kv_bytes(8192, "f16", 512) // 40
    windowed = full * (1024 + 512) // 8192
    every_fifth = model(attention__sliding_window=1024, attention__sliding_window_pattern=5)
    assert every_fifth.kv_bytes(8192, "f16", 512) == 8 * full + 32 * windowed
    flags = (True, False) * 20
    half = model(attention__sliding_window=1024, attention__sliding_window_pattern=flags)
    assert half.kv_bytes(8192, "f16", 512) == 20 * full + 20 * windowed


def test_latent_attention_caches_keys_only() -> None:
    latent = model(
        attention__head_count_kv=1,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=192,
    )
    assert latent.kv_bytes(8192, "f16", 512) == 40 * 8192 * 576 * 2


def test_kv_types_need_whole_blocks_in_a_head() -> None:
    assert model().supports("q8_0")
    odd = model(attention__key_length=80)
    assert odd.supports("f16")
    assert not odd.supports("q4_0")


TENSORS = (
    Tensor("token_embd.weight", 1000),
    Tensor("blk.0.attn_q.weight", 64),
    Tensor("blk.0.ffn_up.weight", 33),
    Tensor("blk.1.attn_q.weight", 640),
    Tensor("output_norm.weight", 32),
    Tensor("output.weight", 3200),
)


def test_weights_by_layer_in_aligned_bytes() -> None:
    two = model(layers=2, tensors=TENSORS)
    assert [layer.bytes for layer in two.layers] == [64 + 64, 640]
    assert (two.embedding_bytes, two.output_bytes, two.tied) == (1024, 3232, False)
    assert two.weights_bytes == 1024 + 128 + 640 + 3232


def test_the_last_layers_go_to_the_gpu_first() -> None:
    two = model(layers=2, tensors=TENSORS)
    assert [two.offloaded_bytes(count) for count in (0, 1, 2, 3, 999)] == [
        0,
        3232,
        3232 + 640,
        3232 + 640 + 128,
        3232 + 640 + 128,
    ]


def test_tied_embeddings_are_duplicated_on_the_gpu() -> None:
    tied = model(layers=2, tensors=TENSORS[:-1])
    assert tied.tied
    assert tied.offloaded_bytes(999) == tied.weights_bytes


@given(
    cap=st.integers(0, 2_000_000_000),
    n_ctx_max=st.integers(1, 40_000),
    kv_type=st.sampled_from(footprint.KV_TYPES),
)
def test_fitting_context_is_the_largest(cap: int, n_ctx_max: int, kv_type: str) -> None:
    large = model()
    n_ctx = large.n_ctx_fitting(cap, n_ctx_max, kv_type, 512)
    assert n_ctx % 256 == 0
    assert n_ctx <= n_ctx_max
    assert large.kv_bytes(n_ctx, kv_type, 512) <= cap
    if n_ctx + 256 <= n_ctx_max:
        assert large.kv_bytes(n_ctx + 256, kv_type, 512) > cap
