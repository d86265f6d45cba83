"""Regenerate the worked example of docs/evaluation.md: train three small models, export one, evaluate all.

    python -m tests.evaluation_example runs/example [BYTES]

Prints the tables of the page in Markdown, and writes its charts to docs/img. The texts are WikiText-2 of the shared
test data (SLM_TEST_DATA), the word-level version with <unk>; BYTES takes only so much of the start of each file.
Finished runs are not trained again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from slm.console import FittedTable
from slm.evaluation.evaluate import evaluate_models
from slm.evaluation.export import export_run
from slm.evaluation.figures import evaluation_figures
from slm.evaluation.result import Evaluation
from slm.evaluation.tables import notes, tables
from tests.conftest import ROOT
from tests.pictures import save_small

DATA = Path(os.environ.get("SLM_TEST_DATA", ROOT.parent / "shared" / "data")) / "wikitext-2"
RUNS = (("deep_thin", "80k"), ("deep_thin", "220k"), ("wide_shallow", "220k"))
RECIPE = (
    "budget.tokens_per_param=4",
    "optimizer.global_batch_tokens=1024",
    "data.val_tokens=262144",
    "trainer.threads=1",
    "tracking=disabled",
)
PICTURES = {"pareto_params": "evaluation_params", "pareto_latency": "evaluation_latency", "pareto_memory": "evaluation_memory"}  # fmt: skip


def train(folder: Path) -> list[Path]:
    """Train the runs, and return their directories."""
    for family, size in RUNS:
        words = [f"family={family}", f"size={size}", *RECIPE, f"runs_dir={folder}"]
        subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, check=True)
    return sorted((folder / "single").glob("*Mtok-s0-*"))


def markdown(table: FittedTable) -> str:
    """Return a table in Markdown."""
    rows: list[Sequence[str]] = [[column.name for column in table.columns]]
    rows.append(["---" if column.is_left else "---:" for column in table.columns])
    count = len(table.columns[0].cells)
    rows += [[str(column.cells[index]) for column in table.columns] for index in range(count)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def show(title: str, evaluation: Evaluation) -> None:
    print(f"\n## {title}")
    for table in tables(evaluation):
        print(f"\n{table.title}\n\n{markdown(table)}")
        if table.note:
            print(f"\n{table.note}")
    print("\n" + "\n".join(notes(evaluation)))


def text_of(split: str, limit: int | None, folder: Path) -> str:
    """Return the path of a split, or of a copy of its first lines."""
    if limit is None:
        return str(DATA / f"{split}.txt")
    lines = (DATA / f"{split}.txt").read_bytes()[:limit].splitlines(keepends=True)[:-1]
    (folder / f"{split}.txt").write_bytes(b"".join(lines))
    return str(folder / f"{split}.txt")


def main(folder: Path, limit: int | None = None) -> None:
    runs = train(folder)
    exported = folder / "exported"
    shutil.rmtree(exported, ignore_errors=True)
    export_run(next(run for run in runs if run.name.startswith("wide")), exported)
    models = [*runs, exported]
    example = evaluate_models(
        models,
        text=text_of("valid", limit, folder),
        document="article",
        speed=True,
        new_tokens=64,
        rounds=5,
        out=folder / "evaluation",
    )
    show("Example", example)
    for figure in evaluation_figures(example):
        file = ROOT / "docs" / "img" / f"{PICTURES[figure.name]}.png"
        figure.save(file)
        save_small(file.read_bytes(), file)
    seed = evaluate_models(models, protocol="seed", text=text_of("test", limit, folder), window=128)
    show("Protocol of the seed", seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), *map(int, sys.argv[2:]))
