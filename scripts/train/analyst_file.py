"""The language model as a GGUF file: llama architecture, its tokenizer, and a chat template.

The template shows the model the user's messages alone: the engine's system prompts are longer than
all that it has read, and its two tasks are told apart by the words of the user's message.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import Tokenizer

from train.analyst_data import ANSWER, BOS, END
from train.analyst_net import NORM_EPS, ROPE_BASE, Analyst

NAME = "coscheduler demo analyst"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ message['content'] | trim }}{{ '\\n' }}{% endif %}{% endfor %}" + ANSWER
)
NORMAL, CONTROL = 1, 3  # token types of the format
N_CTX = 2048


def write(path: Path, model: Analyst, tokenizer: Tokenizer) -> None:
    """Write the model: matrices as Q8_0, norms as float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    _add_shape(writer, model)
    _add_tokenizer(writer, tokenizer)
    for name, tensor in model.state_dict().items():
        _add_tensor(writer, name, tensor.float().cpu())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, model: Analyst) -> None:
    shape = model.shape
    writer.add_name(NAME)
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layer_count)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.head_count)
    writer.add_head_count_kv(shape.head_count)
    writer.add_layer_norm_rms_eps(NORM_EPS)
    writer.add_rope_dimension_count(shape.width // shape.head_count)
    writer.add_rope_freq_base(ROPE_BASE)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    described: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in described["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if t in (BOS, END, ANSWER) else NORMAL for t in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index(BOS))
    writer.add_eos_token_id(tokens.index(END))
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_tensor(writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor) -> None:
    values = tensor.numpy()
    if values.ndim == 1:
        writer.add_tensor(name, values)
        return
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
