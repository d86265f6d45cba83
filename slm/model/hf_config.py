"""Reading of config.json of Llama-format checkpoints: which are supported, and their shape.

MobileLLM's own format is Llama's with two more keys: `share_embedding` ties the table, and `layer_sharing` runs
every block twice in a row. Its model_type is `mobilellm`; checkpoints written by its training code have `llama`.
All other files of a checkpoint folder (generation_config.json, chat templates) are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
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
OPTIONAL_INTEGERS = (
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "layer_sharing_repeats",
)
ROPE_SECTIONS = ("rope_parameters", "rope_scaling")  # the key of transformers 5, and the older one
DEFAULT_ROPE_THETA, DEFAULT_NORM_EPS = 10_000.0, 1e-6  # of transformers


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
        names = config.get("architectures") or ["no architectures"]
        names = ", ".join(map(str, names)) if isinstance(names, list) else names
        raise DataError(
            f"{path}: model_type={config.get('model_type')} ({names}) is not supported; slm loads "
            f"{' and '.join(MODEL_TYPES)}, such as SmolLM2 and MobileLLM (not MobileLLM-R1 or -Pro)"
        )
    for key, value in _unsupported(config, path):
        raise DataError(f"{path}: {key}={json.dumps(value)} is not supported by slm")
    return config


def _unsupported(config: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the settings that change the model in a way that slm does not have.

    Raises:
        DataError: if the settings of RoPE are not an object.
    """
    for key in ("attention_bias", "mlp_bias", "rope_interleaved", "quantization_config"):
        if config.get(key):
            yield key, config[key]
    if config.get("hidden_act", "silu") != "silu":
        yield "hidden_act", config["hidden_act"]
    if config.get("sliding_window") is not None and config.get("use_sliding_window", True):
        yield "sliding_window", config["sliding_window"]
    sections = {key: _rope_section(config, key, path) for key in ROPE_SECTIONS}
    for key, rope in sections.items():
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            yield key, rope
    for section in (config, *sections.values()):
        if section.get("partial_rotary_factor") not in (None, 1):
            yield "partial_rotary_factor", section["partial_rotary_factor"]


def _rope_section(config: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    section = config.get(key)
    if section is not None and not isinstance(section, dict):
        raise DataError(f"{path}: {key}={json.dumps(section)} must be an object or null")
    return section or {}


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
    repeats = config.get("layer_sharing_repeats")
    sharing = (2 if repeats is None else repeats) if config.get("layer_sharing") else 1
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
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
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


def parse_rope_theta(config: Mapping[str, Any], path: Path) -> float:
    """Return the base of the RoPE angles.

    Raises:
        DataError: if it is not a number above 0.
    """
    rope = _rope_section(config, "rope_parameters", path)
    return _positive(
        rope if "rope_theta" in rope else config, "rope_theta", DEFAULT_ROPE_THETA, path
    )


def parse_norm_eps(config: Mapping[str, Any], path: Path) -> float:
    """Return the epsilon of RMSNorm.

    Raises:
        DataError: if it is not a number above 0.
    """
    return _positive(config, "rms_norm_eps", DEFAULT_NORM_EPS, path)


def parse_eos_ids(config: Mapping[str, Any], path: Path) -> list[int]:
    """Return the tokens that end a text; empty if there is none.

    Raises:
        DataError: if `eos_token_id` is not an id, a list of ids, or null.
    """
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(each, bool) or not isinstance(each, int) or each < 0 for each in ids):
        rule = "must be an integer of at least 0, a list of them, or null"
        raise DataError(f"{path}: eos_token_id={json.dumps(value)} {rule}")
    return ids


def _positive(config: Mapping[str, Any], key: str, default: float, path: Path) -> float:
    value = config.get(key, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise DataError(f"{path}: {key}={json.dumps(value)} must be a number above 0")
    return float(value)
