"""Generators of simulated studies with a known truth, one named row of the validation each.

The loss of a run is E + A N^-alpha exp(q) + B D^-beta with q = h1 u + h2 u^2 - gamma u x, where u = ln of the
aspect ratio over that of the centre and x = ln(N / CENTRE). The random effect of a shape (sd tau), that of a
trunk (sd tau_seed) and the noise of a run (sd sigma) are added in nats.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from analysis.arrays import Floats

E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
SMALLEST, LARGEST = 1e7, 3.16e8
CENTRE = math.sqrt(SMALLEST * LARGEST)
DEEP_ASPECT, MIDDLE_ASPECT, WIDE_ASPECT = 24.0, 64.0, 192.0
DEEP, WIDE = "aspect_24", "aspect_192"
CENTRE_ASPECT = math.sqrt(DEEP_ASPECT * WIDE_ASPECT)
SPAN = math.log(DEEP_ASPECT / WIDE_ASPECT)  # u_deep - u_wide
BUDGETS = (8.0, 24.0, 72.0)
MISMATCH = 0.01  # FLOPs of a shape deviate by up to 1% from those of its rung


@dataclass(frozen=True)
class Row:
    """Design, truth and disturbances of the simulated studies of one row.

    Attributes:
        sizes: number of rungs between SMALLEST and LARGEST.
        aspects: aspect ratio of each family.
        level: true ln(A_deep / A_wide) at CENTRE.
        d_alpha: true alpha_deep - alpha_wide.
        h2: true curvature of ln A in u.
        e_gap: true E_deep - E_wide in nats.
        tau, tau_seed, sigma: standard deviations of shapes, trunks and runs in nats.
        seeds: number of seeds; with `anchors` only at the smallest, middle and largest rung, else 1.
        drift: change of u of all shapes per unit of ln N; `jitter`: largest deviation of u of a shape.
        rung_effect: sd of a shift common to all shapes of a rung.
        slope: sd over shapes of a slope of the loss in ln D.
        walk: sd of a step of a random walk of a shape's loss over its budgets.
        deep_noise: factor on the noise of shapes and runs of the deep family.
        noise_power: all noise is proportional to (N / CENTRE)^noise_power.
        heavy_tails: t(3) noise with the same standard deviations.
        outlier: shift of the loss of one shape.
        missing: share of runs that are missing at random.
        unbalanced: rungs alternate between five and two budgets.
        token_grid: the same token counts at all sizes.
        offset: ln of the ratio of the sizes of wide and deep; not 0: no common blocks.
        extra_rungs: number of larger sizes that only the wide family has.
    """

    sizes: int = 6
    aspects: tuple[float, ...] = (DEEP_ASPECT, WIDE_ASPECT)
    level: float = 0.0
    d_alpha: float = 0.0
    h2: float = 0.0
    e_gap: float = 0.0
    tau: float = 0.01
    tau_seed: float = 0.0
    sigma: float = 0.005
    seeds: int = 1
    anchors: bool = False
    drift: float = 0.0
    jitter: float = 0.0
    rung_effect: float = 0.0
    slope: float = 0.0
    walk: float = 0.0
    deep_noise: float = 1.0
    noise_power: float = 0.0
    heavy_tails: bool = False
    outlier: float = 0.0
    missing: float = 0.0
    unbalanced: bool = False
    token_grid: bool = False
    offset: float = 0.0
    extra_rungs: int = 0

    def q(self, u: Floats | float, n: Floats | float) -> Floats:
        """Return ln(A(u, N) / A) + alpha ln N of the centre."""
        u = np.asarray(u)
        return self.level / SPAN * u + self.h2 * u**2 - self.d_alpha / SPAN * u * np.log(n / CENTRE)

    def loss(self, aspect: Floats | float, n: Floats | float, tokens: Floats | float) -> Floats:
        """Return the loss without noise."""
        u = np.log(np.asarray(aspect) / CENTRE_ASPECT)
        reducible = A * np.asarray(n) ** -ALPHA * np.exp(self.q(u, n))
        return E + self.e_gap * u / SPAN + reducible + B * np.asarray(tokens) ** -BETA

    def delta(self, n: float, deep: float, wide: float) -> float:
        """Return L_deep - L_wide at equal N and tokens, for the aspect ratios `deep` and `wide`."""
        return float(self.loss(deep, n, 1e9) - self.loss(wide, n, 1e9))

    def ln_kappa(self, n: float, tokens: float, deep: float, wide: float) -> float:
        """Return ln(C_wide / C_deep) at the loss of the deep family at (n, tokens), D / N constant."""
        target = float(self.loss(deep, n, tokens))

        def excess(ln_kappa: float) -> float:
            factor = math.exp(ln_kappa / 2)
            return float(self.loss(wide, n * factor, tokens * factor)) - target

        return float(brentq(excess, -10, 10, xtol=1e-10))


def simulate(row: Row, generator: np.random.Generator) -> pd.DataFrame:
    """Return one simulated study, one row per run."""
    table = _cells(row, generator)
    loss = row.loss(table["aspect_ratio"], table["n_flop"], table["tokens"])
    table["loss_nats_per_token"] = (
        loss + _disturbances(row, table, generator) + _noise(row, table, generator)
    )
    if row.missing:
        table = table[generator.uniform(size=len(table)) >= row.missing]
    if row.offset:
        table = table.drop(columns="rung")
    return table.reset_index(drop=True)


def _cells(row: Row, generator: np.random.Generator) -> pd.DataFrame:
    ladder = np.geomspace(SMALLEST, LARGEST, row.sizes)
    ratio = ladder[1] / ladder[0]
    extra = ladder[-1] * ratio ** np.arange(1, row.extra_rungs + 1)
    middle = row.sizes // 2
    cells = []
    for aspect in row.aspects:
        family = f"aspect_{aspect:.0f}"
        sizes = np.concatenate([ladder, extra]) if aspect == WIDE_ASPECT else ladder
        if aspect == WIDE_ASPECT:
            sizes = sizes * math.exp(row.offset)
        for rung, size in enumerate(sizes):
            n = size * (1 + generator.uniform(-MISMATCH, MISMATCH))
            change = row.drift * math.log(size / CENTRE)
            change += generator.uniform(-row.jitter, row.jitter)
            every_seed = not row.anchors or rung in (0, middle, row.sizes - 1)
            for budget in _budgets(row, rung):
                tokens = budget * (CENTRE if row.token_grid else size)
                cells += [
                    {
                        "family": family, "shape": f"{family}-{rung}",
                        "rung": f"{family}-{rung}" if row.offset else str(rung),
                        "aspect_ratio": aspect * math.exp(change), "n_flop": n, "tokens": tokens,
                        "flops": 6 * n * tokens, "seed": seed,
                    }
                    for seed in range(row.seeds if every_seed else 1)
                ]  # fmt: skip
    return pd.DataFrame(cells)


def _budgets(row: Row, rung: int) -> tuple[float, ...]:
    if not row.unbalanced:
        return BUDGETS
    return (8.0, 14.0, 24.0, 42.0, 72.0) if rung % 2 == 0 else (8.0, 72.0)


def _codes(labels: pd.Series) -> np.ndarray:
    return pd.factorize(labels)[0]


def _disturbances(row: Row, table: pd.DataFrame, generator: np.random.Generator) -> Floats:
    """Return what violates the assumptions of the model: effects of rungs, slopes, walks and an outlier."""
    rung, shape = _codes(table["rung"]), _codes(table["shape"])
    shapes = int(shape.max()) + 1
    total = row.rung_effect * generator.normal(size=int(rung.max()) + 1)[rung]
    total += row.outlier * (shape == generator.integers(shapes))
    if row.slope:
        log_d = np.log(table["tokens"])
        centred = (log_d - log_d.groupby(shape).transform("mean")).to_numpy()
        total += row.slope * generator.normal(size=shapes)[shape] * centred
    if row.walk:
        step = table["tokens"].groupby(shape).rank(method="dense").to_numpy().astype(int) - 1
        walks = generator.normal(size=(shapes, int(step.max()) + 1)).cumsum(axis=1)
        total += row.walk * walks[shape, step]
    return total


def _noise(row: Row, table: pd.DataFrame, generator: np.random.Generator) -> Floats:
    """Return the random effects of shapes and trunks and the noise of runs."""

    def draw(size: int) -> Floats:
        if row.heavy_tails:
            return generator.standard_t(3, size=size) / math.sqrt(3)
        return generator.normal(size=size)

    total = np.zeros(len(table))
    for deviation, code in (
        (row.tau, _codes(table["shape"])),
        (row.tau_seed, _codes(table["shape"] + "/" + table["seed"].astype(str))),
        (row.sigma, np.arange(len(table))),
    ):
        total += deviation * draw(int(code.max()) + 1)[code]
    scale = (table["n_flop"].to_numpy() / CENTRE) ** row.noise_power
    return total * scale * np.where(table["family"] == DEEP, row.deep_noise, 1.0)


def generator_of(name: str, study: int, seed: int) -> np.random.Generator:
    """Return the generator of one study: the same whichever rows and processes are run."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), study])


