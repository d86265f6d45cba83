"""Reading of config.json of Llama-format checkpoints: which are supported, and their shape.

MobileLLM's own format is Llama's with two more keys: `share_embedding` ties the table, and `layer_sharing` runs
every block twice in a row. Its model_type is `mobilellm`; checkpoints written by its training code have `llama`.
All other files of a checkpoint folder (generation_config.json, chat templates) are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm.architecture.shapes import ModelShape
from slm.errors import DataError
from slm.files import read_json

CONFIG = "config.json"
MODEL_TYPES = ("llama", "mobilellm")
INTEGERS = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
)
OPTIONAL_INTEGERS = ("num_key_value_heads", "head_dim", "max_position_embeddings")


def read_config(path: Path) -> dict[str, Any]:
    """Read config.json of a Llama or MobileLLM checkpoint.

    Raises:
        DataError: if it is missing, damaged, of another architecture, or sets what slm does not have.
    """
    try:
        config = read_json(path)
    except ValueError as error:
        raise DataError(f"{path}: invalid JSON: {error}") from None
    except FileNotFoundError:
        raise DataError(f"{path.parent}: no {CONFIG}; give a checkpoint folder") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: must contain a JSON object")
    if config.get("model_type") not in MODEL_TYPES:
        architectures = ", ".join(map(str, config.get("architectures") or ["no architectures"]))
        raise DataError(
            f"{path}: model_type={config.get('model_type')} ({architectures}) is not supported; slm loads "
            f"{' and '.join(MODEL_TYPES)}, such as SmolLM2 and MobileLLM (not MobileLLM-R1 or -Pro)"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    unsupported = {
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "attention_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
        "rope_interleaved": config.get("rope_interleaved", False),
        "quantization_config": config.get("quantization_config"),
    }
    for key, is_set in unsupported.items():
        if is_set:
            raise DataError(f"{path}: {key}={config.get(key) or rope} is not supported by slm")
    return config


def parse_shape(config: Mapping[str, Any], path: Path) -> ModelShape:
    """Return the shape that config.json, at `path`, describes.

    Raises:
        DataError: if a size is missing or not a positive integer, or the heads do not fit the width.
    """
    _check_integers(config, path)
    width, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    d_head = config.get("head_dim") or width // heads
    _check_heads(width, heads, kv_heads, d_head, path)
    # `layer_sharing_repeats` exists only in transformers' port of MobileLLM-LS; the published
    # checkpoints have the flag `layer_sharing`, which means 2 passes.
    sharing = config.get("layer_sharing_repeats", 2) if config.get("layer_sharing") else 1
    return ModelShape(
        n_layers=config["num_hidden_layers"],
        d_model=width,
        n_heads=heads,
        n_kv_heads=kv_heads,
        d_head=d_head,
        d_ff=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        seq_len=config.get("max_position_embeddings") or 2048,
        tied=bool(config.get("share_embedding") or config.get("tie_word_embeddings")),
        layer_sharing=sharing,
    )


def _check_integers(config: Mapping[str, Any], path: Path) -> None:
    given = [key for key in OPTIONAL_INTEGERS if config.get(key) is not None]
    for key in (*INTEGERS, *given):
        value = config.get(key)
        if not isinstance(value, int) or value < 1:
            raise DataError(f"{path}: {key}={json.dumps(value)} must be an integer of at least 1")


def _check_heads(width: int, heads: int, kv_heads: int, d_head: int, path: Path) -> None:
    if width % heads:
        raise DataError(f"{path}: num_attention_heads={heads} must divide hidden_size={width}")
    if heads % kv_heads:
        raise DataError(
            f"{path}: num_key_value_heads={kv_heads} must divide num_attention_heads={heads}"
        )
    if heads * d_head != width:
        raise DataError(
            f"{path}: head_dim={d_head} times num_attention_heads={heads} must be hidden_size={width}; "
            "slm has no heads of another total width"
        )
    if d_head % 2:
        raise DataError(f"{path}: head_dim={d_head} must be even, because RoPE rotates pairs")


def parse_rope_theta(config: Mapping[str, Any]) -> float:
    rope = config.get("rope_parameters") or {}
    return float(rope.get("rope_theta", config.get("rope_theta", 10_000.0)))
