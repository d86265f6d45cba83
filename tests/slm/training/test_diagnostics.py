"""Weight norms, update-to-weight ratios and the residual stream, against plain computations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from slm.data.tokens.shards import PreparedData
from slm.model.build import load_weights
from slm.run.spec import RunSpec
from slm.tracking import run_dir
from slm.training.device.accelerator import set_threads
from slm.training.diagnostics import recorded_residual_rms, weight_statistics
from slm.training.distributed.workers import SINGLE_PROCESS
from slm.training.step import TrainingStep, build_module, build_step
from tests.running import assert_equal, checkpoint, losses, run_to_end, weights

pytestmark = pytest.mark.numeric

Spec = Callable[..., RunSpec]
PREFIXES = (run_dir.WEIGHT_NORM, run_dir.UPDATE_RATIO, run_dir.RESIDUAL_RMS)


def copied_weights(step: TrainingStep) -> dict[str, Tensor]:
    named = step.module.model.named_parameters()
    return {name: tensor.detach().double().clone() for name, tensor in named}


def plain_statistics(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    values: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for name, weight in after.items():
        group = "norm" if "norm" in name else "".join(g for g in ("embedding", "head") if g in name)
        group = group or ("attention" if ".attention." in name else "mlp")
        values[group]["weight"].append(weight.flatten())
        values[group]["update"].append((weight - before[name]).flatten())
    expected = {}
    for group, tensors in values.items():
        norm, update = (float(torch.cat(tensors[key]).norm()) for key in ("weight", "update"))
        expected |= {f"weights/norm/{group}": norm, f"weights/update_ratio/{group}": update / norm}
    return expected


@pytest.mark.parametrize("kind", ["standard", "mup", "completep"])
def test_weight_statistics_equal_those_of_copied_weights(tiny_spec: Spec, kind: str) -> None:
    """In the warmup, at the peak learning rate and in the decay; groups have different rates and decays."""
    model = {"tied": kind == "mup", "qk_norm": kind == "completep", "d_model": 48, "n_layers": 3}
    decay = {"weight_decay": 0.5, "lr": 0.01}
    spec = tiny_spec(model=model, optimizer=decay, parametrization={"kind": kind})
    set_threads(spec.config.trainer)
    step = build_step(spec)
    pairs = torch.randint(99, (8, 2, 32), generator=torch.Generator().manual_seed(0))
    for number in range(spec.steps):
        before = copied_weights(step)
        step.take(number, pairs)
        if number not in {0, 1, 8, 18}:
            continue
        after = copied_weights(step)
        found = weight_statistics(step, SINGLE_PROCESS, number + 1)
        # The weights are rounded to fp32 after the step, which changes a difference of them by about 1e-5.
        assert found == pytest.approx(plain_statistics(before, after), rel=1e-4)
        assert_equal(copied_weights(step), after)
        assert ("weights/norm/head" in found) == (kind != "mup")


def test_residual_rms_equals_that_of_a_plain_forward_pass(
    tiny_spec: Spec, prose: PreparedData
) -> None:
    spec = tiny_spec(model={"layer_sharing": 2}, data={"val_tokens": 20_000})
    run, _ = run_to_end(spec)
    (row,) = (row for row in run.read_metrics() if run_dir.VAL_LOSS in row)
    model = build_module(spec).model
    load_weights(model, {k.removeprefix("model."): v for k, v in weights(run).items()})
    stream = np.concatenate(prose.split("val"))[:16_384].astype(np.int64)  # the first batch
    with torch.no_grad():
        x = model.embedding(torch.from_numpy(stream).view(-1, 32))
        expected = [x.double().square().mean().sqrt().item()]
        for block in (model.blocks[0], model.blocks[0], model.blocks[1], model.blocks[1]):
            x = block(x, model.cos_sin, None)
            expected.append(x.double().square().mean().sqrt().item())
    keys = [f"residual/rms/0{layer}" for layer in range(5)]
    assert [key for key in row if key.startswith("residual/")] == keys
    assert [row[key] for key in keys] == pytest.approx(expected, rel=1e-5)


def test_hooks_are_removed_when_a_validation_is_interrupted(tiny_spec: Spec) -> None:
    model = build_module(tiny_spec()).model
    with pytest.raises(KeyboardInterrupt), recorded_residual_rms(model):
        assert model.embedding._forward_hooks and model.blocks[1]._forward_hooks
        raise KeyboardInterrupt
    assert not any(module._forward_hooks for module in model.modules())


def test_validations_do_not_change_the_training(tiny_spec: Spec, tmp_path: Path) -> None:
    often, once = (
        run_to_end(tiny_spec(runs_dir=str(tmp_path / str(every)), trainer={"validate_every_steps": every}))[0]
        for every in (3, None)
    )  # fmt: skip
    assert losses(often) == losses(once)
    saved, other = checkpoint(often), checkpoint(once)
    for part in ("state_dict", "optimizer", "random_states"):
        assert_equal(saved[part], other[part])
    rows = often.read_metrics()
    has_diagnostics = [
        row[run_dir.STEP] for row in rows if any(k.startswith(PREFIXES) for k in row)
    ]
    assert has_diagnostics == [3, 6, 9, 12, 15, 18, 20]
    assert all(row[run_dir.PEAK_MEMORY] > 1e6 for row in rows if run_dir.TRAIN_LOSS in row)
