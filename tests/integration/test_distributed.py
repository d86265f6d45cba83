"""Distributed runs: results equal those of one process; all ranks start, stop and fail together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slm.config.schema import Config
from slm.files import read_json
from slm.run.spec import resolve
from slm.tracking import run_dir
from slm.tracking.run_dir import RunDirectory
from tests.conftest import PATIENCE_SECONDS, ROOT, Cli, cli_env
from tests.ranks import Ending, Job, endings, module_arguments, run_torchrun, train_on_ranks
from tests.running import (
    assert_equal,
    assert_same_run,
    checkpoint,
    counted_steps,
    losses,
    power_cut,
    run_to_end,
)

Make = Callable[..., Config]
B = 256  # tokens of a batch
TOLERANCE = 1e-6  # relative, of losses: sums over ranks are rounded in a different order
DIAGNOSTICS = (run_dir.WEIGHT_NORM, run_dir.UPDATE_RATIO, run_dir.RESIDUAL_RMS)

SETTINGS: dict[str, dict[str, Any]] = {
    # Three validation batches for two ranks: one rank has no batch in the second round.
    "plain": {"data": {"val_tokens": 40_000}},
    "micro-batches": {"trainer": {"micro_batch_sequences": 1, "validate_every_steps": 7}},
    "nine rows": {
        "optimizer": {"global_batch_tokens": 9 * 32},
        "budget": {"tokens": 20 * 9 * 32},
        "trainer": {"micro_batch_sequences": 3},
    },
    "switches": {
        "model": {"tied": False, "layer_sharing": 2, "qk_norm": True, "document_mask": True},
        "optimizer": {"z_loss": 1e-3},
        "trainer": {"activation_checkpointing": True},
    },
    "khop": {
        "data": {"source": "khop", "val_tokens": 40_000},
        "tokenizer": {"kind": "symbols"},
        "trainer": {"micro_batch_sequences": 2},
    },
}


def on_ranks(config: Config, strategy: str, processes: int = 2, runs: Path | None = None) -> Config:
    """Return the config with the given strategy, number of devices and runs_dir."""
    trainer = replace(config.trainer, strategy=strategy, devices=processes)
    runs_dir = config.runs_dir if runs is None else str(runs)
    return replace(config, trainer=trainer, runs_dir=runs_dir)


def run_of(config: Config) -> RunDirectory:
    return RunDirectory.of(resolve(config))


def assert_close(ours: RunDirectory, theirs: RunDirectory) -> None:
    """Assert equal rows and results up to rounding, and checkpoints of the same structure."""
    rows, others = ours.read_metrics(), theirs.read_metrics()
    assert [row.keys() for row in rows] == [row.keys() for row in others]
    for key in (run_dir.TRAIN_LOSS, run_dir.VAL_LOSS, run_dir.LR, run_dir.STEP):
        actual, expected = ([row[key] for row in side if key in row] for side in (rows, others))
        np.testing.assert_allclose(actual, expected, rtol=TOLERANCE)
    for prefix in (run_dir.GRAD_NORM, *DIAGNOSTICS):
        norms = (
            [row[key] for row in side for key in sorted(row) if key.startswith(prefix)]
            for side in (rows, others)
        )
        np.testing.assert_allclose(*norms, rtol=1e-4 if prefix == run_dir.GRAD_NORM else 1e-3)
    one, other = ours.result(), theirs.result()
    assert one is not None and other is not None
    assert (one.run_id, one.steps, one.val_tokens) == (other.run_id, other.steps, other.val_tokens)
    # Rounding may change one answer in 10,000, where two symbols have nearly the same probability.
    assert (one.val_errors or {}) == pytest.approx(other.val_errors or {}, abs=1e-4)
    saved, others_saved = checkpoint(ours), checkpoint(theirs)
    assert saved.keys() == others_saved.keys()
    assert saved["progress"].keys() == others_saved["progress"].keys()
    assert list(saved["state_dict"]) == list(others_saved["state_dict"])
    for name, tensor in saved["state_dict"].items():
        reference = others_saved["state_dict"][name]
        assert type(tensor) is type(reference) and tensor.dtype == reference.dtype
        np.testing.assert_allclose(tensor, reference, atol=1e-4)
    state, others_state = saved["optimizer"], others_saved["optimizer"]
    assert_equal(state["param_groups"], others_state["param_groups"])
    shapes = [
        {
            (name, key): value.shape
            for name, values in s["state"].items()
            for key, value in values.items()
        }
        for s in (state, others_state)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_ranks_train_the_run_of_one_process(
    tiny_config: Make, tmp_path: Path, strategy: str
) -> None:
    configs = [tiny_config(**settings) for settings in SETTINGS.values()]
    jobs = [Job(on_ranks(config, strategy, runs=tmp_path / "team")) for config in configs]
    for outcome in train_on_ranks(tmp_path, jobs):
        assert outcome == [Ending(steps=list(range(20)))] * 2
    for config, job in zip(configs, jobs, strict=True):
        alone, _ = run_to_end(resolve(config))
        assert_close(run_of(job.config), alone)


@pytest.mark.slow
def test_a_run_goes_on_in_any_number_of_processes(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process, two with copies, three with shards, one again: the run of one process."""
    config = tiny_config(trainer={"checkpoint_every_steps": 5})
    whole, _ = run_to_end(resolve(replace(config, runs_dir=str(tmp_path / "whole"))))
    with power_cut(monkeypatch, before_step=6):
        run_to_end(resolve(config))
    for begin, job in (
        (5, Job(on_ranks(config, "ddp"), cut_before_step=12)),
        (10, Job(on_ranks(config, "fsdp", 3), cut_before_step=17)),
    ):
        processes = job.config.trainer.devices
        (ended,) = train_on_ranks(tmp_path / str(begin), [job], processes)
        assert ended[0].steps == list(range(begin, job.cut_before_step or 20))
    with counted_steps(monkeypatch) as taken:
        run_to_end(resolve(config))
    assert taken == list(range(15, 20))
    assert_close(run_of(config), whole)


