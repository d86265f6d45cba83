"""Choice of the micro-batch size, its record in env.json, and the error message when memory runs out."""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slm.architecture.memory import format_bytes, largest_micro_batch
from slm.config.hydra import compose_config
from slm.data.tokens.prepare import prepare
from slm.errors import ConfigError
from slm.run.cli import describe
from slm.run.micro_batch import MARGINS, choose_micro_batch, execution_of, micro_batch_of
from slm.run.spec import RunSpec, resolve
from slm.studies.cells import Cell
from slm.studies.plan_tables import ladder_table
from slm.tracking.run_dir import RunDirectory
from slm.training.device.memory import (
    _free_of_cgroup,
    free_bytes,
    settle_micro_batch,
    unused_bytes,
)
from slm.training.execute import train_all
from tests.conftest import ROOT, cli_command, cli_env
from tests.running import counted_steps, run_to_end

Spec = Callable[..., RunSpec]
ON_LINUX = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")


def run_child(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=cli_env(), capture_output=True, text=True, check=False, **options
    )


def test_auto_is_the_largest_divisor_that_fits(tiny_spec: Spec) -> None:
    spec = tiny_spec(
        optimizer={"global_batch_tokens": 12 * 32}, trainer={"micro_batch_sequences": "auto"}
    )
    needed = {n: micro_batch_of(spec, "gpu", n).plan.total_bytes for n in (1, 2, 3, 4, 6, 12)}
    assert sorted(needed.values()) == list(needed.values())
    for size, larger in zip((1, 2, 3, 4, 6), (2, 3, 4, 6, 12), strict=True):
        for usable_bytes in (needed[size], needed[larger] - 1):
            free = usable_bytes / (1 - MARGINS["gpu"]) + 1
            chosen = choose_micro_batch(spec, "gpu", free)
            assert (chosen.sequences, chosen.count) == (size, 12 // size)
            assert chosen.plan.total_bytes == needed[size]
    execution = execution_of(spec.config, "gpu")
    assert largest_micro_batch(spec.shape, execution, 12, needed[1] - 1) is None


def test_resumed_run_keeps_its_micro_batch_while_it_fits(tiny_spec: Spec) -> None:
    spec = tiny_spec(trainer={"micro_batch_sequences": "auto"})
    enough = 1e9
    assert choose_micro_batch(spec, "cpu", enough).sequences == spec.batch_sequences == 8
    assert choose_micro_batch(spec, "cpu", enough, before=2).sequences == 2
    assert choose_micro_batch(spec, "cpu", enough, before=3).sequences == 8  # no divisor
    scarce = micro_batch_of(spec, "cpu", 1).plan.total_bytes / (1 - MARGINS["cpu"]) + 1
    assert choose_micro_batch(spec, "cpu", scarce, before=8).sequences == 1


def test_error_lists_fixes_if_no_sequence_fits(tiny_spec: Spec) -> None:
    model = {"n_layers": 64, "seq_len": 128}
    spec = tiny_spec(model=model, trainer={"micro_batch_sequences": "auto"})
    needed = micro_batch_of(spec, "gpu", 1).plan.total_bytes
    with pytest.raises(ConfigError) as refused:
        choose_micro_batch(spec, "gpu", needed)
    (problem,) = refused.value.problems
    assert problem.key == "trainer.micro_batch_sequences"
    for n_bytes in (needed, needed * (1 - MARGINS["gpu"])):
        assert format_bytes(n_bytes) in problem.rule
    trainer = {"micro_batch_sequences": 1, "activation_checkpointing": True}
    reduced = micro_batch_of(tiny_spec(model=model, trainer=trainer), "gpu").plan.total_bytes
    assert f"activation_checkpointing=true needs {format_bytes(reduced)}" in problem.fix
    assert reduced < needed / 2


@pytest.mark.parametrize(("requested", "is_logged"), [("auto", True), (4, False), (None, False)])
def test_run_records_its_memory_plan(
    tiny_spec: Spec, caplog: pytest.LogCaptureFixture, requested: Any, is_logged: bool
) -> None:
    spec = tiny_spec(trainer={"micro_batch_sequences": requested}, budget={"tokens": 512})
    assert spec.run_id == tiny_spec(budget={"tokens": 512}).run_id
    logging.getLogger("slm").propagate = True
    with caplog.at_level(logging.INFO, logger="slm"):
        run, _ = run_to_end(spec)
    assert ("micro-batches of 8 of 8 sequences" in caplog.text) is is_logged
    assert "WARN" not in caplog.text
    recorded = json.loads((run.path / "env.json").read_text())["memory"]
    plan = micro_batch_of(spec, "cpu", requested if requested == 4 else 8).plan
    assert recorded["micro_batch_sequences"] == (4 if requested == 4 else 8)
    assert recorded["plan"]["total_bytes"] == plan.total_bytes == sum(plan.parts().values())


def test_warning_if_configured_micro_batch_does_not_fit(
    tiny_spec: Spec, caplog: pytest.LogCaptureFixture
) -> None:
    shape = {"n_layers": 200, "d_model": 4096, "n_heads": 32, "n_kv_heads": 8, "seq_len": 4096}
    batch = {"global_batch_tokens": 64 * 4096}
    spec = tiny_spec(model=shape, optimizer=batch, trainer={"micro_batch_sequences": 32})
    with caplog.at_level(logging.WARNING, logger="slm"):
        settled = settle_micro_batch(spec, RunDirectory.of(spec), "cpu")
    assert settled.sequences == 32
    assert "trainer.micro_batch_sequences=16 needs" in caplog.text
    assert format_bytes(settled.plan.total_bytes) in caplog.text


def test_auto_uses_no_more_than_the_share_of_the_gpu() -> None:
    overrides = ["model=mobilellm_125m", "trainer=gpu", "optimizer.global_batch_tokens=524288"]
    whole, quarter = (
        micro_batch_of(resolve(compose_config([*overrides, *share])), "gpu")
        for share in ([], ["trainer.gpu_memory_fraction=0.25"])
    )
    assert whole.sequences == 4 * quarter.sequences == 32
    assert quarter.plan.total_bytes <= 0.25 * 80e9 * (1 - MARGINS["gpu"])


def test_unused_bytes_of_a_gpu_respect_the_share_of_the_process() -> None:
    total, free, reserved, allocated = 1000, 700, 100, 40
    assert unused_bytes(free, total, reserved, allocated, None) == 760
    assert unused_bytes(free, total, reserved, allocated, 0.5) == 460
    assert (
        unused_bytes(free, total, reserved, allocated, 0.9) == 760
    )  # other processes use the rest
    assert unused_bytes(free, total, reserved, allocated, 0.01) == 0


def test_free_memory_of_all_ranks_can_be_given(tiny_spec: Spec) -> None:
    spec = tiny_spec(trainer={"micro_batch_sequences": "auto"})
    run = RunDirectory.of(spec)
    scarce = micro_batch_of(spec, "cpu", 1).plan.total_bytes / (1 - MARGINS["cpu"]) + 1
    assert settle_micro_batch(spec, run, "cpu", int(scarce) + 1).sequences == 1
    assert settle_micro_batch(spec, run, "cpu", 10**9).sequences == 8


def test_cgroup_memory_limit_is_read(tmp_path: Path) -> None:
    group = tmp_path / "group"
    group.mkdir()
    names = "memory.max", "memory.current", "inactive_file"
    assert list(_free_of_cgroup(group, *names)) == []  # no files
    (group / "memory.stat").write_text("anon 100\ninactive_file 50\n")
    (group / "memory.current").write_text("400\n")
    (group / "memory.max").write_text("max\n")
    assert list(_free_of_cgroup(group, *names)) == []
    (group / "memory.max").write_text("1000\n")
    assert list(_free_of_cgroup(group, *names)) == [650]


@ON_LINUX
def test_address_space_limit_bounds_free_bytes() -> None:
    limit = 3 * 2**30
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n"
        "from slm.training.device.memory import free_bytes\n"
        "print(free_bytes('cpu'))"
    )
    free = int(run_child([sys.executable, "-c", code]).stdout)
    assert 0 < free < limit < free_bytes("cpu")


