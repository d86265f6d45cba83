"""When blocks are compiled, and that compilation changes only rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from slm.errors import ConfigError
from slm.run.spec import RunSpec
from slm.training import compilation
from slm.training.device.compile import MIN_CPU_FLOPS, MIN_GPU_STEPS, should_compile
from slm.training.runner import build_module
from tests.running import losses, run_to_end

Spec = Callable[..., RunSpec]


def is_compiled(spec: RunSpec) -> bool:
    compiled = {block._compiled_call_impl is not None for block in build_module(spec).model.blocks}
    assert len(compiled) == 1
    return compiled.pop()


def test_auto_compiles_long_runs_only(tiny_spec: Spec) -> None:
    spec = tiny_spec()
    steps = int(MIN_CPU_FLOPS // (spec.flops_per_token * spec.batch_tokens))
    for count, expected in ((20, False), (steps, False), (steps + 1, True)):
        spec = tiny_spec(budget={"tokens": count * 256})
        assert should_compile(spec, "cpu") == is_compiled(spec) == expected
    assert not should_compile(tiny_spec(budget={"tokens": (MIN_GPU_STEPS - 1) * 256}), "gpu")
    assert should_compile(tiny_spec(budget={"tokens": MIN_GPU_STEPS * 256}), "gpu")


def test_branches_of_a_trunk_get_the_same_decision(tiny_spec: Spec) -> None:
    tokens = MIN_GPU_STEPS * 256
    for shortest, expected in ((tokens, True), (tokens - 256, False)):
        schedule = {"warmup_budget_tokens": shortest}
        for budget in (tokens, 3 * tokens):
            branch = tiny_spec(budget={"tokens": budget}, schedule=schedule)
            assert should_compile(branch, "gpu") == expected


def test_compile_on_and_off_also_as_yaml_booleans(tiny_spec: Spec) -> None:
    for on in ("on", True):
        assert is_compiled(tiny_spec(trainer={"compile": on}))
    for off in ("off", False):
        spec = tiny_spec(trainer={"compile": off})
        assert not should_compile(replace(spec, steps=10**9), "cpu")
    with pytest.raises(ConfigError, match="did you mean auto"):
        tiny_spec(trainer={"compile": "aut"})


def test_auto_does_not_compile_without_a_compiler(
    tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(compilation, "MIN_CPU_FLOPS", 0)
    with caplog.at_level("INFO"):
        assert not is_compiled(tiny_spec())
    assert "no C++ compiler is found" in caplog.text
    with pytest.raises(ConfigError, match=r"trainer\.compile=on.*C\+\+ compiler"):
        build_module(tiny_spec(trainer={"compile": "on"}))


def test_compilation_keeps_the_state_dict_keys(tiny_spec: Spec) -> None:
    plain, compiled = build_module(tiny_spec()), build_module(tiny_spec(trainer={"compile": "on"}))
    assert list(plain.state_dict()) == list(compiled.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointing", "dropout"), [(False, 0.0), (True, 0.0), (True, 0.2)])
def test_blocks_share_one_graph_and_train_the_same(
    tiny_spec: Spec, tmp_path: Path, checkpointing: bool, dropout: float
) -> None:
    curves = {}
    for choice in ("off", "on"):
        torch._dynamo.reset()
        counters.clear()
        spec = tiny_spec(
            runs_dir=str(tmp_path / choice),
            model={"n_layers": 5, "dropout": dropout},
            data={"val_tokens": 1000},  # not a multiple of the batch
            trainer={"compile": choice, "activation_checkpointing": checkpointing},
        )
        run, result = run_to_end(spec)
        assert result.val_loss_nats_per_token is not None
        curves[choice] = [*(loss for loss, _, _ in losses(run)), result.val_loss_nats_per_token]
        assert counters["stats"]["unique_graphs"] == (1 if choice == "on" else 0)
    # 20 AdamW steps amplify rounding: compiled sums are fused and in a different order.
    np.testing.assert_allclose(curves["on"], curves["off"], rtol=5e-5)