THREE = (DEEP_ASPECT, MIDDLE_ASPECT, WIDE_ASPECT)
TEN = tuple(np.geomspace(DEEP_ASPECT, WIDE_ASPECT, 10))
CURVED = 0.05  # h2: 0.03 nats at the largest size for a factor of 2.8 off the optimal aspect ratio
BOTH_SIZES = ("missing", "noise_n^.35", "noise_n^-.35", "e_gap", "level_4%", "level_20%")


def _rows() -> dict[str, Row]:
    null = {k: Row(sizes=k) for k in range(4, 9)}
    rows = {f"k{k}": row for k, row in null.items()}
    for k in (4, 6, 8):
        for tau in (0.0, 0.005, 0.02):
            rows[f"k{k}_tau{tau:g}"] = replace(null[k], tau=tau)
        rows[f"k{k}_exponent_.02"] = replace(null[k], d_alpha=0.02)
    changes = {
        "rung_effects": {"rung_effect": 0.03},
        "slopes": {"slope": 0.01},
        "walks": {"walk": 0.01},
        "unbalanced": {"unbalanced": True},
        "unbalanced_slopes": {"unbalanced": True, "slope": 0.01},
        "missing": {"missing": 0.25},
        "missing_slopes": {"missing": 0.25, "slope": 0.01},
        "noise_deep_x2": {"deep_noise": 2.0},
        "noise_n^.35": {"noise_power": 0.35},
        "noise_n^-.35": {"noise_power": -0.35},
        "noise_n^.5": {"noise_power": 0.5},
        "noise_n^-.5": {"noise_power": -0.5},
        "t3": {"heavy_tails": True},
        "outlier": {"outlier": 0.05},
        "token_grid": {"token_grid": True},
        "extra_rungs": {"extra_rungs": 2},
        "integer_shapes": {"jitter": 0.1},
        "e_gap": {"e_gap": 0.03},
        "level_4%": {"level": -0.04},
        "level_20%": {"level": -0.2},
        "exponent_.04": {"d_alpha": 0.04},
    }
    for name, change in changes.items():
        for k in (6, 8) if name in BOTH_SIZES else (6,):
            rows[f"k{k}_{name}"] = replace(null[k], **change)  # type: ignore[arg-type]
    rows["k8_exponent_.05"] = Row(sizes=8, d_alpha=0.05)
    rows["k8_level_2%"] = Row(sizes=8, level=-0.02)
    rows["k6_seeds"] = Row(seeds=3, tau_seed=0.004)
    rows["k6_anchor_seeds"] = Row(seeds=3, tau_seed=0.004, anchors=True)
    rows["k8_anchor_seeds"] = Row(sizes=8, seeds=3, tau_seed=0.004, anchors=True)
    rows["k8_unmatched"] = Row(sizes=8, offset=0.25)
    rows["k8_unmatched_token_grid"] = Row(sizes=8, offset=0.25, token_grid=True)
    for k in (4, 6, 8):
        rows[f"three_k{k}"] = Row(sizes=k, aspects=THREE)
        rows[f"three_k{k}_h2"] = Row(sizes=k, aspects=THREE, h2=CURVED)
    drifting = Row(aspects=THREE, h2=CURVED, drift=-0.05, jitter=0.1)
    rows["three_k6_h2_drift"] = drifting
    rows["three_k8_h2_drift"] = replace(drifting, sizes=8)
    rows["three_k6_exponent_.02"] = Row(aspects=THREE, d_alpha=0.02)
    rows["three_k6_h2_missing"] = Row(aspects=THREE, h2=CURVED, missing=0.25)
    rows["ten_k6"] = Row(aspects=TEN)
    rows["ten_k6_h2"] = Row(aspects=TEN, h2=CURVED)
    return rows


ROWS = _rows()
