"""Training in one process: schedule, parameter groups, results, losses and micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from slm.config.schema import OptimizerConfig, ParametrizationConfig, ScheduleConfig
from slm.data.tokens.shards import PreparedData
from slm.errors import ConfigError, RunError
from slm.model.build import load_weights
from slm.model.loss import token_nats
from slm.model.parametrization import Parametrization
from slm.run.lr_schedule import is_decayed, lr_multiplier
from slm.run.spec import RunSpec
from slm.tracking import run_dir
from slm.tracking.run_dir import RunDirectory
from slm.training.optimizer import build_optimizer
from slm.training.step import build_module
from tests.running import losses, run_to_end, weights

pytestmark = pytest.mark.numeric

Spec = Callable[..., RunSpec]


def test_lr_multiplier_of_wsd_and_cosine() -> None:
    wsd = ScheduleConfig(kind="wsd", decay_fraction=0.2)
    assert lr_multiplier(5, 1000, 10, wsd) == 0.5
    assert lr_multiplier(10, 1000, 10, wsd) == lr_multiplier(800, 1000, 10, wsd) == 1.0
    assert lr_multiplier(900, 1000, 10, wsd) == pytest.approx(0.5)
    assert lr_multiplier(1000, 1000, 10, wsd) == 0.0
    cosine = ScheduleConfig(kind="cosine", final_lr_fraction=0.1)
    assert lr_multiplier(10, 1010, 10, cosine) == 1.0
    assert lr_multiplier(510, 1010, 10, cosine) == pytest.approx(0.55)
    assert lr_multiplier(1010, 1010, 10, cosine) == pytest.approx(0.1)


# Multipliers (lr, decay, eps) at m = 32 / 64 and r = 2 / 4, from the table in
# slm/model/parametrization.py: embedding and head, matrices, gains in blocks, final gain.
EXPECTED = {
    "standard": [(1, 1, 1), (1, 1, 1), (1, 0, 1), (1, 0, 1)],
    "mup": [(1, 1, 2), (2, 0.5, 2), (1, 0, 2), (1, 0, 2)],
    "completep": [(1, 1, 2), (2, 0.5, 4), (1, 0, 4), (1, 0, 2)],
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", EXPECTED)
def test_parameter_groups_follow_the_parametrization_table(
    tiny_spec: Spec, tied: bool, kind: str
) -> None:
    module = build_module(
        tiny_spec(model={"tied": tied, "qk_norm": True}, parametrization={"kind": kind})
    )
    rules = Parametrization.of(ParametrizationConfig(kind=kind), module.model.shape)  # type: ignore[arg-type]
    config = OptimizerConfig(weight_decay=0.1)
    optimizer = build_optimizer(module.model, config, rules)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    names = dict(module.model.named_parameters())
    assert len(group_of) == len(names) == sum(len(g["params"]) for g in optimizer.param_groups)
    for name, parameter in names.items():
        is_table, in_blocks = "embedding" in name or "head" in name, name.startswith("blocks")
        row = 0 if is_table else 1 if parameter.ndim == 2 else 2 if in_blocks else 3
        lr, decay, eps = EXPECTED[kind][row]
        group = group_of[id(parameter)]
        assert group["initial_lr"] == group["lr"] == config.lr * lr, name
        assert group["weight_decay"] == 0.1 * decay and group["eps"] == config.eps * eps, name


def test_run_reduces_the_loss_and_writes_all_result_fields(tiny_spec: Spec) -> None:
    spec = tiny_spec(budget={"tokens": 60 * 256}, optimizer={"lr": 1e-2})
    run, result = run_to_end(spec)
    assert run.result() == result
    assert run.state() == result.status == "finished"
    assert result.tokens == 60 * 256 and result.steps == 60
    assert result.val_loss_nats_per_token is not None and result.val_bits_per_byte is not None
    assert result.val_loss_nats_per_token < math.log(99) - 0.8
    assert result.val_perplexity == pytest.approx(math.exp(result.val_loss_nats_per_token))
    nats = result.val_loss_nats_per_token * result.val_tokens
    assert result.val_bits_per_byte == pytest.approx(nats / math.log(2) / result.val_bytes)
    assert (run.path / "config.yaml").exists() and (run.path / "env.json").exists()
    rows = run.read_metrics()
    assert [row[run_dir.STEP] for row in rows] == list(range(1, 61))
    assert rows[-1][run_dir.VAL_LOSS] == result.val_loss_nats_per_token


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, False), (0.2, True)])
def test_result_tells_whether_the_rate_decayed(
    tiny_spec: Spec, fraction: float, expected: bool
) -> None:
    run, _ = run_to_end(tiny_spec(schedule={"decay_fraction": fraction}))
    result = run.result()
    assert result is not None and is_decayed(result.schedule) == expected


def test_validation_loss_equals_a_plain_sum(tiny_spec: Spec, prose: PreparedData) -> None:
    spec = tiny_spec(data={"val_tokens": 1000})
    run, result = run_to_end(spec)
    module = build_module(spec)
    load_weights(module.model, {k.removeprefix("model."): v for k, v in weights(run).items()})
    stream = torch.from_numpy(np.concatenate(prose.split("val"))[:1001].astype(np.int64))
    total = 0.0
    with torch.no_grad():
        for start in range(0, 1000, spec.shape.seq_len):
            inputs = stream[start : min(start + spec.shape.seq_len, 1000)][None]
            targets = stream[start + 1 : start + 1 + inputs.shape[1]][None]
            total += token_nats(module(inputs), targets).double().sum().item()
    # One window at a time instead of batches: the forward pass differs by fp32 rounding.
    assert result.val_loss_nats_per_token == pytest.approx(total / 1000, rel=1e-6)
    assert result.val_tokens == 1000


def test_result_counts_equal_the_module(tiny_spec: Spec) -> None:
    spec = tiny_spec(model={"tied": False})
    _, result = run_to_end(spec)
    model = build_module(spec).model
    total = sum(p.numel() for p in model.parameters())
    tables = model.embedding.weight.numel() + model.head.weight.numel()
    assert (result.params_total, result.params_embedding) == (total, tables)
    assert result.params_non_embedding == total - tables
    assert result.flops == result.flops_per_token * result.tokens


def test_micro_batch_size_changes_only_rounding(tiny_spec: Spec, tmp_path: Path) -> None:
    curves = []
    for micro in (1, 2, 4, 8):
        spec = tiny_spec(
            runs_dir=str(tmp_path / str(micro)), trainer={"micro_batch_sequences": micro}
        )
        run, _ = run_to_end(spec)
        curves.append([loss for loss, _, _ in losses(run)])
    assert len({RunDirectory.of(spec).path.name}) == 1
    for curve in curves[:-1]:
        # The batches are the same; 20 AdamW steps amplify the rounding of sums in another order.
        np.testing.assert_allclose(curve, curves[-1], rtol=2e-5)


def test_same_seed_repeats_and_other_seed_differs(tiny_spec: Spec, tmp_path: Path) -> None:
    curves = [
        losses(run_to_end(tiny_spec(seed=seed, runs_dir=str(tmp_path / name)))[0])
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert curves[0] == curves[1] != curves[2]


def test_error_for_token_budget_beyond_max_epochs(tiny_spec: Spec) -> None:
    spec = tiny_spec(budget={"tokens": "100m"})
    with pytest.raises(ConfigError, match="passes over the training text"):
        run_to_end(spec)
    assert not RunDirectory.of(spec).path.exists()  # a refused run leaves nothing


def test_error_when_resuming_with_other_data(tiny_spec: Spec) -> None:
    spec = tiny_spec()
    run, _ = run_to_end(spec)
    (run.path / "data.json").write_text('{"fingerprint": "another"}')
    with pytest.raises(RunError, match="was trained on data another"):
        run_to_end(spec)


def test_overfits_one_batch(tiny_spec: Spec) -> None:
    """The loss of a repeated batch approaches 0, so gradients reach all parameters."""
    module = build_module(tiny_spec())
    batch = torch.randint(99, (4, 17), generator=torch.manual_seed(0))
    optimizer = module.build_optimizer()
    for _ in range(150):
        loss = token_nats(module(batch[:, :-1]), batch[:, 1:]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1