@pytest.mark.slow
def test_resume_after_crash_is_exact(tiny_config: Make, tmp_path: Path) -> None:
    """On three ranks, whose shards differ in size; tests/faults/test_ranks.py resumes on two."""
    jobs, processes = [], 3
    for strategy in ("ddp", "fsdp"):
        settings = {"trainer": {"checkpoint_every_steps": 3, "validate_every_steps": 5}}
        config = on_ranks(tiny_config(**settings), strategy, processes)
        whole, cut = (
            replace(config, runs_dir=str(tmp_path / f"{strategy}-{name}"))
            for name in ("whole", "cut")
        )
        jobs += [Job(whole), Job(cut, cut_before_step=8), Job(cut, cut_before_step=15), Job(cut)]
    train_on_ranks(tmp_path, jobs, processes)
    for whole, *_, resumed in (jobs[:4], jobs[4:]):
        assert_same_run(run_of(resumed.config), run_of(whole.config))


@pytest.mark.slow
def test_error_of_one_rank_stops_all_ranks(tiny_config: Make, tmp_path: Path) -> None:
    """Diverged on one rank, already diverged or finished, in use, checkpoint not writable."""
    ddp, fsdp = (on_ranks(tiny_config(), s, runs=tmp_path / s) for s in ("ddp", "fsdp"))
    deferred = replace(ddp, trainer=replace(ddp.trainer, log_every_steps=10), seed=1)
    deferred_fsdp = replace(fsdp, trainer=replace(fsdp.trainer, log_every_steps=10), seed=1)
    used, full = replace(ddp, seed=2), replace(ddp, seed=3)
    blocked = run_of(full).checkpoints
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file in the place of the checkpoints folder")
    jobs = [
        Job(ddp, poisoned_step=5),
        Job(ddp),
        Job(fsdp, poisoned_step=5),
        Job(deferred, poisoned_step=5, defers_finite_check=True),
        Job(deferred_fsdp, poisoned_step=5, defers_finite_check=True),
        Job(used),
        Job(full),
        Job(replace(ddp, rerun=True)),
        Job(ddp),
    ]
    with run_of(used).claim(resolve(used)):
        met = train_on_ranks(tmp_path, jobs)
    bad, again, bad_shard, late, late_shard, busy, disk, over, done = met
    for job, ended, steps in (
        (jobs[0], bad, 6),
        (jobs[2], bad_shard, 6),
        (jobs[3], late, 10),
        (jobs[4], late_shard, 10),
    ):
        assert {(e.error, e.exit_code, len(e.steps)) for e in ended} == {("Diverged", 1, steps)}
        assert all("step 5: loss nan" in e.message for e in ended)
        result = run_of(job.config).result() if job is not jobs[0] else None
        assert result is None or (result.status, result.steps) == ("diverged", 5)
    assert [e.error for e in again] == ["Diverged", "PeerFailed"]
    assert all("already diverged" in e.message and not e.steps for e in again)
    assert [e.error for e in busy] == ["InUse", "PeerFailed"]
    assert all(f"in use by process {os.getpid()}" in e.message for e in busy)
    assert run_of(used).read_metrics() == []
    assert [(e.error, e.exit_code) for e in disk] == [("FileExistsError", 1), ("PeerFailed", 1)]
    assert over == [Ending(steps=list(range(20)))] * 2 and done == [Ending()] * 2


