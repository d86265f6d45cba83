"""Runs from W&B: equal to those from run directories, offline and through the API; runs of older versions."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import wandb

from analysis.runs.load import Runs, load_runs
from analysis.runs.sources import column_names
from analysis.runs.wandb import HEADER, TrackedRun, finished_runs, offline_runs, read_offline
from slm.errors import DataError, Diverged
from slm.run.facts import run_counts
from slm.run.spec import RunSpec
from slm.studies.cells import Cell
from slm.studies.sync import sync_study
from slm.tracking.run_dir import RunDirectory
from tests.fake_wandb import fake_wandb
from tests.offline_wandb import offline_files, read_offline_run
from tests.running import run_to_end

Spec = Callable[..., RunSpec]


def wait_until_complete(files: list[Path]) -> None:
    """W&B writes its files in another process."""
    for _ in range(300):
        if all(read_offline_run(file).exit_code is not None for file in files):
            return
        time.sleep(0.1)
    raise AssertionError(f"{files}: not complete")


def assert_equal(runs: Runs, expected: Runs) -> None:
    # JSON has one type of number: a float that is whole may be read as an integer.
    pd.testing.assert_frame_equal(runs.table, expected.table, check_dtype=False)
    assert runs.dropped == expected.dropped and runs.warnings == expected.warnings


def test_tables_from_run_directories_offline_files_and_the_api_are_equal(
    tiny_spec: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two finished runs and a diverged one."""
    changes: list[dict[str, Any]] = [{}, {"seed": 1}, {"optimizer": {"lr": 1e9, "grad_clip": None}}]
    specs = [
        tiny_spec(tracking={"wandb": "offline"}, budget={"tokens": 12 * 256}, **each)
        for each in changes
    ]
    for spec in specs[:2]:
        run_to_end(spec)
    with pytest.raises(Diverged):
        run_to_end(specs[2])
    files = [offline_files(RunDirectory.of(spec))[0] for spec in specs]
    wait_until_complete(files)
    expected = load_runs(Path(specs[0].config.runs_dir))
    assert len(expected.table) == 2 and expected.dropped == {"not finished (diverged)": 1}

    for file in files:
        copy = tmp_path / "copies" / file.parent.name / file.name
        copy.parent.mkdir(parents=True)
        copy.write_bytes(file.read_bytes())
    assert_equal(load_runs(tmp_path / "copies"), expected)
    one = [specs[0].run_id]
    selected = load_runs(tmp_path / "copies", one)
    assert selected.table["run_id"].tolist() == one
    assert selected.dropped == {"not a cell of the study": 2}

    with fake_wandb() as server:
        monkeypatch.delenv("WANDB_MODE")
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        wandb.teardown()
        sync_study([Cell(spec, "tiny", "L2-d32") for spec in specs])
        assert_equal(load_runs("wandb:me/slm"), expected)
    monkeypatch.undo()
    wandb.teardown()


def mirrored(spec: RunSpec, attempt: str, losses: dict[str, float], folder: Path) -> None:
    """Write the file of one attempt at an older run: counts in the summary, the scientific config."""
    run = wandb.init(
        mode="offline",
        id=spec.run_id,
        group="study",
        tags=[spec.config.family.name, "size-100"],
        config={**spec.identity, "run": run_counts(spec)},
        dir=str(folder),
        reinit="create_new",
        settings=wandb.Settings(silent=True, console="off"),
    )
    run.summary.update({**run_counts(spec), **losses})
    run.finish()
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    wait_until_complete([file])
    # The second of the start is in the name: give every attempt its own.
    file.parent.rename(file.parent.with_name(f"offline-run-{attempt}-{spec.run_id}"))


@pytest.fixture
def older(tiny_spec: Spec, tmp_path: Path) -> Path:
    """A folder with runs of an older version; `wide` has two attempts, in the other order of folders."""
    for place, family, attempt, loss in (
        ("a", "wide", "20260102_000000", 2.5),
        ("b", "wide", "20260101_000000", 9.0),
        ("c", "deep", "20260101_000000", 2.0),
    ):
        (tmp_path / "older" / place).mkdir(parents=True)
        spec = tiny_spec(family={"name": family})
        mirrored(spec, attempt, {"val/loss": loss}, tmp_path / "older" / place)
    return tmp_path / "older"


