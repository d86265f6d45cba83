"""Branches of a WSD trunk: each equals the same run trained alone, at less total compute."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slm.config.load import load_config
from slm.config.schema import Config, ScheduleConfig
from slm.errors import ConfigError, Interrupted, InUse
from slm.run.lr_schedule import step_lr_multiplier, steps_before_decay
from slm.run.spec import RunSpec, branch_specs, resolve
from slm.studies.cells import Cell, Job, jobs_of
from slm.tracking import submission
from slm.tracking.run_dir import SUPERSEDED, RunDirectory
from slm.tracking.trunk import Trunk
from slm.training.execute import train_all
from tests.conftest import TINY, merged
from tests.running import (
    assert_same_run,
    branches_to_end,
    counted_steps,
    power_cut,
    run_to_end,
)

Make = Callable[..., Config]
B = 256  # tokens per batch
BUDGETS: dict[str, Any] = {"tokens": 45 * B, "branches": [5 * B, 15 * B]}


@pytest.mark.parametrize("steps", [1, 2, 5, 7, 19, 100, 999])
@pytest.mark.parametrize("decay", [0.0, 0.1, 0.2, 0.5, 1.0])
def test_trunk_ends_where_the_lr_decay_begins(steps: int, decay: float) -> None:
    schedule = ScheduleConfig(decay_fraction=decay)
    trunk = steps_before_decay(steps, B, schedule)
    rates = [step_lr_multiplier(step, steps, B, 0, schedule) for step in range(steps)]
    assert all(rate == 1 for rate in rates[:trunk])
    assert all(rate < 1 for rate in rates[trunk:])
    assert abs(trunk - steps * (1 - decay)) <= 1


def test_branches_equal_runs_from_scratch(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "budget": BUDGETS,
        "trainer": {"checkpoint_every_steps": 4, "validate_every_steps": 6},
        "optimizer": {"lr": 1e-2},
    }
    config = tiny_config(**settings)
    with counted_steps(monkeypatch) as taken:
        branches = branches_to_end(config)
    # The last 20% of 5, 15 and 45 steps decay: trunk steps 0 to 35, and 1, 3 and 9 decay steps.
    assert len(taken) == 36 + 1 + 3 + 9 and taken.count(4) == 2
    assert [run.result().taken_over_steps for run in branches] == [0, 4, 12]  # type: ignore[union-attr]
    assert len({run.result().trunk_id for run in branches}) == 1  # type: ignore[union-attr]
    for spec, branch in zip(branch_specs(config), branches, strict=True):
        alone = replace(spec.config, runs_dir=str(tmp_path / "alone"))
        alone = replace(alone, trainer=replace(alone.trainer, share_trunk=False))
        scratch, result = run_to_end(resolve(alone))
        assert scratch.path.name == branch.path.name and result.taken_over_steps == 0
        assert_same_run(branch, scratch)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> list[RunDirectory]:
    """The branches of BUDGETS, trained without an interruption."""
    folders = {"runs_dir": str(tmp_path_factory.mktemp("runs")), "cache_dir": str(cache_dir)}
    return branches_to_end(load_config(merged({**TINY, **folders}, {"budget": BUDGETS})))


def test_resume_repeats_no_step_of_a_branch(
    tiny_config: Make, uninterrupted: list[RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(budget=BUDGETS, trainer={"checkpoint_every_steps": 4})
    for step in (2, 14, 40):  # in the first branch, and in the decay of the second and the third
        with power_cut(monkeypatch, before_step=step):
            branches_to_end(config)
    with counted_steps(monkeypatch) as taken:
        branches = branches_to_end(config)
    assert taken == list(range(40, 45))
    for branch, reference in zip(branches, uninterrupted, strict=True):
        assert_same_run(branch, reference)


@pytest.mark.parametrize("damage", ["truncate", "delete", "rows", "everything"])
def test_damaged_trunk_is_trained_again(
    tiny_config: Make,
    uninterrupted: list[RunDirectory],
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    config = tiny_config(budget=BUDGETS)
    with power_cut(monkeypatch, before_step=16):
        branches_to_end(config)
    trunk = Trunk.of(branch_specs(config)[0])
    assert trunk is not None
    newest = trunk.folder / "step-00000012.ckpt"
    # The run's checkpoint is a hard link to this file: write a new file instead of changing it.
    content = newest.read_bytes()
    newest.unlink()
    if damage == "truncate":
        newest.write_bytes(content[:-100])
    elif damage == "rows":
        newest.write_bytes(content)
        newest.with_suffix(".jsonl").unlink()
    elif damage == "everything":
        shutil.rmtree(trunk.folder)
    with counted_steps(monkeypatch) as taken:
        branches = branches_to_end(config)
    assert taken[0] == (0 if damage == "everything" else 4)
    for branch, reference in zip(branches, uninterrupted, strict=True):
        assert_same_run(branch, reference)


def test_longer_budget_continues_the_existing_trunk(
    tiny_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    branches_to_end(tiny_config(budget={"tokens": 15 * B, "branches": [5 * B]}))
    with counted_steps(monkeypatch) as taken:
        branches_to_end(tiny_config(budget=BUDGETS))
    assert taken == list(range(12, 45))


def test_rerun_does_not_use_the_old_trunk(
    tiny_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    branches_to_end(tiny_config(budget=BUDGETS))
    with counted_steps(monkeypatch) as taken:
        branches_to_end(tiny_config(budget=BUDGETS, rerun=True))
    assert len(taken) == 49


def test_requeued_rerun_continues_what_it_began(
    tiny_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first branch of the rerun is finished, the second one is cut, and the third one is still the old run."""
    settings = {"budget": BUDGETS, "rerun": True, "trainer": {"checkpoint_every_steps": 1}}
    config = tiny_config(**settings)
    specs = branch_specs(config)
    branches_to_end(config)
    monkeypatch.setenv(submission.VARIABLE, "first")
    with power_cut(monkeypatch, before_step=13):
        train_all(config)
    with counted_steps(monkeypatch) as taken:
        train_all(config)
    assert taken == [13, 14, *range(12, 45)]
    with counted_steps(monkeypatch) as taken:
        train_all(config)
    assert taken == []
    monkeypatch.setenv(submission.VARIABLE, "second")
    with counted_steps(monkeypatch) as taken:
        train_all(config)
    assert len(taken) == 49
    aside = RunDirectory.of(specs[0]).path.parent / SUPERSEDED
    assert len(list(aside.iterdir())) == 2 * len(specs)