# Four steps of 8 sequences with 134 MB of attention scores each, and little computation.
LARGE_SCORES = [
    "model=tiny",
    "model.n_layers=2",
    "model.d_model=32",
    "model.n_heads=16",
    "model.n_kv_heads=16",
    "model.d_head=null",
    "model.d_ff=32",
    "model.seq_len=1024",
    "model.attention=reference",
    "optimizer.global_batch_tokens=8192",
    "budget=tokens",
    "budget.tokens=32768",
    "data.val_tokens=1024",
    "trainer.threads=1",
    "trainer.compile=off",
    "trainer.checkpoint_every_steps=1",
    "tracking=disabled",
]


@pytest.mark.slow
@ON_LINUX
def test_auto_respects_an_address_space_limit(tmp_path: Path, cache_dir: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (7 * 2**29, 7 * 2**29))

    prepare(
        compose_config([*LARGE_SCORES, f"cache_dir={cache_dir}"])
    )  # outside of the limit, because it needs memory too
    command = cli_command(
        "train.py", tmp_path, cache_dir, *LARGE_SCORES, "trainer.micro_batch_sequences=auto"
    )
    done = run_child(command, preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    (logged,) = (line for line in done.stderr.splitlines() if line.startswith("micro-batches of"))
    (env,) = (tmp_path / "runs").glob("*/*/env.json")
    recorded = json.loads(env.read_text())["memory"]
    assert recorded["micro_batch_sequences"] in (1, 2, 4)
    assert logged.startswith(f"micro-batches of {recorded['micro_batch_sequences']} of 8 sequences")
    assert json.loads((env.parent / "status.json").read_text())["state"] == "finished"


LIMITED_FROM_STEP_2 = """
import resource, sys
from slm.cli import run_and_exit
from slm.config.hydra import compose_config
from slm.training.execute import train_all
from slm.training.step import TrainingStep

take = TrainingStep.take

def limited(self, step, pairs):
    if step == 2:
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + 5 * 10**8
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return take(self, step, pairs)

TrainingStep.take = limited
run_and_exit(lambda: train_all(compose_config(sys.argv[1:])))
"""


@pytest.mark.slow
@ON_LINUX
def test_out_of_memory_error_lists_fixes_and_run_resumes(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [f"runs_dir={tmp_path / 'runs'}", f"cache_dir={cache_dir}"]
    command = [sys.executable, "-c", LIMITED_FROM_STEP_2, *LARGE_SCORES, *folders]
    failed = run_child(command)
    assert failed.returncode == 1, failed.stderr
    message = failed.stderr[failed.stderr.index("out of memory") :]
    assert "DefaultCPUAllocator: can't allocate memory: you tried to allocate" in message
    plan = micro_batch_of(resolve(compose_config([*LARGE_SCORES, *folders])), "cpu").plan
    assert f"for 8 sequences at once: {format_bytes(plan.total_bytes)}" in message
    assert f"activations {format_bytes(plan.activations_bytes)}" in message
    assert "trainer.micro_batch_sequences=4 needs" in message
    assert "trainer.activation_checkpointing=true needs" in message
    assert "Traceback" not in failed.stderr

    config = compose_config([*LARGE_SCORES, *folders, "trainer.micro_batch_sequences=2"])
    run = RunDirectory.of(resolve(config))
    assert run.state() == "failed" and "you tried" in (run.path / "traceback.txt").read_text()
    with counted_steps(monkeypatch) as steps:
        train_all(config)
    assert steps == [2, 3] and run.state() == "finished"


def test_describe_prints_the_memory_plan(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["model=mobilellm_125m", "trainer=gpu", "optimizer.global_batch_tokens=524288"]
    describe([*arguments, "trainer.micro_batch_sequences=auto"], json=True)
    described = json.loads(capsys.readouterr().out)["memory"]
    size, limit = described["micro_batch_sequences"], 80e9 * (1 - MARGINS["gpu"])
    assert described["plan"]["total_bytes"] <= limit
    describe([*arguments, f"trainer.micro_batch_sequences={2 * size}"], json=True)
    doubled = json.loads(capsys.readouterr().out)["memory"]
    assert doubled["plan"]["total_bytes"] > limit
    describe([*arguments, f"trainer.micro_batch_sequences={size}"], json=False)
    printed = capsys.readouterr().out
    assert format_bytes(described["plan"]["total_bytes"]) in printed
    assert f"{256 // size} micro-batches of {size} sequences" in printed


def test_study_plan_lists_memory_and_micro_batch_of_each_shape(tiny_spec: Spec) -> None:
    spec = tiny_spec(trainer={"micro_batch_sequences": 2})
    table = ladder_table([Cell(spec, "tiny", "one")])
    columns = {column.name: list(column.cells) for column in table.columns}
    heading = next(name for name in columns if name.startswith("memory per rank"))
    unit = {"(KB)": 1e3, "(MB)": 1e6}[heading.split()[-1]]
    needed = micro_batch_of(spec, "cpu").plan.total_bytes
    (printed,) = columns[heading]
    assert float(str(printed)) * unit == pytest.approx(needed, rel=0.01)
    assert columns["sequences per pass"] == ["2"]
