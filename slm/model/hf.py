"""Import and export of checkpoints in the Llama format of Hugging Face.

A checkpoint folder contains config.json and the weights: model.safetensors, or shards with an index,
or torch files. Torch files are read with `weights_only`, so that no pickled code runs. The MobileLLM
format is the same with two more keys: `share_embedding` ties the table, and `layer_sharing` runs every
block twice in a row.

Export folds into the weights what Llama does not have: the logit multiplier is multiplied into the
gain of the final norm, the branch multiplier into the last matrix of each branch, and a shared block
is written once per pass. Logits then differ by rounding only; they are equal if the multipliers are
powers of two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from slm.architecture.shapes import ModelShape
from slm.errors import DataError
from slm.files import atomic_write, read_json, write_json
from slm.model.build import load_weights
from slm.model.logical_names import to_logical
from slm.model.transformer import Transformer

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TORCH_WEIGHTS = "pytorch_model.bin"
MODEL_NAMES = {  # slm -> Llama
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
BLOCK_NAMES = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.query.weight": "self_attn.q_proj.weight",
    "attention.key.weight": "self_attn.k_proj.weight",
    "attention.value.weight": "self_attn.v_proj.weight",
    "attention.output.weight": "self_attn.o_proj.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.gate_proj.weight",
    "mlp.up.weight": "mlp.up_proj.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}
BRANCH_OUTPUTS = {"attention.output.weight", "mlp.down.weight"}
REQUIRED_INTEGERS = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
)
IGNORED_SUFFIX = "rotary_emb.inv_freq"  # a buffer in old checkpoints


def is_llama_folder(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def export_llama(model: Transformer, folder: Path, eot_id: int | None = None) -> None:
    """Write config.json and model.safetensors for `transformers.LlamaForCausalLM`, in fp32.

    Raises:
        DataError: if the model has a GELU MLP or qk_norm, which the Llama format does not support.
    """
    shape = model.shape
    unsupported = {"model.mlp=gelu": shape.mlp != "swiglu", "model.qk_norm=true": shape.qk_norm}
    for setting, is_set in unsupported.items():
        if is_set:
            raise DataError(
                f"{setting}: not supported by the Llama format; use the checkpoint of the run instead"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / WEIGHTS) as temporary:
        save_file(dict(_llama_tensors(model)), temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors creates files that only the owner can read
    write_json(folder / CONFIG, llama_config(model, eot_id))


def llama_config(model: Transformer, eot_id: int | None = None) -> dict[str, Any]:
    """Return the content of config.json."""
    shape = model.shape
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_ff,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.d_head,
        "max_position_embeddings": shape.seq_len,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": shape.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def _llama_tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Yield Llama's names and fp32 tensors, with the multipliers folded in."""
    for name, parameter in to_logical(model.state_dict(), model.shape).items():
        tensor = parameter.detach().float().cpu()
        if name == "norm.weight":
            tensor = tensor * model.logit_multiplier
        if name == "head.weight" and model.shape.tied:
            continue
        if name in MODEL_NAMES:
            yield MODEL_NAMES[name], tensor.contiguous()
            continue
        _, layer, rest = name.split(".", 2)
        if rest in BRANCH_OUTPUTS:
            tensor = tensor * model.branch_multiplier
        for repeat in range(model.shape.layer_sharing):
            index = int(layer) * model.shape.layer_sharing + repeat
            # One copy per pass: safetensors rejects tensors that share memory.
            yield f"model.layers.{index}.{BLOCK_NAMES[rest]}", tensor.clone().contiguous()


def import_llama(folder: Path) -> Transformer:
    """Load a local Llama or MobileLLM checkpoint, in fp32 and eval mode.

    Raises:
        DataError: if the checkpoint is incomplete or of another kind; it names the file and the key.
    """
    config = _read_config(folder / CONFIG)
    shape = _parse_shape(config, folder / CONFIG)
    eps = float(config.get("rms_norm_eps", 1e-6))  # the default of transformers
    model = Transformer(shape, rope_theta=_parse_rope_theta(config), norm_eps=eps)
    load_weights(model, _convert_to_slm(_read_weights(folder), model, folder))
    return model.eval()


