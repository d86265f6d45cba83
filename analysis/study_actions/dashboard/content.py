"""What the workspace and the W&B report show of a study: families and colours, last report, failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from analysis.charts import report_figures
from analysis.learning_rate.gate import read_lr_audit
from analysis.report import tables, text
from analysis.report.study_report import StudyReport
from analysis.study_actions.report import write_report
from slm.charts import Series, literal
from slm.errors import DataError
from slm.run.display_name import display_name, size_label
from slm.studies.cells import Cell, contrast_of
from slm.summary import Rows

IMAGE = "report/"  # prefix of the W&B key of a chart of the report
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
        images: PNG files of the report's charts, by W&B key.
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
    def max_runs(self) -> int:
        """Number of runs that a panel must be able to show; W&B's default is 10."""
        return len(self.cells) + SPARE_RUNS

    @cached_property
    def colours(self) -> dict[str, str]:
        """Return the colour of each family, as in the report."""
        series = Series(self.families)
        return {family: literal(series.colour(family)) for family in self.families}

    @property
    def group_keys(self) -> list[str]:
        """Return the config keys that group the runs: a group contains the seeds of a cell."""
        grid = self.cells[0].spec.config.study.grid
        return ["run.family", "run.rung", "run.tokens_per_param", *grid]

    def group_colours(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield the path of each group and of the groups that contain it, and the colour of its family."""
        groups = map(group_of, self.cells)
        for path in dict.fromkeys(
            group[:end] for group in groups for end in range(1, len(group) + 1)
        ):
            yield path, self.colours[path[0]]

    def lr_audit(self) -> str:
        """Return the result of the learning-rate audit that the study names; empty without one."""
        path = self.cells[0].spec.config.study.lr_audit
        if path is None:
            return ""
        rows = [
            {"family": name, **{key: _text(value) for key, value in family.items()}}
            for name, family in read_lr_audit(Path(path))["families"].items()
        ]
        return f"### Learning-rate audit\n\n{markdown_table(rows)}\n\nFrom `{path}`."

    def failures(self) -> str:
        """Return the number of runs by state, and the failed and diverged ones with their error."""
        states = Counter(cell.state for cell in self.cells)
        counts = [{"state": state, "runs": str(n)} for state, n in states.most_common()]
        rows = [
            {"run": display_name(cell.spec), "state": cell.state, "reason": reason(cell)}
            for cell in self.cells
            if cell.state in {"failed", "diverged"}
        ]
        listed = markdown_table(rows) if rows else "No cell has failed or diverged."
        return f"### Runs by state\n\n{markdown_table(counts)}\n\n{listed}"


def load_content(cells: Sequence[Cell], folder: Path) -> Content:
    """Write the study's report as `action=report` does, and its charts as PNG files to `folder`."""
    names = [cell.family for cell in cells]
    families = tuple(dict.fromkeys((*contrast_of(cells), *names)))
    try:
        report = write_report(cells)
    except DataError as error:
        return Content(cells, families, f"There is no report yet: {error}.")
    if report is not None:
        images = {
            IMAGE + chart.name: folder / f"{chart.name}.png" for chart in report_figures(report)
        }
        for chart in report_figures(report):
            chart.save(images[IMAGE + chart.name])
        families = tuple(dict.fromkeys((*report.families, *names)))
        losses = markdown_table(tables.loss_rows(report))
        return Content(cells, families, verdict(report), text.headline(report), losses, images)
    written = report_folder(cells)
    page = "\n\n".join(file.read_text(encoding="utf-8") for file in written.glob("*.md"))
    images = {IMAGE + file.stem: file for file in sorted(written.glob("*.png"))}
    return Content(cells, families, page, images=images)


def report_folder(cells: Sequence[Cell]) -> Path:
    config = cells[0].spec.config
    return Path(config.runs_dir) / config.study.name / "report"


def verdict(report: StudyReport) -> str:
    """Return the verdict in a word and in a sentence, the estimates, and what they depend on."""
    found = report.comparison.verdict
    estimates = [{"estimate": value, "quantity": name} for value, name in text.key_numbers(report)]
    conditions = [f"- {condition}" for condition in found.conditions]
    return "\n\n".join(
        [
            f"## {text.headline(report)} (`{found.word}`)",
            *text.findings(report),
            markdown_table(estimates),
            *(["Conditions:", "\n".join(conditions)] if conditions else []),
            markdown_table(tables.family_rows(report)),
        ]
    )


def reason(cell: Cell) -> str:
    """Return the first line of a failed cell's error, or the step at which a cell diverged."""
    if cell.state == "failed":
        return cell.run.failure()
    result = cell.result
    return "" if result is None else f"diverged after {result.steps:,} steps"


def group_of(cell: Cell) -> tuple[str, ...]:
    """Return the values of `Content.group_keys` as text."""
    grid = [override.partition("=")[2] for override in cell.varied]
    return (cell.family, size_label(cell.spec), f"{cell.spec.tokens_per_param:.3g}", *grid)


def markdown_table(rows: Rows) -> str:
    heading = list(rows[0])
    lines = ["| " + " | ".join(heading) + " |", "|" + " --- |" * len(heading)]
    escaped = ([cell.replace("|", "\\|") for cell in row.values()] for row in rows)
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in escaped)])


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
