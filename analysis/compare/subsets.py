"""The block model without runs that the comparison of two families does not need."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.arrays import Mask
from analysis.compare.block_result import BlockResult
from analysis.compare.fit_block import fit_block_model
from analysis.runs.study import Study


def fit_subsets(study: Study) -> dict[str, BlockResult]:
    """Fit the block model without each family that is not compared, and without shapes of one layer.

    The other families enter only through the curve over ln(aspect ratio), and a shape of one layer may not lie on it. A
    finding that needs them depends on the form of that curve. Subsets in which nothing can be estimated are left out.
    """
    table, found = study.table, dict[str, BlockResult]()
    for name, is_kept in _subsets(study):
        if {study.deep, study.wide} <= set(table["family"][is_kept]):
            rows = table[is_kept].reset_index(drop=True)
            block = fit_block_model(rows, deep=study.deep, wide=study.wide, n="n")
            if not block.refused:
                found[name] = block
    return found


def _subsets(study: Study) -> Iterator[tuple[str, Mask]]:
    table = study.table
    for family in study.families:
        if family not in (study.deep, study.wide):
            yield f"without {family}", table["family"].to_numpy() != family
    if "n_layers" in table:
        is_one_layer = table["n_layers"].to_numpy() < 1.5  # False where it is not known
        if is_one_layer.any():
            yield "without shapes of one layer", ~is_one_layer
