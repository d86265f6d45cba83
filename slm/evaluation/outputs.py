"""Files of an evaluation: models.csv, results.json, samples/, page.html and the charts as PNG."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from slm.charts import Figure, css_variables, page_script, script_json
from slm.errors import ConfigError, Problem
from slm.evaluation.figures import FIGURES, evaluation_figures
from slm.evaluation.load import has_run_config
from slm.evaluation.result import Evaluation, samples_of
from slm.evaluation.run_table import csv_text
from slm.evaluation.tables import comparison_table, conditions, notes, tables
from slm.files import read_json, write_json, write_text

TABLE, RESULTS, SAMPLES, PAGE = "models.csv", "results.json", "samples", "page.html"
SAMPLE_PARTS = 2  # of a path below samples/: model and file


def check_out(out: Path) -> None:
    """Create the folder, so that a wrong path is reported before anything is computed.

    Raises:
        ConfigError: if it is a file, holds runs, or cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        rule = "is a file, or below one" if is_file else f"cannot be created: {error.strerror}"
        raise ConfigError([Problem("out", out, rule, "name a folder")]) from None
    if has_run_config(out) or any(map(has_run_config, out.iterdir())):
        rule = "is a run directory, or contains some"
        raise ConfigError([Problem("out", out, rule, "choose another folder")])
    if not os.access(out, os.W_OK):
        rule = "no permission to write"
        raise ConfigError([Problem("out", out, rule, "choose another folder")])


def remove_earlier(out: Path) -> bool:
    """Remove the files of an earlier evaluation, and no others; return whether there was one.

    results.json names its models and tasks; a folder without it, or with an unreadable one, is left as it is.
    """
    try:
        earlier = read_json(out / RESULTS)
        files = [out / SAMPLES / file for file in _sample_files(earlier["models"])]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    for path in [
        *files,
        *(out / f"{name}.png" for name in FIGURES),
        *(out / name for name in (TABLE, PAGE, RESULTS)),
    ]:
        path.unlink(missing_ok=True)
    for folder in [*{path.parent for path in files}, out / SAMPLES]:
        with suppress(OSError):  # holds other files
            folder.rmdir()
    return True


def _sample_files(models: Sequence[Mapping[str, Any]]) -> Iterator[Path]:
    """Yield the paths below samples/ of the models in results.json."""
    for model in models:
        names = ["documents", *(task["task"] for task in model["tasks"])]
        for file in (Path(model["name"]) / f"{name}.jsonl" for name in names):
            if len(file.parts) == SAMPLE_PARTS and ".." not in file.parts:
                yield file


def write_tables(evaluation: Evaluation, out: Path) -> None:
    """Write models.csv, results.json and the samples of all models so far."""
    write_text(out / TABLE, csv_text(evaluation.models))
    write_json(out / RESULTS, evaluation.as_dict())
    for scores in evaluation.models[-1:]:
        for file, rows in samples_of(scores):
            path = out / SAMPLES / file
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, _json_lines(rows))


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def write_page(evaluation: Evaluation, out: Path) -> None:
    """Write page.html, which loads nothing from the network, and each of its charts as a PNG."""
    figures = evaluation_figures(evaluation)
    for figure in figures:
        figure.save(out / f"{figure.name}.png")
    write_text(out / PAGE, page(evaluation, figures))


def page(evaluation: Evaluation, figures: Sequence[Figure]) -> str:
    """Return the HTML of an evaluation with its charts."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("slm.evaluation"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("page.html.j2").render(
        evaluation=evaluation,
        conditions=list(conditions(evaluation)),
        tables=[*tables(evaluation), *filter(None, [comparison_table(evaluation)])],
        notes=list(notes(evaluation)),
        figures=figures,
        colours=Markup(css_variables()),
        script_json=lambda value: Markup(script_json(value)),
        library=Markup(page_script().replace("</script", "<\\/script")),
    )
