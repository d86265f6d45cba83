"""Compare a deep and a wide family: all estimates, and the verdict.

The rules of the verdict are in `analysis.compare.verdict`; the estimates are in the other modules of
`analysis.compare` and in `analysis.learning_rate.audit`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.block.blocks import arrange
from analysis.compare.block_result import BlockResult
from analysis.compare.exponents import (
    ExponentDifference,
    exponent_difference_of,
    without_small_families,
)
from analysis.compare.fit_block import SAME_N, result_of
from analysis.compare.holdout import HoldOut, hold_out
from analysis.compare.matched_pairs import Contrast, paired_differences
from analysis.compare.robustness import Robustness, robustness_of
from analysis.compare.subsets import fit_subsets
from analysis.compare.verdict import Evidence, Verdict, decide
from analysis.design.identifiability import design_warnings, labels
from analysis.formatting import count
from analysis.learning_rate.audit import Audit, parse_audit
from analysis.runs.study import Columns, Study, prepare
from slm.errors import DataError
from slm.rounding import exceeds, snap_to_zero
from slm.summary import Summarized


@dataclass(frozen=True, repr=False)
class Comparison(Summarized):
    """Results of a study for two families.

    Attributes:
        deep, wide: names of the two families.
        verdict: word, findings on level and exponent, conditions and sentence.
        block: estimates of the block model for the primary definition of N (the primary analysis).
        by_definition: the same for every definition of N in the table.
        by_subset: the same without single other families, and without shapes of one layer (`analysis.compare.subsets`).
        robustness: deletions, bootstrap, permutation, other noise; None if refused.
        exponents: exponents of the joint law M2 with jackknife over shapes (the secondary analysis).
        matched: pairs of shapes at equal FLOPs; None if there are none.
        hold_out: prediction of the largest size from the smaller ones.
        audit: learning-rate audit that was given.
        warnings: weaknesses of the data and of the design.
        runs: number of runs.
        seed_sd: standard deviation between the seeds of a cell in nats, pooled; None without repeated seeds. The noise that
            the intervals use, `block.sigma`, contains the deviations of budgets from the law, too.
        tokens_per_param: smallest and largest D / N.
        largest_flops: largest training FLOPs of a run.
    """

    deep: str
    wide: str
    verdict: Verdict
    block: BlockResult
    by_definition: dict[str, BlockResult]
    by_subset: dict[str, BlockResult]
    robustness: Robustness | None
    exponents: ExponentDifference
    matched: Contrast | None
    hold_out: HoldOut
    audit: Audit | None
    warnings: tuple[str, ...]
    runs: int
    seed_sd: float | None
    tokens_per_param: tuple[float, float]
    largest_flops: float

    @property
    def status(self) -> str:
        """Status of the joint law: OK, WEAK, UNIDENTIFIED or REFUSED."""
        return self.exponents.status

    @property
    def estimates(self) -> dict[str, float]:
        """Return alpha per family by the joint law; empty if refused."""
        return self.exponents.alpha

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return the 95% interval of alpha per family by the joint law."""
        return self.exponents.alpha_intervals

    @property
    def difference(self) -> float | None:
        """Return alpha_deep - alpha_wide by the block model; None if refused."""
        return self.block.d_alpha

    def title(self) -> str:
        return self.verdict.title()

    def details(self) -> Iterator[tuple[str, str]]:
        yield "findings", f"level: {self.verdict.level}, exponent: {self.verdict.exponent}"
        yield from self.block.details()
        for name, one in self.by_definition.items():
            if name != self.block.n_name:
                yield f"exponent difference, N = {name} [95% CI]", one.d_alpha_text
        joint = self.exponents
        yield "exponent difference, joint law M2", f"{joint.difference_text} ({joint.status})"
        for family in self.estimates:
            yield f"alpha {family}, joint law M2", self.exponents.alpha_text(family)
        yield "hold-out of the largest size", self.hold_out.status
        audit = self.audit
        status = "passed" if audit and audit.passed(self.deep, self.wide) else "FAILED"
        yield "learning-rate audit", "not given" if audit is None else status
        for condition in self.verdict.conditions:
            yield "condition", condition
        for reason in self.verdict.reasons:
            yield "reason", reason
        for warning in self.warnings:
            yield "note", warning

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON, in which numbers that are not finite are null."""
        names = (
            "deep",
            "wide",
            "warnings",
            "runs",
            "seed_sd",
            "tokens_per_param",
            "largest_flops",
        )
        content = {key: getattr(self, key) for key in names}
        content["verdict"] = asdict(self.verdict)
        content["block"] = self.block.to_dict()
        content["by_definition"] = {name: one.to_dict() for name, one in self.by_definition.items()}
        content["by_subset"] = {name: one.to_dict() for name, one in self.by_subset.items()}
        content["robustness"] = None if self.robustness is None else asdict(self.robustness)
        content["exponents"] = self.exponents.to_dict()
        content["matched"] = None if self.matched is None else self.matched.to_dict()
        content["hold_out"] = asdict(self.hold_out)
        content["audit"] = None if self.audit is None else asdict(self.audit)
        return plain(content)


def plain(value: Any) -> Any:
    """Convert a value to builtin types for JSON; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def compare_families(
    table: pd.DataFrame,
    *,
    n_column: str = "n_flop",
    tokens_column: str = "tokens",
    loss_column: str = "loss_nats_per_token",
    family_column: str = "family",
    shape_column: str = "shape",
    deep: str | None = None,
    wide: str | None = None,
    flops_column: str | None = None,
    rung_column: str | None = None,
    seed_column: str | None = None,
    audit: pd.DataFrame | Mapping[str, Mapping[str, Any]] | Audit | None = None,
    vocab_size: int | None = None,
    bootstrap: int = 999,
    seed: int = 0,
) -> Comparison:
    """Compare two families of a table with one row per finished run.

    An estimate that the design cannot identify has status REFUSED in the result; this is not an error.

    Args:
        table: one row per finished run, such as `load_runs(...).table`.
        n_column: column with N of the primary definition, normally FLOPs per token / 6. The exponents
            are also estimated for the columns n_flop, params_non_embedding and params_total if present.
        tokens_column: column with the training tokens D, equal for both families of a rung.
        loss_column: column with the final loss in nats per token, after decay.
        family_column: column with the family.
        shape_column: column with the shape: one family at one size, for any tokens and seed.
        deep: family to compare as deep; None: the one with the smallest `aspect_ratio`, or by name.
        wide: family to compare as wide; None: the one with the largest `aspect_ratio`, or by name.
        flops_column: column with the training FLOPs; None: `flops` if present, else 6 N D.
        rung_column: column with a label that paired shapes share; None: `rung` if present, else by N.
        seed_column: column with the seed; None: `seed` if present.
        audit: runs of a learning-rate audit, or {family: {"interior": bool, "penalty": nats}}.
        vocab_size: if known, losses above its logarithm are an error.
        bootstrap: number of replicates of the parametric bootstrap; 0: none.
        seed: seed of the resampling.

    Raises:
        DataError: if a column is missing or has invalid values, or the two families are not defined.
    """
    for name, value in (("bootstrap", bootstrap), ("seed", seed)):
        if not isinstance(value, int) or value < 0:
            raise DataError(f"{name}={value!r}: must be a whole number, 0 or above")
    if not isinstance(table, pd.DataFrame):
        raise DataError(
            f"compare_families takes a table with one row per run, not {type(table).__name__}: "
            "load_runs(...).table, or pandas.DataFrame(rows)"
        )

    def present(asked: str | None, usual: str) -> str | None:
        return asked if asked is not None else usual if usual in table else None

    columns = Columns(
        n_column,
        tokens_column,
        loss_column,
        family_column,
        shape_column,
        flops=present(flops_column, "flops"),
        rung=present(rung_column, "rung"),
        seed=present(seed_column, "seed"),
        aspect=present(None, "aspect_ratio"),
    )
    return compare_study(
        prepare(table, columns, deep, wide, vocab_size),
        parse_audit(audit),
        bootstrap=bootstrap,
        seed=seed,
    )


