"""What the workspace and the W&B report show of a study: families and colours, last report, failures."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from analysis.charts import report_figures
from analysis.learning_rate.gate import read_lr_audit
from analysis.report import tables, text
from analysis.report.study_report import StudyReport
from analysis.report.write import markdown_table
from analysis.study_actions.report import write_report
from slm.charts import Series, literal
from slm.errors import DataError
from slm.run.display_name import display_name, size_label
from slm.studies.cells import Cell, colour_order
from slm.summary import Rows

log = logging.getLogger("slm")
SPARE_RUNS = (
    10  # shown beside the cells: the run with the report, and runs of an earlier definition
)


@dataclass(frozen=True)
class Content:
    """A study and its report.

    Attributes:
        families: in the order of the report, which defines their colours.
        verdict: the last report in Markdown, or why there is none.
        headline: the verdict in one sentence; empty without a comparison of families.
        losses: table of the loss of each family and the paired difference by rung, in Markdown.
        images: PNG files of the report's charts, by name.
    """

    cells: Sequence[Cell]
    families: tuple[str, ...]
    verdict: str
    headline: str = ""
    losses: str = ""
    images: Mapping[str, Path] = field(default_factory=dict)

    @property
    def study(self) -> str:
        return self.cells[0].spec.config.study.name

    @property
    def kind(self) -> str:
        return self.cells[0].spec.config.study.analysis

    @property
    def recipe_ids(self) -> list[str]:
        """Recipes of the cells; runs of an earlier recipe of the study are not shown."""
        return sorted({cell.spec.recipe_id for cell in self.cells})

    @property
    def max_runs(self) -> int:
        """Number of runs that a panel must be able to show; W&B's default is 10."""
        return len(self.cells) + SPARE_RUNS

    def colour(self, family: str) -> str:
        """Return the colour of a family in the report."""
        return str(literal(Series(self.families).colour(family)))

    @property
    def group_keys(self) -> list[str]:
        """Return the keys of the W&B config that group the runs: a group has the seeds of a cell."""
        grid = self.cells[0].spec.config.study.grid
        return ["run.family", "run.rung", "run.tokens_per_param", *grid]

    def group_colours(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield the values of `group_keys` of each group, also of the first keys only, and its colour."""
        paths = []
        for cell in self.cells:
            grid = [override.partition("=")[2] for override in cell.varied]
            budget = f"{cell.spec.tokens_per_param:.3g}"
            path = (cell.family, size_label(cell.spec), budget, *grid)
            paths += [path[:end] for end in range(1, len(path) + 1)]
        for path in dict.fromkeys(paths):
            yield path, self.colour(path[0])

    def lr_audit(self) -> str:
        """Return the result of the learning-rate audit that the study names; empty without one."""
        path = self.cells[0].spec.config.study.lr_audit
        if path is None:
            return ""
        rows = [
            {"family": name, **{key: str(value) for key, value in family.items()}}
            for name, family in read_lr_audit(Path(path))["families"].items()
        ]
        return f"### Learning-rate audit\n\n{markdown(rows)}\n\nFrom `{path}`."

    def failures(self) -> str:
        """Return the number of runs by state, and the failed and diverged ones with the reason."""
        states = Counter(cell.state for cell in self.cells)
        counts = [{"state": state, "runs": str(n)} for state, n in states.most_common()]
        rows = [
            {"run": display_name(cell.spec), "state": cell.state, "reason": _reason(cell)}
            for cell in self.cells
            if cell.state in {"failed", "diverged"}
        ]
        listed = markdown(rows) if rows else "No cell has failed or diverged."
        return f"### Runs by state\n\n{markdown(counts)}\n\n{listed}"


def _reason(cell: Cell) -> str:
    if cell.state == "failed":
        return cell.run.failure()
    return "" if cell.result is None else f"diverged after {cell.result.steps:,} steps"


def report_folder(cells: Sequence[Cell]) -> Path:
    config = cells[0].spec.config
    return Path(config.runs_dir) / config.study.name / "report"


def load_content(cells: Sequence[Cell], folder: Path) -> Content:
    """Write the study's report as `action=report` does, and its charts as PNG files to `folder`."""
    families = tuple(colour_order(cells))
    try:
        report = write_report(cells)
    except DataError as error:
        log.warning("%s", error)
        return Content(cells, families, f"There is no report yet: {error}.")
    if report is None:  # of another kind than families
        written = report_folder(cells)
        page = "\n\n".join(file.read_text(encoding="utf-8") for file in written.glob("*.md"))
        images = {file.stem: file for file in sorted(written.glob("*.png"))}
        return Content(cells, families, page, images=images)
    images = {}
    for chart in report_figures(report):
        images[chart.name] = folder / f"{chart.name}.png"
        chart.save(images[chart.name])
    return Content(
        cells,
        families,
        verdict(report),
        text.headline(report),
        markdown(tables.loss_rows(report)),
        images,
    )


def verdict(report: StudyReport) -> str:
    """Return the verdict in a word and in a sentence, the estimates, and what they depend on."""
    found = report.comparison.verdict
    estimates = [{"estimate": value, "quantity": name} for value, name in text.key_numbers(report)]
    return "\n\n".join(
        [
            f"## {text.headline(report)} (`{found.word}`)",
            *text.findings(report),
            markdown(estimates),
            *(f"Condition: {condition}." for condition in found.conditions),
            markdown(tables.family_rows(report)),
        ]
    )


def markdown(rows: Rows) -> str:
    return "\n".join(markdown_table(rows))
