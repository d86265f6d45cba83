"""Planning and analysis import no torch and no chart library, and only listed packages import each heavy library.

`make lint` checks the order of layers with import-linter (contracts in pyproject.toml).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

TORCH_FREE = (
    "analysis.controls.coordinate_check",
    "analysis.controls.khop",
    "analysis.learning_rate.gate",
    "analysis.learning_rate.transfer",
    "analysis.planning.power",
    "analysis.report",
    "analysis.report.write",
    "analysis.study_actions.plan",
    "analysis.study_actions.report",
    "analysis.study_actions.watch.server",
    "analysis.study_actions.watch.snapshot",
    "hydra_plugins.slm_study.local",
    "hydra_plugins.slm_study.ray",
    "hydra_plugins.slm_study.slurm",
    "hydra_plugins.slm_study.sweeper",
    "slm",
    "slm.__main__",
    "slm.architecture.describe",
    "slm.architecture.memory",
    "slm.cli",
    "slm.config.hydra",
    "slm.config.load",
    "slm.data.cli",
    "slm.data.examples",
    "slm.data.tokens.prepare",
    "slm.data.tokens.summary",
    "slm.logs",
    "slm.parabola",
    "slm.rounding",
    "slm.run.cli",
    "slm.run.compile_rule",
    "slm.run.lr_schedule",
    "slm.run.mfu",
    "slm.run.micro_batch",
    "slm.run.spec",
    "slm.run_index.compare",
    "slm.run_index.curves",
    "slm.run_index.listing",
    "slm.run_index.remove",
    "slm.studies.lr_tuning",
    "slm.studies.plan_tables",
    "slm.studies.scheduler",
    "slm.studies.status",
    "slm.studies.sync",
    "slm.studies.throughput",
    "slm.tracking.checkpoints",
    "slm.tracking.concurrency",
    "slm.tracking.environment",
    "slm.tracking.results_file",
    "slm.tracking.run_dir",
    "slm.tracking.spikes",
    "slm.tracking.trunk",
    "slm.tracking.wandb",
    "slm.training.execute",
)
ALLOWED_IMPORTERS = {
    "wandb": {"slm.tracking.wandb", "analysis.runs.wandb", "analysis.study_actions.dashboard"},
    "wandb_workspaces": {"analysis.study_actions.dashboard"},
    "lightning": {"slm.training"},
    "hydra": {"slm.cli", "slm.config.hydra", "hydra_plugins"},
    "datasets": {"slm.data.corpus.sources", "slm.evaluation.zero_shot"},
    "lm_eval": {"slm.evaluation.zero_shot"},
    "huggingface_hub": {"slm.data.corpus.sources"},
    "tokenizers": {
        "slm.data.tokenizers.hf_files",
        "slm.data.tokenizers.sentencepiece_model",
        "slm.data.tokenizers.export",
    },
    "sentencepiece": {"slm.data.tokenizers.sentencepiece_model"},
    "torch": {"slm.model", "slm.training", "slm.evaluation", "slm.speed.measure"},
    "safetensors": {"slm.model.hf", "slm.model.hf_weights"},
    "flash_attn": {"slm.model.attention"},
    "pandas": {"analysis"},
    "starlette": {"analysis.study_actions.watch.server"},
    "uvicorn": {"analysis.study_actions.watch.server"},
    "altair": {"slm.charts", "analysis.charts"},
    "vl_convert": {"slm.charts"},
    "matplotlib": set(),
    "analysis": {"analysis", "hydra_plugins"},
}


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("slm", "analysis", "hydra_plugins"):
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


@cache
def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module or "")
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize(("library", "allowed"), ALLOWED_IMPORTERS.items())
def test_only_allowed_packages_import_a_library(library: str, allowed: set[str]) -> None:
    for name, path in modules():
        if any(within(imported, library) for imported in imports(path)):
            assert any(within(name, package) for package in allowed), f"{name} imports {library}"


def test_planning_and_analysis_do_not_import_torch_or_altair() -> None:
    late = {"torch", "altair", "vl_convert"}
    code = f"import sys\nfor m in {TORCH_FREE!r}: __import__(m)\nassert not {late!r} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