def compare_study(
    study: Study, audit: Audit | None = None, *, bootstrap: int = 999, seed: int = 0
) -> Comparison:
    """Compare the families of a prepared study."""
    table = study.table
    study = _with_n_flop(study)
    block = _block(study, study.n_name)
    others = {name: _block(study, name) for name in study.n_definitions}
    exponents = exponent_difference_of(study)
    robustness, held_out = None, HoldOut()
    law = None if block.effects is None else block.effects.fit.law
    contrast = None
    if study.deep != study.wide:
        contrast = paired_differences(table, study.deep, study.wide, law)
    if block.effects is not None:
        robustness = robustness_of(
            block.effects, block.level_effects, bootstraps=bootstrap, seed=seed
        )
        held_out = hold_out(study, seed)
    evidence = Evidence(
        block,
        list(others.values()),
        () if robustness is None else robustness.without,
        None if block.refused else held_out,
        audit,
        () if audit is None else audit.gaps(table, study.deep, study.wide),
    )
    ratio = table["tokens"] / table["n"]
    return Comparison(
        deep=study.deep,
        wide=study.wide,
        verdict=decide(evidence),
        block=block,
        by_definition={study.n_name: block, **others},
        by_subset=fit_subsets(study) if block.effects is not None else {},
        robustness=robustness,
        exponents=exponents,
        matched=None if contrast is None or contrast.pairs.empty else contrast,
        hold_out=held_out,
        audit=audit,
        warnings=(
            *study.warnings,
            *_design_warnings(study, block),
            *(f"joint law and hold-out without {one}" for one in without_small_families(study)[1]),
            *_left_out(block, table),
        ),
        runs=len(table),
        seed_sd=_seed_sd(table),
        tokens_per_param=(float(ratio.min()), float(ratio.max())),
        largest_flops=float(table["flops"].max()),
    )


