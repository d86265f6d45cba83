"""Conversion of state dicts between physical parameters and logical tensors.

The model stores projections of the same input as one matrix, so that each is one matmul, and can pad
the vocabulary so that matmuls are aligned. Initialisation, checkpoints and exports use the logical
tensors, which do not depend on how the model stores them.

    physical: parameters and optimizer      logical: tensors on disk, in order of rows
    attention.qkv.weight ((H + 2G) K, D)    attention.{query, key, value}.weight, with HK, GK, GK rows
    mlp.gate_up.weight (2F, D)              mlp.{gate, up}.weight, with F rows each
    embedding.weight, head.weight (V', D)   the same names (V, D); the rows from V to V' are zeros

All other parameters are the same in both forms. Names are those in the transformer, such as
`blocks.0.attention.qkv.weight`. Tensors are whole: FSDP shards are gathered before. Optimizer states
have the form of `torch.distributed.checkpoint.state_dict.get_optimizer_state_dict`:
{"state": {name: {"exp_avg": tensor, ..., "step": scalar}}, "param_groups": [{"params": [name, ...], ...}]}.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slm.architecture.shapes import ModelShape

TABLES = {"embedding.weight", "head.weight"}


def split_parameter(name: str, tensor: Tensor, shape: ModelShape) -> dict[str, Tensor]:
    """Return the logical tensors of a parameter, or of a tensor of the same size, as views."""
    if name in TABLES:
        return {name: tensor[: shape.vocab_size]}
    rows = _logical_rows(name, shape)
    if not rows:
        return {name: tensor}
    return dict(zip(rows, tensor.split(list(rows.values())), strict=True))


def to_logical(state: Mapping[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
    """Convert a model's state dict to logical tensors, which are views of the given tensors."""
    parts: dict[str, Tensor] = {}
    for name, tensor in state.items():
        parts |= split_parameter(name, tensor, shape)
    return parts


def to_physical(
    state: Mapping[str, Tensor], shape: ModelShape, padded_vocab_size: int | None = None
) -> dict[str, Tensor]:
    """Convert logical tensors to the state dict of a model; invert `to_logical`.

    `padded_vocab_size` is that of the model, `Transformer.padded_vocab_size`.

    Raises:
        ValueError: if a part of a fused parameter is missing or has the wrong number of rows.
    """
    return {
        name: _join(name, {part: state.get(part) for part in parts}, shape, padded_vocab_size)
        for name, parts in _group_by_parameter(state, shape).items()
    }


def optimizer_to_logical(optimizer: Mapping[str, Any], shape: ModelShape) -> dict[str, Any]:
    """Convert an optimizer's state dict to logical tensors.

    Moments are split into views; each logical tensor gets its own copy of the step counter.
    """
    state = {
        logical: entry
        for name, entries in optimizer["state"].items()
        for logical, entry in _split_entries(name, entries, shape).items()
    }
    groups = [
        {
            **group,
            "params": [part for name in group["params"] for part in logical_names(name, shape)],
        }
        for group in optimizer["param_groups"]
    ]
    return {**optimizer, "state": state, "param_groups": groups}


def optimizer_to_physical(
    optimizer: Mapping[str, Any], shape: ModelShape, padded_vocab_size: int | None = None
) -> dict[str, Any]:
    """Convert an optimizer's state dict of logical tensors to that of a model's parameters.

    Raises:
        ValueError: if a part of a fused parameter is missing or has the wrong number of rows.
    """
    saved = optimizer["state"]
    state = {
        name: _join_entries(
            name, {part: saved.get(part) for part in parts}, shape, padded_vocab_size
        )
        for name, parts in _group_by_parameter(saved, shape).items()
    }
    groups = [
        {**group, "params": list(_group_by_parameter(group["params"], shape))}
        for group in optimizer["param_groups"]
    ]
    return {**optimizer, "state": state, "param_groups": groups}


def logical_names(name: str, shape: ModelShape) -> list[str]:
    """Return the names of the logical tensors of a parameter, in order of rows."""
    return list(_logical_rows(name, shape)) or [name]


def _logical_rows(name: str, shape: ModelShape) -> dict[str, int]:
    """Return the rows of each logical tensor of a fused parameter; empty for other parameters."""
    if name.endswith(".attention.qkv.weight"):
        attention = name.removesuffix(".qkv.weight")
        query, key_or_value = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
        return {
            f"{attention}.query.weight": query,
            f"{attention}.key.weight": key_or_value,
            f"{attention}.value.weight": key_or_value,
        }
    if name.endswith(".mlp.gate_up.weight"):
        mlp = name.removesuffix(".gate_up.weight")
        return {f"{mlp}.gate.weight": shape.d_ff, f"{mlp}.up.weight": shape.d_ff}
    return {}


def _group_by_parameter(names: Iterable[str], shape: ModelShape) -> dict[str, list[str]]:
    """Return each parameter that logical tensors belong to, with all its logical names."""
    parameters = dict.fromkeys(_parameter_name(name, shape) for name in names)
    return {name: logical_names(name, shape) for name in parameters}


def _parameter_name(logical: str, shape: ModelShape) -> str:
    module, _, tensor = logical.removesuffix(".weight").rpartition(".")
    if module.endswith(".attention") and tensor in {"query", "key", "value"}:
        return f"{module}.qkv.weight"
    if module.endswith(".mlp") and tensor in {"gate", "up"} and shape.mlp == "swiglu":
        return f"{module}.gate_up.weight"
    return logical


def _join(
    name: str,
    parts: Mapping[str, Tensor | None],
    shape: ModelShape,
    padded_vocab_size: int | None,
) -> Tensor:
    """Concatenate the logical tensors of a parameter, and pad a table with rows of zeros."""
    tensors = []
    rows = _logical_rows(name, shape)
    for part, tensor in parts.items():
        if tensor is None:
            raise ValueError(f"{part} is missing")
        if part in rows and len(tensor) != rows[part]:
            raise ValueError(f"{part} has {len(tensor)} rows instead of {rows[part]}")
        tensors.append(tensor)
    if len(tensors) > 1:
        return torch.cat(tensors)
    if name in TABLES and padded_vocab_size is not None:
        return F.pad(tensors[0], (0, 0, 0, padded_vocab_size - shape.vocab_size))
    return tensors[0]


def _split_entries(
    name: str, entries: Mapping[str, Any], shape: ModelShape
) -> dict[str, dict[str, Any]]:
    """Split the optimizer state of one parameter into the states of its logical tensors."""
    states: dict[str, dict[str, Any]] = {part: {} for part in logical_names(name, shape)}
    for key, value in entries.items():
        if isinstance(value, Tensor) and value.ndim > 0:
            parts = split_parameter(name, value, shape)
        else:  # the step counter
            parts = {part: value.clone() if isinstance(value, Tensor) else value for part in states}
        for part, piece in parts.items():
            states[part][key] = piece
    return states


def _join_entries(
    name: str,
    parts: Mapping[str, Mapping[str, Any] | None],
    shape: ModelShape,
    padded_vocab_size: int | None,
) -> dict[str, Any]:
    """Join the optimizer states of the logical tensors of one parameter; they took equal steps."""
    states: dict[str, Mapping[str, Any]] = {}
    for part, state in parts.items():
        if state is None:
            raise ValueError(f"the optimizer state of {part} is missing")
        states[part] = state
    first = next(iter(states.values()))
    return {
        key: _join(name, {part: s[key] for part, s in states.items()}, shape, padded_vocab_size)
        if isinstance(value, Tensor) and value.ndim > 0
        else value
        for key, value in first.items()
    }
