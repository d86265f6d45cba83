"""Configurations beside a results file: with both, anyone can repeat a run without its run directory.

    results.jsonl  results.configs.yaml

Most runs of a study share most settings. `common` has the settings that are equal in all runs, `runs` the others by run
id. Settings that do not belong to a run (paths, W&B, plans) are left out; they get the values of the machine that repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from slm.errors import DataError
from slm.files import read_json, write_text
from slm.run.facts import saved_config
from slm.run.spec import RunSpec
from slm.tracking.run_dir import RunDirectory

Tree = dict[str, Any]
NOT_OF_A_RUN = (
    "action", "cache_dir", "design", "plan", "rerun", "runs_dir", "speed", "tracking", "watch",
)  # fmt: skip
HEADER = """\
# Settings of the runs in {results}, written by action=collect: `common` holds for all runs, `runs` has the rest.
# To repeat a run, give {results} with its folder: python -m slm repeat {results} RUN_ID
"""


def configs_path(results: Path) -> Path:
    """Return the path of the configurations of a results file, such as results.configs.yaml."""
    return results.with_suffix(".configs.yaml")


def describe_run(run: RunDirectory, spec: RunSpec) -> Tree:
    """Return the `config` and the `environment` of a run; without its run directory, the config of `spec` alone."""
    saved = run.path / "config.yaml"
    config = (
        yaml.safe_load(saved.read_text(encoding="utf-8")) if saved.exists() else saved_config(spec)
    )
    config["study"] = {key: value for key, value in config["study"].items() if key != "results"}
    tree = {"config": {key: value for key, value in config.items() if key not in NOT_OF_A_RUN}}
    environment = read_environment(run)
    return {**tree, "environment": environment} if environment else tree


def read_environment(run: RunDirectory) -> dict[str, Any]:
    """Return the part of env.json that the last digits of a loss can depend on; empty if it cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        env = read_json(run.path / "env.json")
        return {
            "device": env["device"],
            "cpu_instruction_set": env["cpu_instruction_set"],
            "threads": env["threads"],
            "processes": env["processes"],
            "compiled": bool((env["compilation"] or {}).get("compiled")),
            "torch": env["versions"]["torch"],
        }
    return {}


def read_configs(path: Path) -> dict[str, Tree]:
    """Read the `config` and `environment` of each run by run id; a missing file has none.

    Raises:
        DataError: if the file cannot be read.
    """
    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {run_id: _merged(content["common"], own) for run_id, own in content["runs"].items()}
    except (yaml.YAMLError, UnicodeError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        fix = "restore the committed file, or write it again with action=collect"
        raise DataError(f"{path}: not readable ({reason}); {fix}") from None


def write_configs(path: Path, runs: Mapping[str, Tree], results: Path) -> None:
    """Write the `config` and `environment` of each run, sorted by run id."""
    trees = {run_id: runs[run_id] for run_id in sorted(runs)}
    common = _common(list(trees.values()))
    content = {
        "common": common,
        "runs": {run_id: _without(tree, common) for run_id, tree in trees.items()},
    }
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)
    write_text(path, HEADER.format(results=results.name) + text)


def _common(trees: list[Tree]) -> Tree:
    """Return the entries that are equal in all trees; tables are compared entry by entry."""
    if not trees:
        return {}
    first, *others = trees
    common: Tree = {}
    for key, value in first.items():
        if any(key not in other for other in others):
            continue
        values = [tree[key] for tree in trees]
        if all(isinstance(each, dict) for each in values):
            common[key] = _common(values)
        elif all(each == value for each in values):
            common[key] = value
    return common


def _without(tree: Tree, common: Tree) -> Tree:
    """Return the entries of a tree that are not in `common`, such that `_merged(common, ...)` is the tree."""
    own: Tree = {}
    for key, value in tree.items():
        if key not in common:
            own[key] = value
        elif isinstance(value, dict):
            rest = _without(value, common[key])
            if rest:
                own[key] = rest
    return own


def _merged(common: Tree, own: Tree) -> Tree:
    merged = dict(common)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(common.get(key), dict)
        merged[key] = _merged(common[key], value) if both else value
    return merged
