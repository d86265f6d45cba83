"""Training and loading with each option of the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import slm
from slm.model.logical_names import to_logical
from slm.model.transformer import Transformer
from slm.run.spec import RunSpec
from slm.tracking import run_dir
from slm.tracking.checkpoints import newest_checkpoint
from slm.training.step import build_module
from tests.running import run_to_end

pytestmark = pytest.mark.numeric

Spec = Callable[..., RunSpec]


def test_z_loss_reduces_the_log_partition_and_is_not_reported(tiny_spec: Spec) -> None:
    partition, first_loss = {}, {}
    for weight in (0.0, 0.1):
        run, _ = run_to_end(tiny_spec(optimizer={"z_loss": weight}))
        with torch.no_grad():
            logits = slm.load(run.path)(torch.arange(99)[None, :32])
        partition[weight] = logits.logsumexp(-1).square().mean().item()
        first_loss[weight] = run.read_metrics()[0][run_dir.TRAIN_LOSS]
    assert partition[0.1] < 0.5 * partition[0.0]
    assert first_loss[0.1] == first_loss[0.0]  # the initial models are equal


def test_document_mask_changes_the_logits_and_the_run_id(tiny_spec: Spec) -> None:
    plain, masked = tiny_spec(), tiny_spec(model={"document_mask": True})
    assert plain.run_id != masked.run_id
    module = build_module(masked)
    tokens = torch.randint(98, (1, 32))
    tokens[0, 10] = masked.eot_id
    with torch.no_grad():
        split = module(tokens)
        assert torch.equal(split[:, :10], module.model(tokens)[:, :10])
        assert not torch.allclose(split[:, 11:], module.model(tokens)[:, 11:])


@pytest.mark.parametrize(
    "model",
    [{"mlp": "gelu"}, {"qk_norm": True}, {"layer_sharing": 2}, {"tied": False}, {"n_kv_heads": 1}],
    ids=str,
)
def test_model_option_trains_and_loads_unchanged(tiny_spec: Spec, model: dict[str, Any]) -> None:
    spec = tiny_spec(model=model)
    run, result = run_to_end(spec)
    assert result.val_loss_nats_per_token is not None
    assert result.val_loss_nats_per_token < 0.95 * math.log(99)
    loaded = slm.load(run.path)
    found = newest_checkpoint(run.checkpoints)
    assert found is not None
    state = torch.load(found[0], weights_only=True)["state_dict"]
    saved = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    assert isinstance(loaded, Transformer)
    tensors = to_logical(loaded.state_dict(), loaded.shape)
    assert saved.keys() == tensors.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in tensors.items())
    assert result.params_total == sum(p.numel() for p in loaded.parameters())


def test_dropout_changes_training_and_activation_checkpointing_does_not(
    tiny_spec: Spec, tmp_path: Path
) -> None:
    curves = {}
    for name, dropout, checkpointing in (
        ("plain", 0.0, False),
        ("checkpointing", 0.0, True),
        ("dropout", 0.2, False),
    ):
        spec = tiny_spec(
            runs_dir=str(tmp_path / name),
            model={"dropout": dropout},
            trainer={"activation_checkpointing": checkpointing},
        )
        run, result = run_to_end(spec)
        losses = [row[run_dir.TRAIN_LOSS] for row in run.read_metrics()]
        curves[name] = [*losses, result.val_loss_nats_per_token]
    assert curves["checkpointing"] == curves["plain"]
    assert curves["dropout"][0] != curves["plain"][0]
