"""Load finished runs into one tidy table, and count every dropped run by reason.

Sources: run directories, a results file of a study, a W&B project, or any table (`analysis.runs.tables`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from analysis.formatting import count, format_dropped, span
from analysis.runs.comparable import OTHER_VALIDATION_SET, comparable
from analysis.runs.one_design import with_one_design
from analysis.runs.response import LOSS, Response
from analysis.runs.result_table import results_table
from analysis.runs.sources import NOT_A_CELL, collect, is_results_file, no_runs
from analysis.runs.validate import label_warnings
from slm.errors import DataError
from slm.rounding import stable_argsort
from slm.summary import Rows, Summarized
from slm.tracking.result import RunResult
from slm.tracking.results_file import read_results

MAX_LISTED, MAX_CHARACTERS = 3, 12  # of the differing values in a warning


@dataclass(frozen=True, repr=False)
class Runs(Summarized):
    """Table with one row per finished run; `dropped` counts the other runs by reason.

    `response`: the quantity in the column of the loss.
    """

    table: pd.DataFrame
    dropped: Counter[str]
    warnings: tuple[str, ...]
    response: Response = LOSS

    @property
    def families(self) -> list[str]:
        """Families sorted from deep to wide by mean aspect ratio, or by name if the table has no aspect ratios."""
        if "aspect_ratio" not in self.table:
            return sorted(self.table["family"].unique())
        aspects = self.table.groupby("family")["aspect_ratio"].mean()
        return [str(name) for name in aspects.index[stable_argsort(aspects)]]

    def title(self) -> str:
        runs = count(len(self.table), "finished run")
        if "family" not in self.table:
            return runs
        return f"{runs} of {count(len(self.families), 'family', 'families')}: {', '.join(self.families)}"

    def details(self) -> Iterator[tuple[str, str]]:
        for name, column in (("N_flop", "n_flop"), ("tokens", "tokens")):
            if column in self.table and len(self.table):
                yield name, span(self.table[column])
        if len(self.table):
            losses = self.table["loss_nats_per_token"]
            yield self.response.label, f"{losses.min():.4f} to {losses.max():.4f}"
        yield "left out", format_dropped(self.dropped)
        for warning in self.warnings:
            yield "note", warning

    def rows(self) -> Rows:
        """Return one row per family."""
        rows = []
        for family, runs in self.table.groupby("family", sort=False):
            row = {"family": str(family), "runs": str(len(runs))}
            for name, column in (("N_flop", "n_flop"), ("tokens", "tokens")):
                if column in runs:
                    row[name] = span(runs[column])
            losses = runs["loss_nats_per_token"]
            row[self.response.label] = f"{losses.min():.4f} to {losses.max():.4f}"
            rows.append(row)
        return rows


def load_runs(
    source: Path | str | Sequence[Path | str],
    only: Collection[str] | None = None,
    *,
    pool_validation_sets: bool = False,
    columns: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
) -> Runs:
    """Load all finished runs of a source, or only those with the given run ids.

    Args:
        source: a folder of run directories, of W&B offline runs or of tables; the results file of a study
            (`study.results`); one or several tables (CSV, TSV, JSON, JSON lines, Parquet, also compressed); or
            `wandb:ENTITY/PROJECT`.
        only: run ids to keep; None keeps all runs, but of slm only those of one design of a study
            (`analysis.runs.one_design`).
        pool_validation_sets: keep runs of every validation set. By default only the most common validation
            set is kept and the other runs are dropped, because losses on different sets are not comparable.
        columns: name in the source of each column, such as {"tokens": "D"}, for tables and for W&B runs of other
            programs, whose names are those of the config and the summary (`analysis.runs.columns`).
        constants: value of columns that are equal in all runs, such as {"family": "mine"}: a word or a number.

    Columns have their units in their names or here: `loss_nats_per_token` after decay; `flops` of the whole
    training, by the convention of `flops_convention`; `n_flop` = flops_per_token / 6; `tokens`;
    `tokens_per_param` as requested, equal across the families of a rung; `size` as requested, or N_flop for
    the rung of a preset.

    Raises:
        DataError: if the source has no finished run or none that is comparable, with the reasons, or a value is
            invalid; it names the column, line and file.
    """
    if not isinstance(source, (Path, str)) and len(source) == 1:
        source = source[0]
    if isinstance(source, (Path, str)) and is_results_file(Path(source)):
        if columns or constants:
            raise DataError(
                f"{source}: a results file of a study has its own columns; remove columns and constants"
            )
        results = read_results(Path(source)).values()
        runs = runs_from_results(results, only, pool_validation_sets=pool_validation_sets)
        if only is not None:
            return runs
        table, notes = with_one_design(runs.table, runs.dropped)
        return replace(runs, table=table, warnings=(*notes, *runs.warnings))
    table, dropped, notes = collect(source, only, columns, constants)
    table = comparable(table, dropped, pool_validation_sets=pool_validation_sets, columns=columns)
    if table.empty:
        raise no_runs(source, dropped, "comparable run", notes)
    if only is None:
        table, more = with_one_design(table, dropped)
        notes += more
    return Runs(table, dropped, (*notes, *_warnings(table, dropped)))


def runs_from_results(
    results: Iterable[RunResult],
    only: Collection[str] | None = None,
    *,
    pool_validation_sets: bool = False,
) -> Runs:
    """Build the table of `load_runs` from results that are already in memory.

    Raises:
        DataError: if no run has finished or none is comparable.
    """
    dropped: Counter[str] = Counter()
    finished = []
    for result in results:
        if only is not None and result.run_id not in only:
            dropped[NOT_A_CELL] += 1
        elif result.status != "finished":
            dropped[f"not finished ({result.status})"] += 1
        else:
            finished.append(result)
    if not finished:
        raise no_runs("results", dropped)
    table = comparable(results_table(finished), dropped, pool_validation_sets=pool_validation_sets)
    if table.empty:
        raise no_runs("results", dropped, "comparable run")
    return Runs(table, dropped, tuple(_warnings(table, dropped)))


def _warnings(table: pd.DataFrame, dropped: Counter[str]) -> Iterator[str]:
    if others := dropped[OTHER_VALIDATION_SET]:
        yield (
            f"{count(others, 'run')} dropped: evaluated on another validation set, so the losses are not comparable; "
            "pass --pool-validation-sets to include them"
        )
    for column in ("commit", "study", "val_fingerprint", "recipe_id"):
        if column not in table:
            continue
        values = table[column].dropna().unique()
        if len(values) > 1:
            yield f"runs differ in {column}: {_first_few(values)}"
    spiky = table.get("unusual_spikes", pd.Series(dtype=object)).map(str) == "True"
    if spiky.any():
        runs = table.loc[spiky, "run_id"]
        yield (
            f"{count(len(runs), 'run')} with more loss spikes than chance explains: {', '.join(runs)}; inspect the "
            "loss curves, and repeat a run with a real spike with another seed instead of dropping it"
        )
    if "epochs" in table and (table["epochs"] > 1).any():
        yield f"some runs repeat the training text, up to {table['epochs'].max():.3g} epochs"
    yield from label_warnings("family", table["family"].astype(str))


def _first_few(values: Iterable[object]) -> str:
    texts = [str(value)[:MAX_CHARACTERS] for value in values]
    more = f" and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
    return ", ".join(texts[:MAX_LISTED]) + more