def test_runs_of_older_versions_are_loaded(
    older: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = load_runs(older)
    assert runs.table["family"].tolist() == ["deep", "wide"]
    assert runs.table["loss_nats_per_token"].tolist() == [2.0, 2.5], runs.dropped
    assert set(runs.table["size"]) == {100} and (runs.table["flops"] > 0).all()
    known = {run.config["family"]: run for run in offline_runs(older)[0]}

    class Run(SimpleNamespace):
        def scan_history(self, keys: list[str]) -> Iterator[dict[str, Any]]:
            assert keys == ["val/loss"]
            yield from ({"val/loss": loss} for loss in (3.0, 2.25))

    def api_run(state: str) -> Run:
        summary = {key: x for key, x in known["deep"].summary.items() if key != "val/loss"}
        found = {"id": f"run-{state}", "group": "study", "tags": ["size-100"], "state": state}
        found["job_type"] = "report" if state == "running" else "train"
        return Run(**found, config=known["deep"].config, summary_metrics=summary)

    def list_runs(project: str, lazy: bool) -> list[Run]:
        return [api_run("finished"), api_run("crashed"), api_run("running")]

    api = SimpleNamespace(Api=lambda: SimpleNamespace(runs=list_runs))
    monkeypatch.setitem(sys.modules, "wandb", api)
    runs = load_runs("wandb:me/slm")
    assert runs.table["loss_nats_per_token"].tolist() == [2.25]
    assert runs.dropped == {"not finished (crashed)": 1}

    # A truncated file, as after a kill: the run counts as running and is dropped.
    monkeypatch.undo()
    monkeypatch.setattr("analysis.runs.wandb.MAX_WAIT_SECONDS", 0)
    file = next((older / "c").rglob("*.wandb"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    cut = read_offline(file)
    assert cut is None or cut.state == "running"
    assert load_runs(older).table["family"].tolist() == ["wide"]


def test_unreachable_host_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable() -> None:
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Api=unreachable))
    with pytest.raises(DataError, match=r"cannot read the W&B project 'me/slm': no route"):
        load_runs("wandb:me/slm")


def test_folders_of_unreadable_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "run-a.wandb").touch()
    message = r"no finished run; 1 unreadable W&B file \(empty\)"
    for columns in ({"family": "mix"}, None):
        with pytest.raises(DataError, match=message):
            load_runs(tmp_path, columns=columns)
    with pytest.raises(DataError, match=message):
        column_names(tmp_path)


def test_a_file_that_wandb_completes_after_finish_is_read_again(
    older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = next((older / "c").rglob("*.wandb"))
    content, waits = file.read_bytes(), []
    file.write_bytes(content[:HEADER])

    def complete(seconds: float) -> None:
        waits.append(seconds)
        file.write_bytes(content[: -HEADER - 1] if len(waits) == 1 else content)

    monkeypatch.setattr("analysis.runs.wandb.time.sleep", complete)
    assert load_runs(older).families == ["deep", "wide"] and len(waits) == 2

    monkeypatch.setattr("analysis.runs.wandb.MAX_WAIT_SECONDS", 0)
    for age, reason in ((0, "still being written"), (3600, "no run in it")):
        file.write_bytes(content[:HEADER])
        for each in (file, *file.parent.glob("logs/*")):
            os.utime(each, (time.time() - age,) * 2)
        assert load_runs(older).dropped == {f"unreadable W&B file ({reason})": 1}
    monkeypatch.setattr("analysis.runs.wandb.MAX_WAIT_SECONDS", 60)
    assert load_runs(older).families == ["wide"] and len(waits) == 2  # no wait for an old file


def test_unusable_runs_are_counted_by_reason() -> None:
    runs = [
        TrackedRun("a", "", "finished", (), {}, {}),
        TrackedRun("b", "", "finished", (), {}, {"val/loss": float("nan")}),
        TrackedRun("c", "", "finished", (), {}, {"val/loss": 2.0}),
        TrackedRun("d", "", "finished", (), {}, {"schema_version": 4}),
        TrackedRun("e", "", "running", (), {}, {"schema_version": 4}),
    ]
    *_, dropped = finished_runs(runs)
    assert dropped == {
        "no final loss": 1,
        "diverged": 1,
        "not a run of slm": 1,
        "unreadable result": 1,
        "not finished (running)": 1,
    }
