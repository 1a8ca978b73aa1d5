"""Tiny GGUF files of several architectures: real keys and tensor names, random weights.

Each is as small as its architecture allows; what matters is which layers keep which cache. All use
the demonstration model's tokenizer.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from coscheduler.demo import tiny_llm

WIDTH, HEADS, KV_HEADS, HEAD, FEED_FORWARD, LAYERS = 128, 4, 2, 32, 128, 6
N_CTX_TRAIN = 32_768
EXPERTS, EXPERTS_USED, EXPERT_WIDTH = 4, 2, 32
WINDOW = 300
LATENT, ROPE, Q_HEAD, Q_LATENT = 32, 32, 64, 32  # multi-head latent attention
INNER, STATE, CONV, DT_RANK = 2 * WIDTH, 16, 4, 8  # recurrent layers

Shapes = dict[str, tuple[int, ...]]
Keys = dict[str, Any]


def write(path: Path, name: str) -> None:
    """Write the tiny model called `name`, a key of `BUILDERS`, to `path`."""
    _write(path, BUILDERS[name]())


def write_wide(path: Path) -> None:
    """40 layers with 8 KV heads of 128, the cache of a 24B model, on hardly any weights."""
    heads, head = 8, 128
    keys = {
        "block_count": 40,
        "attention.head_count": heads,
        "attention.head_count_kv": heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
    }
    wide: Shapes = {f"attn_{part}.weight": (heads * head, WIDTH) for part in ("q", "k", "v")}
    wide["attn_output.weight"] = (WIDTH, heads * head)
    _write(path, ("llama", keys, lambda layer: _attention() | wide | _dense(), {}))


def write_aborting(path: Path) -> None:
    """A file that makes llama.cpp abort: recurrent layers of a width that it does not expect."""
    architecture, keys, block, others = _jamba()
    _write(path, (architecture, keys | {"ssm.inner_size": WIDTH}, block, others))


def _write(path: Path, model: "Model") -> None:
    architecture, keys, block, others = model
    keys = _common() | keys
    tokens, merges = tiny_llm._vocabulary()
    writer = gguf.GGUFWriter(path, architecture)
    tiny_llm._add_tokenizer(writer, tokens, merges)
    for key, value in keys.items():
        _add(writer, f"{architecture}.{key}", value)
    shapes: Shapes = {"token_embd.weight": (len(tokens), WIDTH), "output_norm.weight": (WIDTH,)}
    shapes |= others
    for layer in range(keys["block_count"]):
        shapes |= {f"blk.{layer}.{part}": shape for part, shape in block(layer).items()}
    rng = np.random.default_rng(0)
    for tensor, shape in shapes.items():
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.05)
        is_matrix = len(shape) > 1 and "conv1d" not in tensor and "ssm_a" not in tensor
        if is_matrix and "ssm_d" not in tensor and "ssm_norm" not in tensor:
            values = values.astype(np.float16)
        writer.add_tensor(tensor, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_uint32(key, value)


def _common() -> Keys:
    return {
        "block_count": LAYERS,
        "context_length": N_CTX_TRAIN,
        "embedding_length": WIDTH,
        "feed_forward_length": FEED_FORWARD,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": HEAD,
    }


def _attention() -> Shapes:
    return {
        "attn_norm.weight": (WIDTH,),
        "attn_q.weight": (HEADS * HEAD, WIDTH),
        "attn_k.weight": (KV_HEADS * HEAD, WIDTH),
        "attn_v.weight": (KV_HEADS * HEAD, WIDTH),
        "attn_output.weight": (WIDTH, HEADS * HEAD),
    }


def _dense() -> Shapes:
    return {
        "ffn_norm.weight": (WIDTH,),
        "ffn_gate.weight": (FEED_FORWARD, WIDTH),
        "ffn_up.weight": (FEED_FORWARD, WIDTH),
        "ffn_down.weight": (WIDTH, FEED_FORWARD),
    }


def _experts(width: int = EXPERT_WIDTH) -> Shapes:
    return {
        "ffn_norm.weight": (WIDTH,),
        "ffn_gate_inp.weight": (EXPERTS, WIDTH),
        "ffn_gate_exps.weight": (EXPERTS, width, WIDTH),
        "ffn_up_exps.weight": (EXPERTS, width, WIDTH),
        "ffn_down_exps.weight": (EXPERTS, WIDTH, width),
    }


def _shared_expert() -> Shapes:
    return {
        "ffn_gate_shexp.weight": (EXPERT_WIDTH, WIDTH),
        "ffn_up_shexp.weight": (EXPERT_WIDTH, WIDTH),
        "ffn_down_shexp.weight": (WIDTH, EXPERT_WIDTH),
    }


def _head_norms() -> Shapes:
    return {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}


def _recurrent() -> Shapes:
    return {
        "attn_norm.weight": (WIDTH,),
        "ssm_in.weight": (2 * INNER, WIDTH),
        "ssm_conv1d.weight": (INNER, CONV),
        "ssm_conv1d.bias": (INNER,),
        "ssm_x.weight": (DT_RANK + 2 * STATE, INNER),
        "ssm_dt.weight": (INNER, DT_RANK),
        "ssm_dt.bias": (INNER,),
        "ssm_a": (INNER, STATE),
        "ssm_d": (INNER,),
        "ssm_out.weight": (WIDTH, INNER),
    }


def _recurrent_keys() -> Keys:
    return {
        "ssm.conv_kernel": CONV,
        "ssm.inner_size": INNER,
        "ssm.state_size": STATE,
        "ssm.time_step_rank": DT_RANK,
    }


Model = tuple[str, Keys, Callable[[int], Shapes], Shapes]


def _plain(architecture: str, keys: Keys | None = None, extra: Shapes | None = None) -> Model:
    def block(layer: int) -> Shapes:
        return _attention() | _dense() | (extra or {})

    return architecture, keys or {}, block, {}


def _qwen2() -> Model:
    biases: Shapes = {
        "attn_q.bias": (HEADS * HEAD,),
        "attn_k.bias": (KV_HEADS * HEAD,),
        "attn_v.bias": (KV_HEADS * HEAD,),
    }
    return _plain("qwen2", extra=biases)


def _gemma(architecture: str, extra: Shapes) -> Model:
    norms: Shapes = {"post_attention_norm.weight": (WIDTH,), "post_ffw_norm.weight": (WIDTH,)}
    return _plain(architecture, {"attention.sliding_window": WINDOW}, norms | extra)


def _phi3() -> Model:
    def block(layer: int) -> Shapes:
        return {
            "attn_norm.weight": (WIDTH,),
            "attn_qkv.weight": ((HEADS + 2 * KV_HEADS) * HEAD, WIDTH),
            "attn_output.weight": (WIDTH, HEADS * HEAD),
            "ffn_norm.weight": (WIDTH,),
            "ffn_up.weight": (2 * FEED_FORWARD, WIDTH),
            "ffn_down.weight": (WIDTH, FEED_FORWARD),
        }

    others: Shapes = {"output.weight": (len(tiny_llm._vocabulary()[0]), WIDTH)}
    return "phi3", {"attention.sliding_window": WINDOW}, block, others


def _mixtral() -> Model:
    keys = {"expert_count": EXPERTS, "expert_used_count": EXPERTS_USED}
    return "llama", keys, lambda layer: _attention() | _experts(FEED_FORWARD), {}


def _qwen3moe() -> Model:
    keys = {
        "expert_count": EXPERTS,
        "expert_used_count": EXPERTS_USED,
        "expert_feed_forward_length": EXPERT_WIDTH,
    }
    return "qwen3moe", keys, lambda layer: _attention() | _head_norms() | _experts(), {}


def _deepseek2() -> Model:
    keys = {
        "attention.head_count_kv": 1,
        "attention.key_length": LATENT + ROPE,
        "attention.value_length": LATENT,
        "attention.key_length_mla": Q_HEAD,
        "attention.value_length_mla": HEAD,
        "attention.kv_lora_rank": LATENT,
        "attention.q_lora_rank": Q_LATENT,
        "rope.dimension_count": ROPE,
        "leading_dense_block_count": 1,
        "expert_count": EXPERTS,
        "expert_used_count": EXPERTS_USED,
        "expert_shared_count": 1,
        "expert_feed_forward_length": EXPERT_WIDTH,
        "expert_weights_scale": 1.0,
        "vocab_size": len(tiny_llm._vocabulary()[0]),
    }

    def block(layer: int) -> Shapes:
        attention: Shapes = {
            "attn_norm.weight": (WIDTH,),
            "attn_q_a.weight": (Q_LATENT, WIDTH),
            "attn_q_a_norm.weight": (Q_LATENT,),
            "attn_q_b.weight": (HEADS * Q_HEAD, Q_LATENT),
            "attn_kv_a_mqa.weight": (LATENT + ROPE, WIDTH),
            "attn_kv_a_norm.weight": (LATENT,),
            "attn_k_b.weight": (HEADS, LATENT, Q_HEAD - ROPE),
            "attn_v_b.weight": (HEADS, HEAD, LATENT),
            "attn_output.weight": (WIDTH, HEADS * HEAD),
        }
        return attention | (_dense() if layer == 0 else _experts() | _shared_expert())

    return "deepseek2", keys, block, {}


def _mamba() -> Model:
    keys = _recurrent_keys() | {"feed_forward_length": 0, "attention.head_count": 0}
    keys["attention.head_count_kv"] = 0
    return "mamba", keys, lambda layer: _recurrent(), {}


def _jamba() -> Model:
    kv_heads = [KV_HEADS if layer % 2 else 0 for layer in range(LAYERS)]
    keys = _recurrent_keys() | {"attention.head_count_kv": kv_heads}

    def block(layer: int) -> Shapes:
        if kv_heads[layer]:
            return _attention() | _dense()
        norms: Shapes = {
            "ssm_dt_norm.weight": (DT_RANK,),
            "ssm_b_norm.weight": (STATE,),
            "ssm_c_norm.weight": (STATE,),
        }
        return _recurrent() | norms | _dense()

    return "jamba", keys, block, {}


BUILDERS: dict[str, Callable[[], Model]] = {
    "llama": lambda: _plain("llama"),
    "qwen2": _qwen2,
    "qwen3": lambda: _plain("qwen3", extra=_head_norms()),
    "gemma2": lambda: _gemma("gemma2", {}),
    "gemma3": lambda: _gemma("gemma3", _head_norms()),
    "phi3": _phi3,
    "mixtral": _mixtral,
    "qwen3moe": _qwen3moe,
    "deepseek2": _deepseek2,
    "mamba": _mamba,
    "jamba": _jamba,
}
