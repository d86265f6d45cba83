"""Arrange runs in blocks: runs of one rung with equal tokens, which differ only in their shape.

`u` of a shape is ln(d_model / n_layers), centred over the shapes. Where the two families do not differ in it, it is
-1/2 for the family named deep and +1/2 for the other. Imports only numpy, because planning must start fast.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.arrays import Floats, Ints, Mask, codes
from analysis.design.identifiability import MIN_SIZES, SAME, count_distinct, labels
from slm.rounding import exceeds, merge_close, stable_argsort

MIN_ASPECT_DIFFERENCE = 0.2  # of mean ln(aspect ratio); below, the two families are labels
MIN_ASPECTS = 3  # in one rung, for a curvature
MAX_ROUNDING = math.log(2)  # range of ln(aspect ratio) in a family, by rounding to integers
MAX_MISMATCH = 0.10  # of FLOPs per token within a rung; up to here the correction to equal FLOPs is first-order
LABELS = ("family", "shape", "rung", "seed")
PER_RUN = ("row", "n", "tokens", "flops", "loss", "u")


@dataclass(frozen=True)
class Blocks:
    """Runs that meet another shape in their block, one entry per run in every array.

    Attributes:
        row: index of the run in the given columns; runs are sorted by their numbers.
        n, tokens, flops: N in the chosen definition, training tokens, training FLOPs.
        loss: loss in nats per token; nan for planned runs.
        rung, block, shape, trunk: codes 0, 1, 2, ...; rungs are sorted by N. A trunk is a shape with one seed.
        u: centred ln(aspect ratio), or -1/2 and +1/2.
        families: family of each shape.
        shape_names, rung_names: labels by code.
        u_deep, u_wide: mean u over the shapes of the two families that are compared.
        mean_log_aspect: ln(aspect ratio) at u = 0; nan if u is a label.
        left_out: runs that meet no other shape in their block, or whose rung is not matched in FLOPs.
        is_labelled: whether u only labels the two families.
        is_matched: whether runs share blocks. If not, `block` and `rung` have no meaning, and no run is left out.
    """

    row: Ints
    n: Floats
    tokens: Floats
    flops: Floats
    loss: Floats
    rung: Ints
    block: Ints
    shape: Ints
    trunk: Ints
    u: Floats
    families: tuple[str, ...]
    shape_names: tuple[str, ...]
    rung_names: tuple[Hashable, ...]
    u_deep: float
    u_wide: float
    mean_log_aspect: float
    deep: str
    wide: str
    is_labelled: bool
    is_matched: bool
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.n)

    @property
    def first(self) -> Ints:
        """Index of the first run of each shape."""
        return np.unique(self.shape, return_index=True)[1]

    @property
    def log_n_rung(self) -> Floats:
        """Mean of ln N over the shapes of each rung, (rungs,)."""
        first = self.first
        rung, log_n = self.rung[first], np.log(self.n[first])
        return np.bincount(rung, log_n) / np.bincount(rung)

    @property
    def is_curved(self) -> bool:
        """Whether a curvature in u can be estimated: three aspect ratios in a rung.

        Unmatched runs: three families whose means differ, or one whose aspect ratios vary by more than rounding.
        """
        if self.is_labelled:
            return False
        if self.is_matched:
            ratios = np.exp(self.u)
            return any(
                count_distinct(ratios[self.rung == r]) >= MIN_ASPECTS for r in set(self.rung)
            )
        first = self.u[self.first]
        families = np.array(self.families, dtype=object)
        own = [first[families == name] for name in dict.fromkeys(self.families)]
        gaps = np.diff(np.sort([u.mean() for u in own]))
        distinct = 1 + int(exceeds(gaps, MIN_ASPECT_DIFFERENCE).sum())
        return distinct >= MIN_ASPECTS or any(exceeds(np.ptp(u), MAX_ROUNDING) for u in own)

    @property
    def family(self) -> NDArray[Any]:
        """Family of each run."""
        return np.array(self.families, dtype=object)[self.shape]

    @property
    def sides(self) -> tuple[Mask, Mask]:
        """Whether each run belongs to the deep family, and to the wide family."""
        return self.family == self.deep, self.family == self.wide

    @property
    def common_rungs(self) -> list[int]:
        """Rungs with runs of both compared families, from small to large."""
        deep, wide = (set(self.rung[side].tolist()) for side in self.sides)
        return sorted(deep & wide)

    @property
    def is_complete(self) -> bool:
        """Whether shapes that meet in a block share all blocks, and all shapes have equally many runs per block."""
        if not self.is_matched or not len(self):
            return False
        cells = np.zeros((self.shape.max() + 1, self.block.max() + 1), np.int64)
        np.add.at(cells, (self.shape, self.block), 1)
        present = (cells > 0).astype(np.int64)
        blocks = present.sum(axis=1)
        shared = present @ present.T  # blocks that two shapes share
        return bool(
            len(set(cells[cells > 0])) == 1
            and len(set(blocks)) == 1
            and np.isin(shared, [0, blocks[0]]).all()
        )

    def with_n(self, n: Floats) -> Blocks:
        """Return the same runs with another definition of N."""
        return replace(self, n=n)

    def select(self, kept: Mask) -> Blocks:
        """Return the kept runs, without those that no longer meet another shape in their block.

        u, u_deep and u_wide stay those of all runs.
        """
        if self.is_matched:
            kept = kept & _meets_another_shape(self.block, self.shape, kept)
        rows = np.flatnonzero(kept)
        shape, first = np.unique(self.shape[rows], return_inverse=True)
        rung, rung_code = np.unique(self.rung[rows], return_inverse=True)
        arrays = {name: getattr(self, name)[rows] for name in PER_RUN}
        return replace(
            self,
            **arrays,
            rung=rung_code,
            shape=first,
            block=codes(self.block[rows].tolist()),
            trunk=codes(self.trunk[rows].tolist()),
            families=tuple(self.families[code] for code in shape),
            shape_names=tuple(self.shape_names[code] for code in shape),
            rung_names=tuple(self.rung_names[code] for code in rung),
        )


def arrange(columns: Any, *, deep: str, wide: str, n: str = "n_flop") -> Blocks:
    """Arrange the runs of a table, a DataFrame or a mapping of columns, in blocks.

    Needs the columns family, shape, tokens, flops and `n`; uses rung, seed, aspect_ratio and loss_nats_per_token.
    Runs of a third family without an aspect ratio are left out, and all third families if u is a label.
    """
    runs = _sorted_runs(columns, n)
    family, names = runs["family"], runs["shape"]
    size, tokens, flops = (runs[key] for key in (n, "tokens", "flops"))
    missing = np.full(len(size), np.nan)
    aspects = np.log(runs["aspect_ratio"]) if "aspect_ratio" in runs else missing
    is_labelled = not _differ(aspects, family, deep, wide)
    rung = runs.get("rung", np.full(len(size), None, object))
    kept = np.isin(family, [deep, wide]) if is_labelled else np.isfinite(aspects)
    block = _block_codes(rung, tokens)
    eligible, matched = int(kept.sum()), kept & _is_matched(rung, flops / tokens, kept)
    common, left = (_common(rung, block, family, (deep, wide), rows) for rows in (kept, matched))
    is_matched = (
        "rung" in runs and left > 0 and (left == common or left >= max(MIN_SIZES, common / 2))
    )
    kept = matched if is_matched else kept
    rungs = _by_size(rung[kept], size[kept])
    shape = codes(zip(family, rung, names, strict=True))
    first = np.unique(shape, return_index=True)[1]
    seeds = runs.get("seed", np.zeros(len(size)))
    every = Blocks(
        row=runs["row"],
        n=size,
        tokens=tokens,
        flops=flops,
        loss=runs.get("loss_nats_per_token", missing),
        rung=np.array([rungs.index(name) if name in rungs else -1 for name in rung], np.int64),
        block=block,
        shape=shape,
        trunk=codes(zip(shape.tolist(), seeds, strict=True)),
        u=np.where(family == deep, -0.5, 0.5) if is_labelled else aspects,
        families=tuple(str(name) for name in family[first]),
        shape_names=tuple(f"{family[i]} {names[i]}" for i in first),
        rung_names=tuple(rungs),
        u_deep=math.nan,
        u_wide=math.nan,
        mean_log_aspect=math.nan,
        deep=deep,
        wide=wide,
        is_labelled=is_labelled,
        is_matched=is_matched,
    ).select(kept)
    return replace(_centred(every), left_out=eligible - len(every))


def _sorted_runs(columns: Any, n: str) -> dict[str, NDArray[Any]]:
    """Return the columns that are used as arrays, and `row`, the place of each run in the given columns.

    The runs are sorted by their numbers alone: codes, sums and random draws then depend neither on the order of the
    given rows nor on the names of families and shapes.
    """
    numbers = (n, "tokens", "flops", "loss_nats_per_token", "aspect_ratio")
    runs = {name: labels(columns[name]) for name in LABELS if name in columns}
    runs |= {name: np.asarray(columns[name], float) for name in numbers if name in columns}
    keys = [merge_close(runs[name]) for name in numbers[:4] if name in runs]
    order = np.lexsort(keys[::-1])
    return {"row": order} | {name: values[order] for name, values in runs.items()}


def _centred(blocks: Blocks) -> Blocks:
    """Return the blocks with u centred over the shapes, and the mean u of the two families."""
    of_shape = blocks.u[blocks.first]
    middle = 0.0 if blocks.is_labelled or not len(blocks) else float(of_shape.mean())
    family = np.array(blocks.families, dtype=object)
    deep, wide = (
        float(of_shape[family == name].mean() - middle) if (family == name).any() else math.nan
        for name in (blocks.deep, blocks.wide)
    )
    mean = math.nan if blocks.is_labelled else middle
    return replace(blocks, u=blocks.u - middle, u_deep=deep, u_wide=wide, mean_log_aspect=mean)


def _by_size(rung: NDArray[Any], size: Floats) -> list[Hashable]:
    """Return the names of the rungs from small to large."""
    names = list(dict.fromkeys(rung))
    means = [float(np.log(size[rung == name]).mean()) for name in names]
    return [names[i] for i in stable_argsort(means)]


def _differ(aspects: Floats, family: NDArray[Any], deep: str, wide: str) -> bool:
    """Return whether the aspect ratios of both families are known and differ."""
    sides = [aspects[family == name] for name in (deep, wide)]
    if not all(len(side) and np.isfinite(side).all() for side in sides):
        return False
    return bool(exceeds(abs(sides[0].mean() - sides[1].mean()), MIN_ASPECT_DIFFERENCE))


def _common(
    rung: NDArray[Any], block: Ints, family: NDArray[Any], pair: tuple[str, str], rows: Mask
) -> int:
    """Return the number of rungs in which both families have a run with the same tokens."""
    sides = [rows & (family == name) for name in pair]
    shared = np.isin(block, np.intersect1d(*(block[side] for side in sides)))
    return len(set(rung[shared & rows].tolist()))


def _is_matched(rung: NDArray[Any], flops_per_token: Floats, kept: Mask) -> Mask:
    """Return whether the FLOPs per token of a run's rung agree within MAX_MISMATCH."""
    found = np.zeros(len(rung), dtype=bool)
    for name in dict.fromkeys(rung[kept]):
        rows = kept & (rung == name)
        values = flops_per_token[rows]
        found[rows] = not exceeds(values.max() / values.min(), 1 + MAX_MISMATCH)
    return found


def _block_codes(rung: NDArray[Any], tokens: Floats) -> Ints:
    """Return the block of each run: sorted token counts within 0.1% of their neighbour are one budget."""
    found = np.zeros(len(tokens), np.int64)
    used = 0
    for name in dict.fromkeys(rung):
        rows = np.flatnonzero(rung == name)
        order = rows[np.argsort(tokens[rows], kind="stable")]
        steps = exceeds(tokens[order][1:] / tokens[order][:-1], 1 + SAME)
        found[order] = used + np.concatenate([[0], np.cumsum(steps)])
        used = int(found.max()) + 1
    return found


def _meets_another_shape(block: Ints, shape: Ints, kept: Mask) -> Mask:
    shapes: dict[int, set[int]] = {}
    for b, s in zip(block[kept], shape[kept], strict=True):
        shapes.setdefault(int(b), set()).add(int(s))
    return np.array([len(shapes.get(int(b), ())) > 1 for b in block], dtype=bool)
