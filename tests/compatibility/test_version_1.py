"""Run ids, run directories, trunks and results of version 1 stay valid.

`tests/data/run_ids_v1.json` lists the run ids of the four studies defined in `tests/data/studies_v1`;
`tests/data/runs_v1` contains run directories written at the same commit. `run_ids_v2.json` with `studies_v2`, and
`run_ids_v3.json` with `studies_v3`, have the studies that were redesigned since. Never regenerate these files: add
another list for a study that is redesigned.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import slm
from analysis import load_runs
from slm.config.hydra import Composer, load_composed_config, register_schema
from slm.run.spec import branch_specs, resolve
from slm.studies.cells import Cell
from slm.studies.expand import cells_of
from slm.tracking.results_file import read_results
from slm.tracking.run_dir import RunDirectory
from tests.conftest import ROOT
from tests.running import counted_steps, run_to_end

DATA = ROOT / "tests" / "data"
SAVED = json.loads((DATA / "run_ids_v1.json").read_text(encoding="utf-8"))
REDESIGNED = {
    (version, study): ids
    for version in ("v2", "v3")
    for study, ids in json.loads((DATA / f"run_ids_{version}.json").read_text())["run_ids"].items()
}
FINISHED = DATA / "runs_v1" / "single" / "deep_thin-L6-d32-0.041Mtok-s0-5252f679"
INTERRUPTED = DATA / "runs_v1" / "single" / "deep_thin-L6-d32-0.041Mtok-s1-feafb7cc"
STEPS, INTERRUPTED_AFTER, TRUNK_STEPS = 40, 20, 8


@pytest.fixture(scope="module", autouse=True)
def _hydra() -> Iterator[None]:
    register_schema()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


def cells_of_version_1(study: str, results: Path | None = None) -> list[Cell]:
    return cells_of_copy("studies_v1", study, results)


def cells_of_copy(folder: str, study: str, results: Path | None = None) -> list[Cell]:
    """Return the cells of a committed copy of a study; the other config groups come from conf/."""

    def compose_study(overrides: list[str]) -> DictConfig:
        copies = f"hydra.searchpath=[file://{DATA}]"
        return compose("sweep", [copies, f"+{folder}={study}", *overrides])

    recorded = {} if results is None else read_results(results)
    return cells_of(
        load_composed_config(compose_study([])), Composer(compose_study), recorded=recorded
    )


@pytest.mark.parametrize("study", SAVED["run_ids"])
def test_run_ids_are_unchanged(study: str) -> None:
    assert sorted(cell.spec.run_id for cell in cells_of_version_1(study)) == SAVED["run_ids"][study]


@pytest.mark.parametrize(("version", "study"), REDESIGNED)
def test_run_ids_of_redesigned_studies_are_unchanged(version: str, study: str) -> None:
    found = sorted(cell.spec.run_id for cell in cells_of_copy(f"studies_{version}", study))
    assert found == REDESIGNED[version, study]


def test_finished_cells_of_micro_count_as_done() -> None:
    results = ROOT / "analysis" / "examples" / "micro_first" / "results.jsonl"
    done = {cell.spec.run_id for cell in cells_of_version_1("micro", results) if cell.is_done}
    assert len(SAVED["done_in_micro"]) == 54 and set(SAVED["done_in_micro"]) <= done


def test_finished_run_can_be_loaded() -> None:
    run = RunDirectory(FINISHED)
    result = run.result()
    assert run.state() == "finished" and run.spec().run_id == FINISHED.name
    assert result is not None and result.val_loss_nats_per_token == 2.5446679361302813
    assert [row["progress/step"] for row in run.read_metrics()][-1] == STEPS
    table = load_runs(FINISHED.parent).table
    assert list(table["run_id"]) == [FINISHED.name]
    logits = slm.load(FINISHED)(torch.zeros(1, 8, dtype=torch.long))
    assert logits.shape == (1, 8, result.shape["vocab_size"]) and logits.isfinite().all()


def test_interrupted_run_resumes_from_its_checkpoint(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs" / "single" / INTERRUPTED.name
    shutil.copytree(INTERRUPTED, path)
    before = RunDirectory(path).read_metrics()
    config = RunDirectory(path).spec().config
    tracking = replace(config.tracking, wandb="disabled")
    spec = resolve(
        replace(
            config, runs_dir=str(tmp_path / "runs"), cache_dir=str(cache_dir), tracking=tracking
        )
    )
    assert spec.run_id == INTERRUPTED.name and RunDirectory.of(spec).state() == "interrupted"
    with counted_steps(monkeypatch) as steps:
        run, result = run_to_end(spec)
    assert steps == list(range(INTERRUPTED_AFTER, STEPS))
    rows = run.read_metrics()[: len(before)]
    assert [row["train/loss"] for row in rows] == [row["train/loss"] for row in before]
    assert run.state() == "finished" and result.steps == STEPS


def test_branch_starts_from_a_saved_trunk(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(DATA / "runs_v1" / "smoke", tmp_path / "runs" / "smoke")
    cells = cells_of_version_1("smoke")
    longest = max(
        (c.spec for c in cells if c.family == "deep_thin" and c.rung == 80_000),
        key=lambda spec: spec.tokens,
    )
    config = replace(
        longest.config,
        runs_dir=str(tmp_path / "runs"),
        cache_dir=str(cache_dir),
        tracking=replace(longest.config.tracking, wandb="disabled"),
    )
    (spec,) = branch_specs(config)
    assert spec.run_id == longest.run_id
    with counted_steps(monkeypatch) as steps:
        _, result = run_to_end(spec)
    assert steps[0] == result.taken_over_steps == TRUNK_STEPS
