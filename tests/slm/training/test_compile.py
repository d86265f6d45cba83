"""When blocks are compiled, and that compilation changes only rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import distributed
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from slm.errors import ConfigError
from slm.model.build import build_model
from slm.run import compile_rule
from slm.run.compile_rule import MIN_CPU_BLOCK_PASSES, MIN_CPU_FLOPS, compile_decision
from slm.run.spec import RunSpec
from slm.tracking import run_dir
from slm.training.device import compile as compilation
from slm.training.device.compile import (
    compile_blocks,
    decide_compile,
    missing_compiler,
)
from slm.training.step import build_module
from slm.training.throughput_probe import probe_config
from tests.running import losses, run_to_end

Spec = Callable[..., RunSpec]


DIAGNOSTICS = (run_dir.RESIDUAL_RMS, run_dir.WEIGHT_NORM, run_dir.UPDATE_RATIO)


def is_compiled(spec: RunSpec) -> bool:
    compiled = {block._compiled_call_impl is not None for block in build_module(spec).model.blocks}
    assert len(compiled) == 1
    return compiled.pop()


def test_auto_compiles_runs_of_many_flops_only(
    tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_rule, "MIN_CPU_BLOCK_PASSES", 10**12)
    spec = tiny_spec()
    steps = int(MIN_CPU_FLOPS // (spec.flops_per_token * spec.batch_tokens))
    for count, expected in ((20, False), (steps, False), (steps + 1, True)):
        spec = tiny_spec(budget={"tokens": count * 256})
        assert compile_decision(spec, "cpu").compiles == is_compiled(spec) == expected


def test_auto_compiles_runs_of_many_small_steps(tiny_spec: Spec) -> None:
    depth = tiny_spec().shape.depth
    steps = MIN_CPU_BLOCK_PASSES // depth
    for count, expected in ((steps - 1, False), (steps, True)):
        spec = tiny_spec(budget={"tokens": count * 256})
        assert spec.flops < MIN_CPU_FLOPS
        assert compile_decision(spec, "cpu").compiles == is_compiled(spec) == expected
    halves = {"micro_batch_sequences": tiny_spec().batch_sequences // 2}
    assert compile_decision(
        tiny_spec(budget={"tokens": steps * 128}, trainer=halves), "cpu"
    ).compiles


def test_compile_on_and_off_also_as_yaml_booleans(tiny_spec: Spec) -> None:
    for on in ("on", True):
        assert is_compiled(tiny_spec(trainer={"compile": on}))
    for off in ("off", False):
        spec = tiny_spec(trainer={"compile": off})
        assert not compile_decision(replace(spec, steps=10**9), "cpu").compiles
    with pytest.raises(ConfigError, match="did you mean auto"):
        tiny_spec(trainer={"compile": "aut"})


@pytest.fixture
def no_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder the whole PATH, without variables that name compilers or headers."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX", "CPATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def add_command(folder: Path, name: str) -> None:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


def test_auto_does_not_compile_without_a_compiler(
    tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(compile_rule, "MIN_CPU_FLOPS", 0)
    with caplog.at_level("INFO"):
        assert not is_compiled(tiny_spec())
    (line,) = (text for text in caplog.messages if text.startswith("blocks are not compiled"))
    assert "torch.compile needs a C++ compiler" in line
    with pytest.raises(ConfigError, match=r"trainer\.compile=on.*C\+\+ compiler"):
        build_module(tiny_spec(trainer={"compile": "on"}))
    decision = decide_compile(tiny_spec(), "cpu")
    assert not decision.compiles and "C++ compiler" in decision.reason


def test_compilers_that_inductor_and_triton_need(
    no_tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = no_tools / "include"
    monkeypatch.setattr(compilation, "python_include_folders", lambda: [headers])
    assert "C++ compiler" in str(missing_compiler("cpu"))
    assert "gcc or clang" in str(missing_compiler("gpu"))
    for name in ("g++", "clang++"):  # the second one is the default on macOS
        add_command(no_tools, name)
    assert "gcc or clang" in str(missing_compiler("gpu")), "Triton does not use g++"
    for accelerator in ("cpu", "gpu"):
        add_command(no_tools, "clang")
        assert "Python.h" in str(missing_compiler(accelerator))
    headers.mkdir()
    (headers / "Python.h").touch()
    assert missing_compiler("cpu") is missing_compiler("gpu") is None
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "CC" in str(missing_compiler("gpu")) and missing_compiler("cpu") is None


def test_headers_are_also_found_in_cpath(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CPATH", f"/nowhere:{tmp_path}")
    folders = compilation.python_include_folders()
    assert folders[-1] == tmp_path and len(folders) == 3


def test_ddp_compiles_whole_blocks(tiny_spec: Spec) -> None:
    from torch._dynamo import config as dynamo_config

    with dynamo_config.patch(optimize_ddp=True):
        assert is_compiled(tiny_spec(trainer={"compile": "on"}))
        assert dynamo_config.optimize_ddp is True
        assert is_compiled(tiny_spec(trainer={"compile": "on", "strategy": "ddp"}))
        assert dynamo_config.optimize_ddp is False


def test_probe_is_compiled_like_the_run_that_it_predicts(tiny_spec: Spec) -> None:
    for tokens, expected in ((20 * 256, "off"), (10**13, "on")):
        spec = tiny_spec(budget={"tokens": tokens})
        short = probe_config(spec, 1.0, "folder")
        assert short.trainer.compile == expected
        assert short.budget.tokens is not None and short.budget.tokens <= 2000 * 256


def test_compilation_keeps_the_state_dict_keys(tiny_spec: Spec) -> None:
    plain, compiled = build_module(tiny_spec()), build_module(tiny_spec(trainer={"compile": "on"}))
    assert list(plain.state_dict()) == list(compiled.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointing", "dropout"), [(False, 0.0), (True, 0.2)])
def test_blocks_share_one_graph_and_train_the_same(
    tiny_spec: Spec, tmp_path: Path, checkpointing: bool, dropout: float
) -> None:
    curves, diagnostics = {}, {}
    for choice in ("off", "on"):
        torch._dynamo.reset()
        counters.clear()
        spec = tiny_spec(
            runs_dir=str(tmp_path / choice),
            model={"n_layers": 5, "dropout": dropout},
            data={"val_tokens": 1000},  # not a multiple of the batch
            trainer={
                "compile": choice,
                "activation_checkpointing": checkpointing,
                "validate_every_steps": 7,  # its hooks must not cause a recompilation
            },
        )
        run, result = run_to_end(spec)
        assert result.val_loss_nats_per_token is not None
        curves[choice] = [*(loss for loss, _, _ in losses(run)), result.val_loss_nats_per_token]
        rows = [row for row in run.read_metrics() if run_dir.VAL_LOSS in row]
        keys = sorted(key for key in rows[0] if key.startswith(DIAGNOSTICS))
        assert len(rows) == 3 and len(keys) == 6 + 2 * 4  # depths, and tensor groups
        diagnostics[choice] = [[row[key] for key in keys] for row in rows]
        assert counters["stats"]["unique_graphs"] == (1 if choice == "on" else 0)
    # 20 AdamW steps amplify rounding: compiled sums are fused and in a different order.
    np.testing.assert_allclose(curves["on"], curves["off"], rtol=5e-5)
    np.testing.assert_allclose(diagnostics["on"], diagnostics["off"], rtol=1e-3)


@pytest.fixture
def group_of_one_process(tmp_path: Path) -> Iterator[None]:
    store = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.usefixtures("group_of_one_process")
def test_each_block_is_one_graph_under_ddp(tiny_spec: Spec) -> None:
    """Blocks of 3 MB exceed DDP's first bucket of 1 MB, where dynamo would cut the graph by default."""
    torch._dynamo.reset()
    counters.clear()
    spec = tiny_spec(
        model={"d_model": 256, "n_heads": 8}, trainer={"compile": "on", "strategy": "ddp"}
    )
    model = build_model(spec.config, spec.shape)
    with torch._dynamo.config.patch(optimize_ddp=True):
        compile_blocks(model, spec, "cpu")
        tokens = torch.zeros(2, 32, dtype=torch.long)
        DistributedDataParallel(model)(tokens, targets=tokens).objective.backward()
    # A cut graph is compiled in parts, each a graph for autograd, and resumed in further frames.
    assert counters["aot_autograd"]["total"] == counters["frames"]["total"] == 1
