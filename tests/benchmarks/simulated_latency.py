"""Simulated studies with known times: bias and coverage of the level at equal time and of the time multiplier.

    python -m tests.benchmarks.simulated_latency --studies 200 --out analysis/examples/validation

Losses are those of `study_generators`. ln(seconds per token) of a family is a + b ln(N / CENTRE), with 5 measured
rounds per shape.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq

from analysis.arrays import Floats
from analysis.block.effects import Estimate
from analysis.compare.fit_block import fit_block_model
from analysis.compare.latency import EqualTimeModel, MeasuredTimes, TimeCurve
from slm.files import write_text
from tests.benchmarks.study_generators import CENTRE, DEEP, WIDE, Row, generator_of, simulate

ROUNDS = 5
TARGET = (0.90, 0.98)  # coverage of the 95% intervals
SEED = 20


@dataclass(frozen=True)
class Times:
    """ln(seconds) = intercept + slope ln(N / CENTRE) of (deep, wide), and the sd of ln(seconds) of a round."""

    intercepts: tuple[float, float] = (-5.25, -6.0)
    slopes: tuple[float, float] = (0.6, 0.75)
    noise: float = 0.03

    def log_seconds(self, family: int, n: Floats | float) -> Floats:
        return self.intercepts[family] + self.slopes[family] * np.log(np.asarray(n) / CENTRE)

    def size(self, family: int, seconds: float) -> float:
        log_ratio = (math.log(seconds) - self.intercepts[family]) / self.slopes[family]
        return CENTRE * math.exp(log_ratio)


LAUNCH_BOUND = Times(intercepts=(-6 + math.log(4), -6.0), slopes=(1 / 3, 1 / 3))
CASES: dict[str, tuple[Row, Times]] = {
    "k4": (Row(sizes=4), Times()),
    "k6": (Row(), Times()),
    "k8": (Row(sizes=8), Times()),
    "k6_level_-5%": (Row(level=-0.05), Times()),
    "k6_d_alpha_.02": (Row(d_alpha=0.02), Times()),
    "k6_three_aspects": (Row(aspects=(24.0, 64.0, 192.0), h2=0.02), Times()),
    "k6_rung_effect_.01": (Row(rung_effect=0.01), Times()),
    "k6_missing_25%": (Row(missing=0.25), Times()),
    "k6_exact_times": (Row(), Times(noise=0.0)),
    "k6_times_10%": (Row(), Times(noise=0.1)),
    "k6_launch_bound": (Row(), LAUNCH_BOUND),
}


def model_of(
    table: pd.DataFrame, times: Times, generator: np.random.Generator
) -> EqualTimeModel | None:
    """Fit the block model and measure the times of a study; None if the comparison is refused."""
    block = fit_block_model(table, deep=DEEP, wide=WIDE)
    if block.level_effects is None:
        return None
    logs, errors, curves = [], [], []
    for family, name in enumerate((DEEP, WIDE)):
        shapes = table[table["family"] == name].drop_duplicates("shape").sort_values("n_flop")
        n = shapes["n_flop"].to_numpy()
        rounds = generator.normal(0, times.noise, size=(len(n), ROUNDS))
        rounds += times.log_seconds(family, n)[:, None]
        curves.append(TimeCurve(np.log(n), np.arange(len(n)) + len(logs)))
        logs += rounds.mean(axis=1).tolist()
        errors += (rounds.std(axis=1, ddof=1) / math.sqrt(ROUNDS)).tolist()
    measured = MeasuredTimes(np.array(logs), np.array(errors), np.full(len(logs), ROUNDS))
    return EqualTimeModel(block.level_effects, (curves[0], curves[1]), measured)


def judge(name: str, study: int, seed: int = SEED) -> dict[str, Any] | None:
    """Simulate and analyse one study; return errors, standard errors and whether the intervals cover the truth."""
    row, times = CASES[name]
    generator = generator_of(f"latency {name}", study, seed)
    table = simulate(row, generator)
    model = model_of(table, times, generator)
    if model is None:
        return None
    shapes = table.drop_duplicates("shape")
    aspects = np.exp(np.log(shapes["aspect_ratio"]).groupby(shapes["family"]).mean())
    pair = float(aspects[DEEP]), float(aspects[WIDE])
    found = {}
    if model.has_common_time:
        (level,) = model.levels(1)
        sizes = [times.size(family, level.seconds) for family in (0, 1)]
        losses = [float(row.loss(u, n, 1e9)) for u, n in zip(pair, sizes, strict=True)]
        found["level"] = _judged(level.level, losses[0] - losses[1])
    (loss,) = model.multipliers(1)
    is_deep_given = math.isclose(loss.n_deep, math.exp(model.curves[0].log_n[-1]), rel_tol=1e-9)
    sizes = loss.n_deep, loss.n_wide
    truth = _ln_multiplier(row, times, pair, sizes, given=0 if is_deep_given else 1)
    found["ln_multiplier"] = _judged(loss.log_multiplier, truth)
    return found


def _ln_multiplier(
    row: Row, times: Times, aspects: tuple[float, float], n: tuple[float, float], given: int
) -> float:
    """Return the true ln(t_wide / t_deep) for the size of one family (0 deep, 1 wide) and the other's of equal loss."""
    sizes = list(n)
    target = float(row.loss(aspects[given], sizes[given], 1e9))

    def excess(log_n: float) -> float:
        return float(row.loss(aspects[1 - given], math.exp(log_n), 1e9)) - target

    sizes[1 - given] = math.exp(brentq(excess, math.log(1e5), math.log(1e11), xtol=1e-12))
    return float(times.log_seconds(1, sizes[1]) - times.log_seconds(0, sizes[0]))


