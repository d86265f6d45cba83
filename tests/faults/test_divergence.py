"""Divergence: a step with a non-finite loss or gradient is not taken, and stops the run with a result."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch

from slm.errors import Diverged
from slm.run.spec import RunSpec
from slm.tracking.run_dir import RunDirectory
from slm.training.nonfinite import NonFiniteCheck
from slm.training.step import StepOutput, TrainingStep
from tests.running import run_to_end

Spec = Callable[..., RunSpec]


def test_divergence_is_written_to_the_result(
    tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(seed=3)
    original = TrainingStep.take

    def poison(self: TrainingStep, step: int, pairs: torch.Tensor) -> StepOutput:
        if step == 5:
            with torch.no_grad():
                self.module.model.blocks[1].mlp_norm.weight[0] = float("inf")
        return original(self, step, pairs)

    monkeypatch.setattr(TrainingStep, "take", poison)
    with pytest.raises(Diverged, match="step 5: loss nan"):
        run_to_end(spec)
    run = RunDirectory.of(spec)
    result = run.result()
    assert run.state() == "diverged" and result is not None
    assert result.status == "diverged" and result.val_loss_nats_per_token is None
    assert result.steps == 5 and result.tokens == 5 * spec.batch_tokens
    assert result.divergence is not None
    assert result.divergence["step"] == 5 and result.divergence["batch_id"] == "seed=3 step=5"
    groups = result.divergence["grad_norm_by_group"]
    parts = ("attention_norm", "attention", "mlp_norm", "mlp")
    of_blocks = {f"blocks.{i}.{part}" for i in (0, 1) for part in parts}
    assert set(groups) == {"embedding", "norm", *of_blocks}
    assert "nan" in groups.values()
    json.loads((run.path / "result.json").read_text())  # strict JSON: no bare NaN


def test_deferred_check_skips_the_step_without_synchronizing(
    tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the GPU code path on a CPU: the optimizer skips steps by a flag on the device.

    The host reads the flag only when a metric row is written.
    """
    spec = tiny_spec(trainer={"log_every_steps": 10})
    original = TrainingStep.take
    history: list[torch.Tensor] = []

    def poison(self: TrainingStep, step: int, pairs: torch.Tensor) -> StepOutput:
        self.finite_check.is_immediate = False
        gain = self.module.model.norm.weight
        before = gain.detach().clone()
        if step == 5:
            gain.data[0] = float("nan")
        outputs = original(self, step, pairs)
        if step == 5:
            gain.data.copy_(before)  # undo only the NaN: `history` would show a step that was taken
        history.append(self.module.model.embedding.weight.detach().clone())
        return outputs

    monkeypatch.setattr(TrainingStep, "take", poison)
    with pytest.raises(Diverged, match="step 5: loss nan"):
        run_to_end(spec)
    assert not torch.equal(history[4], history[3])
    assert len(history) == 10 and all(torch.equal(table, history[4]) for table in history[5:])
    result = RunDirectory.of(spec).result()
    assert result is not None and result.steps == 5 and result.divergence is not None
    assert result.divergence["batch_id"] == "seed=0 step=5"


def test_steps_after_a_skipped_step_are_skipped() -> None:
    """The optimizer skips every later step until the host reads the flag."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    finite_check = NonFiniteCheck(["norm.weight"], seed=0, device=torch.device("cpu"))
    with pytest.raises(Diverged):
        finite_check.admit(7, torch.tensor(float("inf")), torch.tensor([1.0]), optimizer)
    weight.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(weight, torch.ones(3))


def test_large_finite_loss_does_not_stop_the_run(tiny_spec: Spec) -> None:
    _, result = run_to_end(tiny_spec(optimizer={"lr": 0.5}))
    assert result.status == "finished" and result.divergence is None


@pytest.mark.parametrize(
    ("gain", "state"),
    [pytest.param(1e6, "finished", id="large"), pytest.param(float("nan"), "diverged", id="nan")],
)
def test_extreme_validation_loss_is_a_result(
    tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch, gain: float, state: str
) -> None:
    """exp of a large loss exceeds a float, and a loss that is not finite is a divergence."""
    spec = tiny_spec()
    original = TrainingStep.take

    def scale(self: TrainingStep, step: int, pairs: torch.Tensor) -> StepOutput:
        output = original(self, step, pairs)
        if step == spec.steps - 1:
            self.module.model.norm.weight.data *= gain
        return output

    monkeypatch.setattr(TrainingStep, "take", scale)
    with pytest.raises(Diverged, match="validation") if state == "diverged" else nullcontext():
        run_to_end(spec)
    run = RunDirectory.of(spec)
    result = run.result()
    assert result is not None and result.status == run.state() == state
    assert result.steps == spec.steps and result.val_perplexity is None
    if state == "finished":
        assert (result.val_loss_nats_per_token or 0.0) > 710
    else:
        assert result.divergence is not None and result.divergence["step"] == spec.steps