def cells(config: Config) -> list[Cell]:
    return [Cell(spec, "tiny", 1) for spec in branch_specs(config)]


@pytest.mark.parametrize(
    ("shorter", "share"),
    [([1, 3], 0.754), ([1, 3**0.5, 3, 3**1.5], 0.561)],
)
def test_flops_of_branches_relative_to_separate_runs(
    tiny_config: Make, shorter: list[float], share: float
) -> None:
    """Three budgets in the ratio 1:3:9, and five over the same range; 20% of each is decay."""
    unit = 1000 * B
    budget = {"tokens": 9 * unit, "branches": [round(end * unit) for end in shorter]}
    config = tiny_config(budget=budget, data={"max_epochs": 1000})
    (job,) = jobs_of(cells(config))
    separate = sum(cell.spec.flops for cell in job.cells)
    assert job.flops / separate == pytest.approx(share, abs=0.002)


def test_job_is_a_trunk_with_its_branches_in_order(tiny_config: Make) -> None:
    config = tiny_config(budget=BUDGETS)
    jobs = jobs_of([*cells(config), *cells(tiny_config(seed=1))])
    assert sorted(len(job.cells) for job in jobs) == [1, 3]
    job = next(job for job in jobs if len(job.cells) == 3)
    assert [cell.spec.steps for cell in job.cells] == [5, 15, 45]
    assert "budget.branches=[1280,3840]" in job.overrides and "budget.tokens=11520" in job.overrides
    assert job.steps == 49 and isinstance(job, Job)


