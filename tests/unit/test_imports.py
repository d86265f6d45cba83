"""Imports go down only, and what must start fast does not import torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Each entry may import those above it, and its own package.
LAYERS = [
    ["slm.errors", "slm.files"],
    ["slm.schema"],
    ["slm.config", "slm.schedule"],
    ["slm.architecture"],
    ["slm.model", "slm.data"],
    ["slm.run_spec"],
    ["slm.micro_batch"],
    ["slm.data.datamodule", "slm.tracking"],
    ["slm.training", "slm.sweeps", "slm.app", "slm.loading"],
    ["slm.evaluation"],
    ["slm.__main__"],
    ["analysis"],
    ["hydra_plugins"],
]
TORCH_FREE = [
    "slm.app", "slm.config", "slm.run_spec", "slm.micro_batch", "slm.architecture.memory", "slm.data.blocks", "slm.data.prepare", "slm.data.examples", "slm.data.report", "slm.tracking.record",
    "slm.tracking.wandb", "slm.tracking.checkpoints", "slm.tracking.trunk", "slm.tracking.spikes", "slm.schedule", "slm.architecture.describe", "slm.__main__", "slm", "slm.sweeps.status", "slm.sweeps.plan", "slm.sweeps.running", "slm.sweeps.tuning", "slm.tracking.ledger", "hydra_plugins.slm_study.sweeper",
    "hydra_plugins.slm_study.planning", "hydra_plugins.slm_study.reporting", "analysis.power",
    "hydra_plugins.slm_study.launcher", "hydra_plugins.slm_study.slurm", "hydra_plugins.slm_study.ray", "analysis.report", "analysis.lr_transfer", "analysis.coordinates", "analysis.khop",
]  # fmt: skip
ONLY_IMPORTERS = {
    "wandb": {"slm.tracking.wandb", "analysis.wandb_runs"},
    "lightning": {"slm.data.datamodule", "slm.training"},
    "hydra": {"slm.app", "hydra_plugins"},
    "datasets": {"slm.data.sources"},
    "huggingface_hub": {"slm.data.sources"},
    "tokenizers": {"slm.data.library_files", "slm.data.tokenizer_export"},
    "torch": {"slm.data.datamodule", "slm.model", "slm.training", "slm.loading", "slm.evaluation"},
    "safetensors": {"slm.model.hf"},
    "flash_attn": {"slm.model.attention"},
    "pandas": {"analysis"},
    "analysis": {"analysis", "hydra_plugins"},
}


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("slm", "analysis", "hydra_plugins"):
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def layer_of(name: str) -> int | None:
    matches = [(len(p), i) for i, layer in enumerate(LAYERS) for p in layer if within(name, p)]
    return max(matches)[1] if matches else None


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=str)
def test_imports_go_down(name: str, path: Path) -> None:
    own = layer_of(name)
    for imported in imports(path):
        other = layer_of(imported)
        if other is None or name == "slm":
            continue
        assert own is not None, f"{name} belongs to no layer"
        late = name == "slm.app" and within(imported, "slm.training")
        depth = 2 if name.startswith("slm") else 1
        same_package = name.split(".")[:depth] == imported.split(".")[:depth]
        assert other < own or same_package or late, f"{name} -> {imported}"


@pytest.mark.parametrize(("library", "allowed"), ONLY_IMPORTERS.items())
def test_a_library_has_its_importers(library: str, allowed: set[str]) -> None:
    for name, path in modules():
        if any(within(imported, library) for imported in imports(path)):
            assert any(within(name, place) for place in allowed), f"{name} imports {library}"


def test_planning_and_analysis_start_without_torch() -> None:
    code = f"import sys\nfor m in {TORCH_FREE!r}: __import__(m)\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_files_and_functions_stay_short() -> None:
    for name, path in modules():
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 350, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{name}.{node.name}"
