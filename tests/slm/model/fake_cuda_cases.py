"""Shape and switches of the steps that fake_cuda_steps.py runs."""

from __future__ import annotations

from typing import Any

from slm.architecture.shapes import ModelShape

SHAPE = ModelShape(2, 576, 9, 3, 64, 1536, 32_000, 2048)
SEQUENCES = 8
CASES: dict[str, dict[str, Any]] = {
    "default": {"sequences": 32},
    "document_mask": {"document_mask": True},
    "qk_norm": {"shape": {"qk_norm": True}},
    "z_loss": {"z_loss": 1e-4},
    "activation_checkpointing": {"model": {"activation_checkpointing": True}},
    "checkpointing and document_mask": {
        "model": {"activation_checkpointing": True},
        "document_mask": True,
    },
    "dropout": {"model": {"dropout": 0.1}},
    "untied": {"shape": {"tied": False}},
    "layer_sharing": {"shape": {"layer_sharing": 2}},
    "gelu": {"shape": {"mlp": "gelu"}},
    "fp32": {"fp32": True},
    "fp32 and document_mask": {"fp32": True, "document_mask": True},
}