def _with_n_flop(study: Study) -> Study:
    """Return the study with N = FLOPs / (6 D) among its definitions, if it is not one of them."""
    n_flop = study.table["flops"] / (6 * study.table["tokens"])
    same = not exceeds(np.abs(study.table["n"] / n_flop - 1).max(), SAME_N)
    if same or "n_flop" in (study.n_name, *study.n_definitions):
        return study
    table = study.table.assign(n_flop=n_flop)
    return replace(study, table=table, n_definitions=("n_flop", *study.n_definitions))


def _block(study: Study, n_name: str) -> BlockResult:
    """Fit the block model with N in one of its definitions."""
    if study.deep == study.wide:
        reason = f"one family, {study.deep}; a comparison needs two, so run a second family at the same sizes"
        return BlockResult(study.deep, study.wide, n_name, reasons=(reason,))
    column = "n" if n_name == study.n_name else n_name
    blocks = arrange(study.table, deep=study.deep, wide=study.wide, n=column)
    return result_of(blocks, n_name=n_name)


def _left_out(block: BlockResult, table: pd.DataFrame) -> Iterator[str]:
    if not block.refused and (others := len(table) - block.runs - block.left_out):
        why = "have no aspect ratio"
        if block.is_labelled:
            why = (
                f"{block.deep} and {block.wide} are compared by name, since they do not differ in aspect_ratio or have "
                "none"
            )
        yield f"{count(others, 'run')} of other families not used by the block model: {why}"
    if not block.is_labelled and block.effects is not None:
        blocks = block.effects.fit.blocks
        if blocks.u_deep > blocks.u_wide:
            yield (
                f"{block.deep} has the larger d_model / n_layers, so it is the wide family; pass deep={block.wide!r} and "
                f"wide={block.deep!r}, or read `depth` in the verdict as {block.deep}"
            )
    if block.left_out:
        runs = count(block.left_out, "run")
        yield (
            f"{runs} not used by the block model: no other shape has the same rung and token count, or the FLOPs per "
            "token of the rung differ by more than 10%"
        )


def _design_warnings(study: Study, block: BlockResult) -> list[str]:
    pair = study.pair
    per_token = pair["flops"] / pair["tokens"] / 6
    family, rung = labels(list(pair["family"])), labels(list(pair["rung"]))
    drifts = not (block.refused or block.is_curved or block.is_labelled)
    return design_warnings(
        family,
        rung,
        per_token,
        pair["tokens"],
        list(pair["seed"]),
        aspect_ratio=pair["aspect_ratio"] if drifts else None,
    )


def _seed_sd(table: pd.DataFrame) -> float | None:
    """Return the pooled standard deviation over the seeds of a cell in nats; None without repeated seeds."""
    cells = table.groupby(["family", "shape", "tokens"])["loss_nats_per_token"]
    squares, count = (
        float(((table["loss_nats_per_token"] - cells.transform("mean")) ** 2).sum()),
        cells.ngroups,
    )
    extra = len(table) - count
    return snap_to_zero(math.sqrt(squares / extra)) if extra else None