def _judged(estimate: Estimate, truth: float) -> dict[str, float]:
    low, high = estimate.interval
    covered = float(low <= truth <= high)
    return {"truth": truth, "error": estimate.value - truth, "se": estimate.se, "covered": covered}


def summarize(name: str, studies: int, seed: int = SEED) -> dict[str, Any]:
    """Return truth, bias, standard deviation, standard error and coverage of both estimates over studies."""
    judged = [one for study in range(studies) if (one := judge(name, study, seed)) is not None]
    found: dict[str, Any] = {"name": name, "studies": len(judged)}
    for what in ("level", "ln_multiplier"):
        rows = pd.DataFrame([one[what] for one in judged if what in one])
        if len(rows):
            found[what] = {
                "studies": len(rows),
                "truth": float(rows["truth"].mean()),
                "bias": float(rows["error"].mean()),
                "sd": float(rows["error"].std()),
                "se": math.sqrt(float((rows["se"] ** 2).mean())),
                "coverage": float(rows["covered"].mean()),
            }
    return found


def misses(summary: dict[str, Any], p: float = 0.01) -> list[str]:
    """Return the biases and coverages that chance does not explain, at significance `p`, within TARGET."""
    found = []
    for what in ("level", "ln_multiplier"):
        if (one := summary.get(what)) is None:
            continue
        count, covered = one["studies"], round(one["coverage"] * one["studies"])
        too_few = stats.binom.cdf(covered, count, TARGET[0]) < p
        if too_few or stats.binom.sf(covered - 1, count, TARGET[1]) < p:
            found.append(
                f"coverage of {what} {one['coverage']:.3f}, target {TARGET[0]} to {TARGET[1]}"
            )
        error = one["sd"] / math.sqrt(count)
        if abs(one["bias"]) > stats.norm.isf(p / 2) * error and abs(one["bias"]) > 0.2 * one["sd"]:
            found.append(f"bias of {what} {one['bias']:+.4f} +- {error:.4f}, sd {one['sd']:.4f}")
    return found


def markdown(rows: list[dict[str, Any]], command: str) -> str:
    lines = [
        "# Level at equal time and time multiplier on simulated studies",
        "",
        f"`{command}`",
        "",
        "Two families (aspect ratios 24 and 192) of k sizes from 10M to 316M, tau 0.01 nats per shape, sigma 0.005 nats per "
        "run, 5 rounds of times with 3% noise, unless the name of the row says otherwise. SE: root mean square. Coverage: of "
        "the 95% intervals, in %, with its Monte-Carlo standard error. In the last row no time is common to the families.",
        "",
        "| row | studies | level, nats | bias | sd | SE | coverage | ln multiplier | bias | sd | SE | coverage |",
        "|" + " --- |" * 12,
    ]
    for row in rows:
        cells = [row["name"], str(row["studies"])]
        for what, digits in (("level", 4), ("ln_multiplier", 3)):
            one = row.get(what)
            if one is None:
                cells += ["-"] * 5
                continue
            numbers = (f"{one[key]:.{digits}f}" for key in ("truth", "bias", "sd", "se"))
            share = one["coverage"]
            error = 100 * math.sqrt(share * (1 - share) / one["studies"])
            cells += [*numbers, f"{100 * share:.1f} ± {error:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    missed = [f"- {row['name']}: {miss}" for row in rows for miss in misses(row)]
    lines += ["", "## Targets missed by more than chance (p < 0.01)", "", *(missed or ["none"]), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--cases", nargs="+", choices=sorted(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    command = f"python -m tests.benchmarks.simulated_latency --studies {arguments.studies} --out {arguments.out}"
    for name in arguments.cases:
        rows.append(summarize(name, arguments.studies))
        print(rows[-1], flush=True)
        write_text(arguments.out / "simulated_latency.md", markdown(rows, command))


if __name__ == "__main__":
    main()
