"""`python -m slm curves`: plot the losses of runs to a page or a picture."""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from slm.charts import Figure, LossCurve, css_variables, loss_curves, page_script, script_json
from slm.errors import NO_VALUE, ConfigError, DataError, Problem
from slm.files import write_text
from slm.formatting import count
from slm.run_index.scan import Run, read_studies, read_study, run_directories, study_folders
from slm.tracking.run_dir import FLOPS, TOKENS, TRAIN_LOSS, VAL_LOSS, RunDirectory

SUFFIXES = (".html", ".png", ".svg")
FILE = "curves.html"
MIN_VALIDATIONS = 2  # of a run, so that there is a curve
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Loss curves: {title}</title>
<link rel="icon" href="data:,">
<style>
{colours}
:root {{ color-scheme: light dark; }}
body {{ margin: 0 auto; max-width: 1100px; padding: 16px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; }}
h1 {{ font-size: 1.4rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1rem; margin-bottom: 0; }}
figure {{ margin: 24px 0; }}
figcaption {{ color: var(--muted); font-size: .9rem; }}
.chart {{ width: 100%; }}
#vg-tooltip-element {{ position: fixed; visibility: hidden; padding: 7px 10px; border: 1px solid var(--muted);
  border-radius: 5px; background: var(--paper); color: var(--ink); font-size: .85rem; pointer-events: none; }}
#vg-tooltip-element.visible {{ visibility: visible; }}
#vg-tooltip-element td.key {{ color: var(--muted); padding-right: 10px; }}
</style>
</head>
<body>
<h1>Loss curves: {title}</h1>
<p>{runs}. Click a legend entry to highlight it; Ctrl + wheel zooms, Ctrl + drag moves the plot, a double click
resets it.</p>
{figures}
<script>{library}</script>
<script>
"use strict";
async function drawAll() {{
  for (const figure of document.querySelectorAll("figure")) {{
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const options = {{ actions: false, defaultStyle: false, renderer: "svg", tooltip: {{ disableDefaultStyle: true }} }};
    await vegaEmbed(figure.querySelector(".chart"), spec, options);
  }}
  document.documentElement.dataset.drawn = "true";
}}
drawAll();
</script>
</body>
</html>
"""
FIGURE = """<figure id="{name}">
<h2>{title}</h2>
<div class="chart" role="img" aria-label="{title}"></div>
<script type="application/json">{spec}</script>
<figcaption>{caption}</figcaption>
</figure>"""


def write_curves(folder: Path, out: Path | None, against: Literal["tokens", "flops"]) -> None:
    """Write the loss curves of all runs below a folder.

    Raises:
        ConfigError: if the file type is unknown.
        DataError: if no run has logged a loss.
    """
    out = out or folder / FILE
    if out.suffix not in SUFFIXES:
        rule = f"must end with {', '.join(SUFFIXES)}"
        raise ConfigError([Problem("out", str(out) or NO_VALUE, rule)])
    runs = [run for study in read_studies([folder]) for run in study.runs]
    if not runs:
        raise DataError(f"{folder}: no runs")
    figures = figures_of(runs, against)
    if not figures:
        raise DataError(f"{folder}: no run has logged a loss yet")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".html":
        write_text(out, page(str(folder), len(runs), figures))
    else:
        figures[0].save(out)
    print(f"loss curves: {out}")


def figures_of(runs: Sequence[Run], against: Literal["tokens", "flops"]) -> list[Figure]:
    """Return the training losses and, where runs have several, the validation losses."""
    families = _families(runs)
    training, validation = [], []
    for run in runs:
        rows = RunDirectory(run.path).read_metrics()
        training.append(curve_of(run, rows, TRAIN_LOSS))
        validated = curve_of(run, rows, VAL_LOSS)
        if len(validated.tokens) >= MIN_VALIDATIONS:
            validation.append(validated)
    figures = (
        loss_curves(training, families, against=against),
        loss_curves(
            validation,
            families,
            against=against,
            quantity="validation loss",
            name="validation_curves",
        ),
    )
    return [figure for figure in figures if figure is not None]


def _families(runs: Sequence[Run]) -> list[str]:
    """Return the families in the order of a report, so that the colours agree: the two compared ones first."""
    ratios = {run.family: run.settings.get("family.aspect_ratio") or 0.0 for run in runs}
    order = sorted(ratios, key=lambda family: (ratios[family], family))
    contrast = next((run.settings.get("study.contrast") for run in runs), None)
    first = [family for family in contrast or (order[0], order[-1]) if family in ratios]
    return list(dict.fromkeys([*first, *sorted(ratios)]))


def curves_of(folder: Path, run_ids: Collection[str]) -> list[LossCurve]:
    """Return the training losses of some runs below a folder; without runs, none."""
    found: dict[str, LossCurve] = {}
    for study in study_folders(folder) if folder.is_dir() else ():
        paths = [path for path in run_directories(study) if path.name in run_ids]
        for run in read_study(study, paths).runs:
            rows = RunDirectory(run.path).read_metrics()
            found.setdefault(run.run_id, curve_of(run, rows, TRAIN_LOSS))
    return list(found.values())


def curve_of(run: Run, rows: Iterable[Mapping[str, float]], key: str) -> LossCurve:
    """Return the logged losses in rows of metrics.jsonl."""
    logged = [row for row in rows if key in row and row.get(TOKENS)]
    flops_per_token = logged[-1].get(FLOPS, 0.0) / logged[-1][TOKENS] if logged else 0.0
    tokens, losses = (tuple(row[name] for row in logged) for name in (TOKENS, key))
    return LossCurve(run.run_id, run.name, run.family, flops_per_token, tokens, losses)


def page(title: str, runs: int, figures: Iterable[Figure]) -> str:
    """Return an HTML page with charts that loads nothing from the network."""
    drawn = [
        FIGURE.format(
            name=figure.name,
            title=html.escape(figure.title),
            caption=html.escape(figure.caption),
            spec=script_json(figure.spec()),
        )
        for figure in figures
    ]
    return PAGE.format(
        title=html.escape(title),
        runs=count(runs, "run"),
        colours=css_variables(),
        figures="\n".join(drawn),
        library=page_script().replace("</script", "<\\/script"),
    )
