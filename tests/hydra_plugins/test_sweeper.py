"""What counts as finished in a sweep and in a rerun, and what action=collect writes."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from hydra_plugins.slm_study.sweeper import _check_design, _collect_results
from slm.data.corpus.identity import MANIFEST
from slm.data.tokens.prepare import prepared_folder
from slm.errors import DesignRefused
from slm.run.facts import saved_config
from slm.studies.cells import Cell
from slm.studies.preparation import prepare_corpora
from slm.tracking.configs_file import configs_path, read_configs
from slm.tracking.results_file import read_results, write_results
from tests.benchmarks.watch import result_of, study_cells
from tests.conftest import Cli

STUDY = ("study=demo", "study.sizes=[80k]", "study.tokens_per_param=[1.5]", "study.claim=none")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def expand(results: Path, *overrides: str) -> list[Cell]:
    runs = f"runs_dir={results.parent / 'runs'}"
    return study_cells(*STUDY, runs, f"study.results={results}", *overrides)


def finish(cell: Cell, loss: float, threads: int = 1) -> None:
    """Write the run directory of a finished run."""
    cell.run.path.mkdir(parents=True, exist_ok=True)
    cell.run.write_status("finished")
    cell.run.write_result(replace(result_of(cell), val_loss_nats_per_token=loss))
    trainer = {**saved_config(cell.spec)["trainer"], "threads": threads}
    config = {**saved_config(cell.spec), "trainer": trainer}
    (cell.run.path / "config.yaml").write_text(yaml.safe_dump(config))


def test_recorded_results_do_not_count_in_a_rerun(cli: Cli, results: Path, cache_dir: Path) -> None:
    cells = expand(results, f"cache_dir={cache_dir}")
    write_results(results, {cell.spec.run_id: result_of(cell) for cell in cells})
    command = ("sweep.py", *STUDY, f"study.results={results}", "action=status")
    assert cli(*command).returncode == 0
    again = cli(*command, "rerun=true")
    assert again.returncode == 3 and "2 planned" in again.stdout


def test_results_of_a_rerun_replace_the_recorded_ones(
    results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = expand(results)
    for cell in (first, second):
        finish(cell, loss=4.0)
    _collect_results(first.spec.config, [first])
    finish(first, loss=3.0, threads=2)
    _collect_results(first.spec.config, [first, second])
    run_id = first.spec.run_id
    assert read_results(results)[run_id].val_loss_nats_per_token == 4.0
    with caplog.at_level(logging.INFO, logger="slm"):
        _collect_results(replace(first.spec.config, rerun=True), [first])
    assert "2 results, 0 of them new, 1 replaced" in caplog.text
    assert read_results(results)[run_id].val_loss_nats_per_token == 3.0
    configs = read_configs(configs_path(results))
    assert [
        configs[cell.spec.run_id]["config"]["trainer"]["threads"] for cell in (first, second)
    ] == [2, 1]


def test_rerun_of_a_finished_study_is_checked_and_its_corpus_prepared(results: Path) -> None:
    text = results.with_name("text.txt")
    text.write_text("\n\n".join(f"Paragraph {number} of a small corpus." for number in range(200)))
    corpus = ("data=text_files", f"data.files=[{text}]", "data.document=paragraph")
    cache = (f"cache_dir={results.parent / 'cache'}", "data.max_epochs=1e6")
    settings = (*corpus, *cache, "study.claim=exponents")
    finished = expand(results, *settings)
    for cell in finished:
        finish(cell, loss=4.0)
    _check_design(finished)
    prepare_corpora(finished)
    manifest = prepared_folder(finished[0].spec.config) / MANIFEST
    assert not manifest.exists()
    again = expand(results, *settings, "rerun=true")
    with pytest.raises(DesignRefused, match="is REFUSED"):
        _check_design(again)
    prepare_corpora(again)
    assert manifest.exists()


@pytest.mark.parametrize("content", [None, "{"], ids=["lost", "damaged"])
def test_run_without_a_result_is_not_collected(
    results: Path, caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    cells = expand(results)
    for cell in cells:
        finish(cell, loss=4.0)
    path = cells[0].run.path / "result.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    _collect_results(cells[0].spec.config, cells)
    assert set(read_results(results)) == {cells[1].spec.run_id}
    assert f"left out, without a readable result.json: {cells[0].run.path}" in caplog.text
