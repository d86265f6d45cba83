"""`python -m slm evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Any

from slm.console import console
from slm.evaluation.evaluate import evaluate_models, failure_error
from slm.evaluation.tables import print_tables


def evaluate(
    models: Sequence[Path], *, documents: bool, json: bool, out: Path | None, **settings: Any
) -> None:
    """Print the results of `evaluate_models`, whose arguments are the other keys of the command.

    Raises:
        DataError: if a model could not be evaluated, after the results of the others.
    """
    evaluation = evaluate_models(models, out=out, **settings)
    if json:
        print(dumps(evaluation.as_dict(with_documents=documents), indent=2, allow_nan=False))
    else:
        print_tables(evaluation, console(), documents=documents)
        with_tasks = [(scores.model.label, scores.tasks) for scores in evaluation.models if scores.tasks]  # fmt: skip
        if len(with_tasks) > 1:
            from slm.evaluation.zero_shot.compare import print_comparison

            runs = [scores.model.result for scores in evaluation.models if scores.tasks]
            print_comparison(with_tasks, runs)
        if out is not None:
            print(f"written: {out}/page.html, models.csv, results.json, samples/")
    if evaluation.failures:
        raise failure_error(evaluation)
