"""Tensors and hyperparameters of a model in the GGUF format of llama.cpp, architecture `llama`.

Names and folded multipliers are those of the Llama export (`slm.model.hf`). llama.cpp rotates the pairs
(2i, 2i + 1) of a head, Llama checkpoints the pairs (i, i + d_head/2), so the rows of the query and key
matrices are reordered.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slm.errors import ConfigError, Problem
from slm.model.dtypes import DTYPES
from slm.model.hf import llama_tensors
from slm.model.transformer import Transformer

if TYPE_CHECKING:
    from gguf import GGUFWriter

FILE_TYPES = {"fp32": "ALL_F32", "fp16": "MOSTLY_F16", "bf16": "MOSTLY_BF16"}  # gguf.LlamaFileType


def require_gguf() -> ModuleType:
    """Import and return the module `gguf`.

    Raises:
        ConfigError: if it is not installed; the message names the extra that installs it.
    """
    try:
        import gguf
    except ImportError:
        rule = "the package gguf is not installed"
        fix = "run pip install -e '.[gguf]' in the repository, or set format=hf"
        raise ConfigError([Problem("format", "gguf", rule, fix)]) from None
    return gguf


def add_model(writer: GGUFWriter, model: Transformer, dtype: str = "fp32") -> None:
    """Add the hyperparameters and tensors to a `gguf.GGUFWriter`; vectors stay fp32 in every `dtype`.

    Raises:
        DataError: if the model has a GELU MLP or qk_norm, which the Llama format does not support.
    """
    gguf, shape = require_gguf(), model.shape
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[dtype]])
    writer.add_context_length(shape.seq_len)
    writer.add_embedding_length(shape.d_model)
    writer.add_block_count(shape.depth)
    writer.add_feed_forward_length(shape.d_ff)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_key_length(shape.d_head)
    writer.add_value_length(shape.d_head)
    writer.add_rope_dimension_count(shape.d_head)
    writer.add_rope_freq_base(model.rope_theta)
    writer.add_layer_norm_rms_eps(model.norm_eps)
    writer.add_vocab_size(shape.vocab_size)
    for name, tensor in gguf_tensors(model):
        stored = tensor if tensor.ndim == 1 else tensor.to(DTYPES[dtype])
        if stored.dtype == torch.bfloat16:  # numpy has no bf16: pass its bytes
            data, raw_dtype = stored.view(torch.uint8).numpy(), gguf.GGMLQuantizationType.BF16
            writer.add_tensor(name, data, raw_dtype=raw_dtype)
        else:
            writer.add_tensor(name, stored.numpy())


def gguf_tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Yield llama.cpp's names and fp32 tensors, with the rows of queries and keys reordered.

    Raises:
        DataError: if the model has a GELU MLP or qk_norm.
    """
    gguf, shape = require_gguf(), model.shape
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.depth)
    for name, tensor in llama_tensors(model):
        is_rotated = name.endswith(("q_proj.weight", "k_proj.weight"))
        stored = interleave_halves(tensor, shape.d_head) if is_rotated else tensor
        yield names.get_name(name, try_suffixes=(".weight",)), stored


def interleave_halves(weight: Tensor, d_head: int) -> Tensor:
    """Reorder the rows (heads * d_head, D) of each head: i and i + d_head/2 become 2i and 2i + 1."""
    halves = weight.reshape(-1, 2, d_head // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()