def llama_shape(folder: Path) -> ModelShape:
    """Read the shape in the config.json of a Llama or MobileLLM checkpoint, without the weights.

    Raises:
        DataError: if config.json is missing, damaged or of another kind of model.
    """
    return _parse_shape(_read_config(folder / CONFIG), folder / CONFIG)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: invalid JSON: {error}") from None
    except FileNotFoundError:
        raise DataError(f"{path.parent}: no {CONFIG}; give a checkpoint folder") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: must contain a JSON object")
    if config.get("model_type") not in {"llama", "mobilellm"}:
        raise DataError(
            f"{path}: model_type={config.get('model_type')} is not supported; "
            "it must be llama or mobilellm"
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    unsupported = {
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "attention_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
    }
    for key, is_set in unsupported.items():
        if is_set:
            raise DataError(f"{path}: {key}={config.get(key, rope)} is not supported by slm")
    return config


def _parse_shape(config: Mapping[str, Any], path: Path) -> ModelShape:
    for key in REQUIRED_INTEGERS:
        if not isinstance(config.get(key), int):
            raise DataError(f"{path}: {key}={config.get(key)} must be an integer")
    heads, width = config["num_attention_heads"], config["hidden_size"]
    # `layer_sharing_repeats` exists only in transformers' port of MobileLLM-LS; the published
    # checkpoints have the flag `layer_sharing`, which means 2 passes.
    sharing = config.get("layer_sharing_repeats", 2) if config.get("layer_sharing") else 1
    return ModelShape(
        n_layers=config["num_hidden_layers"],
        d_model=width,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        d_head=config.get("head_dim") or width // heads,
        d_ff=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        seq_len=config.get("max_position_embeddings", 2048),
        tied=bool(config.get("share_embedding") or config.get("tie_word_embeddings")),
        layer_sharing=sharing,
    )


def _parse_rope_theta(config: Mapping[str, Any]) -> float:
    rope = config.get("rope_parameters") or {}
    return float(rope.get("rope_theta", config.get("rope_theta", 10_000.0)))


def _read_weights(folder: Path) -> dict[str, Tensor]:
    for name, read in ((WEIGHTS, _read_safetensors), (TORCH_WEIGHTS, _read_torch)):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return read(folder / name)
        if index.is_file():
            parts = [read(folder / shard) for shard in _read_index(index)]
            return {key: value for part in parts for key, value in part.items()}
    raise DataError(
        f"{folder}: no weights; need {WEIGHTS}, {TORCH_WEIGHTS} or shards with an index"
    )


def _read_index(index: Path) -> list[str]:
    try:
        return sorted(set(read_json(index)["weight_map"].values()))
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError):
        raise DataError(f"{index}: not a shard index (no `weight_map`)") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path}: missing, but listed in the shard index") from None
    except SafetensorError as error:
        raise DataError(f"{path}: damaged file: {error}") from None


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: missing, but listed in the shard index") from None
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: damaged, or contains more than tensors: {reason}") from None


def _convert_to_slm(
    tensors: dict[str, Tensor], model: Transformer, folder: Path
) -> dict[str, Tensor]:
    """Return the logical tensors of `model` from Llama tensors; used ones are removed from `tensors`.

    Raises:
        DataError: if tensors are missing, unexpected, or have the wrong shape.
    """
    parameters = to_logical(dict(model.named_parameters()), model.shape)
    names = {name: _llama_name(name) for name in parameters}
    missing = sorted(set(names.values()) - set(tensors))
    if missing:
        raise DataError(f"{folder}: {len(missing)} missing tensors; the first is {missing[0]}")
    state = {name: tensors.pop(llama_name).float() for name, llama_name in names.items()}
    if model.shape.tied:
        table = state["embedding.weight"]
        head = tensors.pop(MODEL_NAMES["head.weight"], table)
        if not torch.equal(head.float(), table):
            raise DataError(
                f"{folder}: {CONFIG} ties the head, but lm_head and embed_tokens differ"
            )
        state["head.weight"] = table
    unexpected = sorted(name for name in tensors if not name.endswith(IGNORED_SUFFIX))
    if unexpected:
        raise DataError(
            f"{folder}: {len(unexpected)} unexpected tensors; the first is {unexpected[0]}"
        )
    for name, parameter in parameters.items():
        found, expected = tuple(state[name].shape), tuple(parameter.shape)
        if found != expected:
            raise DataError(
                f"{folder}: {names[name]} has shape {found}, but {CONFIG} requires {expected}"
            )
    return state


def _llama_name(name: str) -> str:
    if name in MODEL_NAMES:
        return MODEL_NAMES[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{BLOCK_NAMES[rest]}"