def test_trunks_of_a_family_with_a_dot_in_its_name_have_leases_of_their_own(
    tiny_config: Make,
) -> None:
    specs = [
        resolve(tiny_config(seed=s, family={"name": "aspect_13.5"}, trainer={"share_trunk": True}))
        for s in range(2)
    ]
    one, other = (Trunk.of(spec) for spec in specs)
    assert one is not None and other is not None
    held = one.lease.take()
    with pytest.raises(InUse, match=f"{re.escape(str(one.folder))} is in use"):
        one.lease.take()
    other.lease.take().release()
    held.release()


def test_trunk_id_differs_between_recipes(tiny_config: Make) -> None:
    def trunk(**changes: Any) -> str | None:
        return resolve(tiny_config(**changes)).trunk_id

    base = trunk()
    assert base == trunk(schedule={"decay_fraction": 0.5}) != trunk(seed=1)
    assert base != trunk(optimizer={"lr": 1e-3}) and base != trunk(budget={"tokens": 99 * B})
    shared = {"schedule": {"warmup_budget_tokens": 20 * B}}
    assert base == trunk(**shared) == trunk(budget={"tokens": 99 * B}, **shared)
    assert trunk(schedule={"kind": "cosine"}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": {"tokens": 9 * B, "branches": [9 * B]}}, "must be below budget.tokens=2304"),
        ({"budget": BUDGETS, "schedule": {"kind": "cosine"}}, "only wsd has a trunk"),
        ({"budget": {"tokens": 9 * B, "branches": [2.5]}}, "whole numbers"),
        (
            {"schedule": {"warmup_budget_tokens": 21 * B}},
            "exceeds the token budget of the run, 5,120 tokens",
        ),
    ],
)
def test_error_for_impossible_branches(
    tiny_config: Make, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(tiny_config(**changes))


def test_branch_and_single_run_have_the_same_run_id(tiny_config: Make) -> None:
    specs: list[RunSpec] = branch_specs(tiny_config(budget=BUDGETS))
    assert len({spec.run_id for spec in specs}) == 3
    assert len({spec.recipe_id for spec in specs}) == 1
    alone = resolve(tiny_config(budget={"tokens": 5 * B}))
    assert alone.run_id == specs[0].run_id and alone.recipe_id == specs[0].recipe_id
    assert RunDirectory.of(alone).path == RunDirectory.of(specs[0]).path


def test_trunk_is_stored_after_a_kill_between_its_two_writes(
    tiny_config: Make, uninterrupted: list[RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(budget=BUDGETS)

    def fail(*_: Any) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="power cut"):
        patched.setattr(Trunk, "store", fail)
        branches_to_end(config)
    with counted_steps(monkeypatch) as taken:
        branches = branches_to_end(config)
    first = branch_specs(config)[0].trunk_steps
    assert taken.count(first - 1) == 0, "the steps of the trunk are not taken again"
    for branch, reference in zip(branches, uninterrupted, strict=True):
        assert_same_run(branch, reference)


def test_signal_after_the_last_step_stops_the_next_branch(
    tiny_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first branch is finished; the signal arrives while its result is written."""
    config = tiny_config(budget=BUDGETS)
    original = RunDirectory.write_result

    def write_and_signal(self: RunDirectory, result: Any) -> None:
        original(self, result)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "write_result", write_and_signal)
        with pytest.raises(Interrupted, match="stopped by SIGTERM after the end of"):
            train_all(config)
    states = [RunDirectory.of(spec).state() for spec in branch_specs(config)]
    assert states[0] == "finished" and set(states[1:]) == {"planned"}
