"""Checkpoints in Llama's format of the Hugging Face hub, in both directions.

A folder holds config.json and the weights: model.safetensors, or shards with an index, or torch
files, which are read with `weights_only`, so that no pickled code is ever run. MobileLLM's own format
is the same with two more keys: `share_embedding` ties the table, `layer_sharing` runs every block
twice in a row.

What Llama lacks is folded into weights on export: the multiplier of logits into the last norm's gain,
that of residual branches into their last matrix, and shared blocks are written once for every time
they run. Rounding apart, and without it where the multipliers are powers of two, logits are the same.
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
from slm.model.transformer import Transformer

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TORCH_WEIGHTS = "pytorch_model.bin"
MODEL_NAMES = {
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
IGNORED_ENDING = "rotary_emb.inv_freq"  # a buffer that old checkpoints carry


def is_llama_folder(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def export_llama(model: Transformer, folder: Path, eot_id: int | None = None) -> None:
    """Write config.json and model.safetensors for `transformers.LlamaForCausalLM`, in fp32.

    Raises:
        DataError: for what a Llama cannot be: a GELU MLP, or normalised queries and keys.
    """
    shape = model.shape
    for key, is_so in (("model.mlp=gelu", shape.mlp != "swiglu"), ("qk_norm=true", shape.qk_norm)):
        if is_so:
            raise DataError(
                f"{key} has no place in Llama's format; only this run's own can hold it"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / WEIGHTS) as temporary:
        save_file(dict(_llama_tensors(model)), temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # the library lets nobody else read it
    write_json(folder / CONFIG, llama_config(model, eot_id))


def llama_config(model: Transformer, eot_id: int | None = None) -> dict[str, Any]:
    """The content of config.json."""
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
    for name, tensor in model.state_dict().items():
        own = tensor.detach().float().cpu()
        if name == "norm.weight":
            own = own * model.logit_multiplier
        if name == "head.weight" and model.shape.tied:
            continue
        if name in MODEL_NAMES:
            yield MODEL_NAMES[name], own.contiguous()
            continue
        _, layer, rest = name.split(".", 2)
        if rest in BRANCH_OUTPUTS:
            own = own * model.branch_multiplier
        for turn in range(model.shape.layer_sharing):
            index = int(layer) * model.shape.layer_sharing + turn
            # Each a copy of its own: safetensors refuses tensors that share memory.
            yield f"model.layers.{index}.{BLOCK_NAMES[rest]}", own.clone().contiguous()


def import_llama(folder: Path) -> Transformer:
    """The model of a local Llama or MobileLLM checkpoint, in fp32 and eval mode.

    Raises:
        DataError: naming the file and the key, if it is something else or incomplete.
    """
    config = _read_config(folder / CONFIG)
    shape = _shape_of(config, folder / CONFIG)
    eps = float(config.get("rms_norm_eps", 1e-6))  # transformers' own default
    model = Transformer(shape, rope_theta=_rope_theta(config), norm_eps=eps)
    model.load_state_dict(_our_tensors(_read_weights(folder), model, folder))
    return model.eval()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    except FileNotFoundError:
        raise DataError(f"{path.parent}: no {CONFIG} here; is this a checkpoint folder?") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: not a table of keys and values")
    if config.get("model_type") not in {"llama", "mobilellm"}:
        raise DataError(f"{path}: model_type={config.get('model_type')} is not llama or mobilellm")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    foreign = {
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "attention_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
    }
    for key, is_foreign in foreign.items():
        if is_foreign:
            shown = config.get(key, rope)
            raise DataError(f"{path}: {key}={shown} is a kind of Llama that slm does not build")
    return config


def _shape_of(config: Mapping[str, Any], path: Path) -> ModelShape:
    needed = (
        "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size",
    )  # fmt: skip
    for key in needed:
        if not isinstance(config.get(key), int):
            raise DataError(f"{path}: {key}={config.get(key)} is not a whole number")
    heads, width = config["num_attention_heads"], config["hidden_size"]
    # transformers' port of MobileLLM-LS says how often, the published one whether.
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


def _rope_theta(config: Mapping[str, Any]) -> float:
    rope = config.get("rope_parameters") or {}
    return float(rope.get("rope_theta", config.get("rope_theta", 10_000.0)))


def _read_weights(folder: Path) -> dict[str, Tensor]:
    for name, read in ((WEIGHTS, _read_safetensors), (TORCH_WEIGHTS, _read_torch)):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return read(folder / name)
        if index.is_file():
            parts = [read(folder / shard) for shard in _shards(index)]
            return {key: value for part in parts for key, value in part.items()}
    raise DataError(f"{folder}: neither {WEIGHTS} nor {TORCH_WEIGHTS} nor an index of shards here")


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(read_json(index)["weight_map"].values()))
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError):
        raise DataError(f"{index}: not an index of shards") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path}: named in the index but not here") from None
    except SafetensorError as error:
        raise DataError(f"{path} is damaged: {error}") from None


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: named in the index but not here") from None
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} holds more than tensors, or is damaged: {reason}") from None


def _our_tensors(theirs: dict[str, Tensor], model: Transformer, folder: Path) -> dict[str, Tensor]:
    """The state of our module from theirs, every tensor accounted for."""
    names = {ours: _their_name(ours) for ours in dict(model.named_parameters())}
    missing = sorted(set(names.values()) - set(theirs))
    if missing:
        raise DataError(f"{folder}: {len(missing)} tensors are missing, the first is {missing[0]}")
    state = {ours: theirs.pop(name).float() for ours, name in names.items()}
    if model.shape.tied:
        table = state["embedding.weight"]
        head = theirs.pop(MODEL_NAMES["head.weight"], table)
        if not torch.equal(head.float(), table):
            raise DataError(f"{folder}: tied, says {CONFIG}, but lm_head differs from the table")
        state["head.weight"] = table
    left = sorted(name for name in theirs if not name.endswith(IGNORED_ENDING))
    if left:
        raise DataError(f"{folder}: {len(left)} tensors have no place, the first is {left[0]}")
    for ours, wanted in model.named_parameters():
        if state[ours].shape != wanted.shape:
            found, asked = tuple(state[ours].shape), tuple(wanted.shape)
            raise DataError(f"{folder}: {names[ours]} is {found}, {CONFIG} asks for {asked}")
    return state


def _their_name(ours: str) -> str:
    if ours in MODEL_NAMES:
        return MODEL_NAMES[ours]
    _, layer, rest = ours.split(".", 2)
    return f"model.layers.{layer}.{BLOCK_NAMES[rest]}"
