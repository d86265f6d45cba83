"""Configurations beside a results file: what is written is read back, and nothing of the machine is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from slm.config.load import load_config
from slm.errors import DataError
from slm.run.spec import RunSpec, resolve
from slm.tracking.configs_file import configs_path, describe_run, read_configs, write_configs
from slm.tracking.run_dir import RunDirectory


def test_file_is_named_after_the_results() -> None:
    assert configs_path(Path("a/results.jsonl")) == Path("a/results.configs.yaml")


def test_trees_are_read_back(tmp_path: Path) -> None:
    trees = {
        "b": {"config": {"x": {"y": 1, "grid": {"lr": [0.1]}}, "name": None}, "environment": {}},
        "a": {"config": {"x": {"y": 2, "grid": {}}, "name": None, "extra": {"z": 1e-8}}},
        "c": {"config": {"x": 3, "name": None}},
    }
    path = tmp_path / "results.configs.yaml"
    for kept in (["a", "b"], ["a", "b", "c"], ["c"], []):
        runs = {run_id: trees[run_id] for run_id in kept}
        write_configs(path, runs, tmp_path / "results.jsonl")
        assert read_configs(path) == runs
    assert read_configs(tmp_path / "missing.yaml") == {}


def test_config_gives_the_same_run_without_paths_of_this_machine(
    tmp_path: Path, tiny_spec: Callable[..., RunSpec]
) -> None:
    specs = [tiny_spec(seed=seed, tracking={"entity": "me"}) for seed in (0, 1)]
    path = tmp_path / "results.configs.yaml"
    runs = {spec.run_id: describe_run(RunDirectory.of(spec), spec) for spec in specs}
    write_configs(path, runs, Path("results.jsonl"))
    assert str(tmp_path) not in path.read_text() and "entity" not in path.read_text()
    for run_id, tree in read_configs(path).items():
        assert resolve(load_config(tree["config"])).run_id == run_id


@pytest.mark.parametrize("text", ["[1]", "common: {}\n", "common: {}\nruns: 3\n", "a: [", "x"])
def test_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.configs.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=r"results\.configs\.yaml: not readable .*action=collect"):
        read_configs(path)
