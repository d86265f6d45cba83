"""A step that cannot be taken ends the run with a result, on any device, and loses nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from slm.errors import Diverged
from slm.run_spec import RunSpec
from slm.tracking.record import RunDirectory
from slm.training.divergence import FiniteSteps
from slm.training.module import LanguageModule
from tests.running import run_to_end

Spec = Callable[..., RunSpec]


def test_divergence_is_a_result(tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny_spec(seed=3)
    original = LanguageModule.take_step

    def poison(self: LanguageModule, step: int, batch: torch.Tensor) -> dict[str, Any]:
        if step == 5:
            with torch.no_grad():
                self.model.blocks[1].mlp_norm.weight[0] = float("inf")
        return original(self, step, batch)

    monkeypatch.setattr(LanguageModule, "take_step", poison)
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
    assert set(groups) == {
        "embedding", "norm",
        *(f"blocks.{i}.{part}" for i in (0, 1)
          for part in ("attention_norm", "attention", "mlp_norm", "mlp")),
    }  # fmt: skip
    assert "nan" in groups.values()
    json.loads((run.path / "result.json").read_text())  # strict JSON: no bare NaN


def test_on_a_gpu_the_step_is_not_taken_and_nobody_waits() -> None:
    """The path of other devices, on CPU tensors: the optimizer reads the flag by itself."""

    class Patient(FiniteSteps):
        def check(self) -> None:
            pass

    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    watch = Patient(["norm.weight"], seed=0, device=torch.device("cpu"))
    history = []
    for step, loss in enumerate([1.0, float("nan"), 1.0]):
        weight.grad = torch.full((3,), 0.5 + step)
        watch.admit(step, torch.tensor(loss), torch.tensor([0.5 + step]), optimizer)
        optimizer.step()
        history.append(weight.detach().clone())
    assert not torch.equal(history[0], torch.ones(3))
    assert torch.equal(history[1], history[0]), "the step that is not finite is not taken"
    assert optimizer.state[weight]["step"].item() == 1
    with pytest.raises(Diverged) as caught:
        FiniteSteps.check(watch)
    assert caught.value.evidence is not None
    assert caught.value.evidence["step"] == 1
    assert caught.value.evidence["grad_norm_by_group"] == {"norm": 1.5}


def test_later_steps_wait_for_the_verdict() -> None:
    """What follows a refused step is refused too, until somebody looks."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    watch = FiniteSteps(["norm.weight"], seed=0, device=torch.device("cpu"))
    with pytest.raises(Diverged):
        watch.admit(7, torch.tensor(float("inf")), torch.tensor([1.0]), optimizer)
    weight.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(weight, torch.ones(3))


def test_a_huge_but_finite_loss_goes_on(tiny_spec: Spec) -> None:
    _, result = run_to_end(tiny_spec(optimizer={"lr": 0.5}))
    assert result.status == "finished" and result.divergence is None