@pytest.mark.slow
def test_checkpoint_that_one_rank_cannot_read_stops_all_ranks(
    tiny_config: Make, tmp_path: Path
) -> None:
    config = on_ranks(tiny_config(trainer={"checkpoint_every_steps": 3}), "ddp")
    jobs = [Job(config, cut_before_step=8), Job(config, unreadable_rank=1), Job(config)]
    _, stopped, resumed = train_on_ranks(tmp_path, jobs)
    assert [ending.error for ending in stopped] == ["PeerFailed", "RunError"]
    assert all("stale file handle" in ending.message for ending in stopped)
    assert [ending.steps for ending in resumed] == [list(range(6, 20))] * 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_rank_that_raises_ends_all_ranks(tiny_config: Make, tmp_path: Path, strategy: str) -> None:
    """The other rank waits for a gradient that never comes."""
    job = Job(on_ranks(tiny_config(), strategy), raising_rank=1)
    done = run_torchrun(tmp_path, [job])
    ended_seconds = time.time()
    assert done.returncode == 1 and "bug on one rank" in done.stderr
    assert ended_seconds - float((tmp_path / "raised").read_text()) < 30
    assert run_of(job.config).state() in {"failed", "interrupted"}


@pytest.mark.slow
def test_compiled_blocks_train_the_same_on_two_ranks(tiny_config: Make, tmp_path: Path) -> None:
    """One graph for all blocks, with DDP and FSDP, with and without activation checkpointing."""
    jobs = []
    for strategy, checkpointing in (("ddp", True), ("fsdp", False), ("fsdp", True)):
        for choice in ("off", "on"):
            # The hooks of the validation must not cause a recompilation.
            trainer = {"activation_checkpointing": checkpointing, "validate_every_steps": 7}
            config = tiny_config(trainer={**trainer, "compile": choice}, model={"n_layers": 4})
            runs = tmp_path / f"{strategy}-{checkpointing}-{choice}"
            jobs.append(Job(on_ranks(config, strategy, runs=runs)))
    endings_by_job = train_on_ranks(tmp_path, jobs)
    for number in range(0, len(jobs), 2):
        assert [e.graphs for e in endings_by_job[number]] == [0, 0]
        assert [e.graphs for e in endings_by_job[number + 1]] == [1, 1]
        eager, compiled = (
            [loss for loss, _, _ in losses(run_of(job.config))] for job in jobs[number : number + 2]
        )
        # 20 AdamW steps amplify rounding: compiled sums are fused and in a different order.
        np.testing.assert_allclose(compiled, eager, rtol=5e-5)


@pytest.mark.slow
def test_slurm_tasks_form_a_process_group(tiny_config: Make, tmp_path: Path) -> None:
    """Start the tasks with the environment variables of srun; Slurm itself is not needed."""
    job = Job(on_ranks(tiny_config(), "ddp"))
    arguments = module_arguments(tmp_path, [job])
    common = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env={**cli_env(), **common, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]
    assert [task.wait(timeout=PATIENCE_SECONDS) for task in tasks] == [0, 0]
    assert endings(tmp_path, 2) == [[Ending(steps=list(range(20)))] * 2]
    assert run_of(job.config).state() == "finished"


@pytest.mark.slow
def test_sweep_starts_each_distributed_run_once(cli: Cli, tmp_path: Path) -> None:
    """GPU ids are assigned to the jobs, but these runs use the CPU."""
    small = (
        "study=smoke",
        "study.families=[deep_thin]",
        "study.sizes=[80k]",
        "study.seeds=[0,1]",
        "study.tokens_per_param=[0.5]",
        "tracking=disabled",
        "trainer.log_every_steps=1",
        "trainer.strategy=ddp",
        "trainer.devices=2",
        "hydra.launcher.gpus=[5,3]",
        "action=run",
    )
    done = cli("sweep.py", *small)
    assert done.returncode == 0, done.stderr
    assert "2 jobs, 1 at once" in done.stderr and done.stderr.count(" nats/token, ") == 2
    paths = sorted(tmp_path.glob("runs/smoke/*/result.json"))
    assert len(paths) == 2
    for path in paths:
        env = read_json(path.with_name("env.json"))
        assert (env["processes"], env["visible_gpus"]) == (2, "5,3")
        rows = path.with_name("metrics.jsonl").read_text().splitlines()
        steps = RunDirectory(path.parent).spec().steps
        assert sum("train/loss" in row for row in rows) == steps
        assert path.with_name("log.txt").read_text().count(f"{steps} steps") == 1
    again = cli("sweep.py", *small)
    assert again.returncode == 0 and "0 to run" in again.stderr
