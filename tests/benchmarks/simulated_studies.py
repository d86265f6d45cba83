"""Simulated studies: error rates of the verdicts and coverage of the intervals.

    python -m tests.benchmarks.simulated_studies --studies 200 --out analysis/examples/validation

A study has two families with 8 sizes from 10M to 316M parameters, 3 token budgets and one seed. The seed
standard deviation is 0.005 nats; each shape has a misfit (random effect) of 0.005 or 0.02 nats. Truths:
`null`: no difference; `level`: A of deep is 4% lower; `exponent`: alpha of deep is 0.04 higher. Two common
tests that are invalid here are reported for comparison: an F test that treats runs as independent, and a z
test of the largest pair with the seed noise as its error.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.compare.compute_multiplier import compute_multiplier
from analysis.compare.exponents import FittedStudy, fitted
from analysis.compare.families import compare_families
from analysis.design.linear import Law
from analysis.fit.law import JointLaw
from analysis.fit.levenberg_marquardt import Problem, minimise
from analysis.runs.study import Columns, prepare

SIZES = np.geomspace(1e7, 3.16e8, 8)
BUDGETS = (5.0, 20.0, 80.0)
SIGMA = 0.005  # seed standard deviation in nats
CENTRE = 5.62e7  # N at which a difference in the exponent alone does not change the loss
TRUTHS = {"null": (0.0, 0.0), "level": (-0.04, 0.0), "exponent": (0.0, 0.04)}
TAUS = (0.005, 0.02)  # standard deviations of the misfit of a shape, in nats


@dataclass(frozen=True)
class Truth:
    """True differences: `level` = ln(A_deep / A_wide) at CENTRE, `exponent` = alpha_deep - alpha_wide."""

    level: float
    exponent: float

    def loss(self, family: str, n: float, tokens: float) -> float:
        law = Law()
        deep = family == "deep"
        alpha = law.alpha + (self.exponent if deep else 0.0)
        size = law.A * CENTRE**-law.alpha * math.exp(self.level if deep else 0.0)
        return law.E + size * (n / CENTRE) ** -alpha + law.B * tokens**-law.beta


def simulate(
    truth: Truth, tau: float, sigma: float, seed: int, budgets: Any = BUDGETS
) -> pd.DataFrame:
    """Simulate the final losses of a study; FLOPs of a pair differ by up to 2%, as with integer shapes."""
    generator = np.random.default_rng(seed)
    rows = []
    for family in ("deep", "wide"):
        for rung, size in enumerate(SIZES):
            n = size * (1 + generator.uniform(-0.01, 0.01))
            misfit = generator.normal(0, tau) if tau else 0.0
            for multiplier in budgets:
                tokens = multiplier * size
                noise = generator.normal(0, sigma) if sigma else 0.0
                rows.append(
                    {
                        "family": family,
                        "shape": f"{family}{rung}",
                        "rung": rung,
                        "n_flop": n,
                        "tokens": tokens,
                        "flops": 6 * n * tokens,
                        "loss_nats_per_token": truth.loss(family, n, tokens) + misfit + noise,
                    }
                )
    return pd.DataFrame(rows)


def judge(truth: Truth, tau: float, seed: int, *, bootstrap: int = 0) -> dict[str, Any]:
    """Simulate and analyse one study; return its verdict, rejections and coverage of the truth."""
    table = simulate(truth, tau, SIGMA, seed)
    found = compare_families(table, bootstrap=bootstrap)
    one = found.exponents
    assert one.interval is not None and one.profile is not None and found.matched is not None
    assert one.fitted is not None
    exact = fitted(
        prepare(simulate(truth, 0, 0, seed), Columns(flops="flops", rung="rung"), None, None)
    )
    kappa = compute_multiplier(exact, 0)
    assert kappa is not None and kappa.by_law is not None
    row: dict[str, Any] = {
        "verdict": found.verdict.word,
        "status": one.status,
        "jackknife": one.interval[0] <= truth.exponent <= one.interval[1],
        "profile": one.profile[0] <= truth.exponent <= one.profile[1],
        "jackknife_rejects": one.p is not None and one.p < 0.05,
        "permutation_rejects": one.permutation is not None and one.permutation.p < 0.05,
        "any_permutation_rejects": one.any_permutation is not None and one.any_permutation.p < 0.05,
        "collapsed_rejects": one.collapsed is not None and one.collapsed.p < 0.05,
        "hold_out_passes": found.hold_out.passed,
        "hold_out_coverage": found.hold_out.coverage,
        "naive_f_rejects": naive_f(one.fitted) < 0.05,
        "seed_t_rejects": seed_t(table) < 0.05,
    }
    size = SIZES[-1]
    deltas = [
        truth.loss("deep", size, m * size) - truth.loss("wide", size, m * size) for m in BUDGETS
    ]
    summary = found.matched.summary.sort_values("tokens_per_param")
    ends = zip(summary["largest_low"], summary["largest_high"], deltas, strict=True)
    row["matched"] = float(np.mean([low <= delta <= high for low, high, delta in ends]))
    for name in ("interval", "bootstrap_interval"):
        ends_of = None if found.kappa is None else getattr(found.kappa, name)
        if ends_of is not None:
            row[f"kappa_{name}"] = ends_of[0] <= kappa.by_law <= ends_of[1]
    return row


def naive_f(known: FittedStudy) -> float:
    """Return p of the F test of M1 against M2 that treats all runs as independent."""
    points = known.problem.points
    law = JointLaw("M1", 2)
    start = np.array([[known.theta[known.law.slots[r, 0]] for r in law.roles]])
    null = 2 * float(minimise(Problem.of(law, points), start).objective[0])
    full = 2 * float(known.problem.objective(known.theta[None])[0])
    df = len(points) - known.law.size
    return float(stats.f.sf((null - full) / (full / df), 1, df))


def seed_t(table: pd.DataFrame) -> float:
    """Return p of the z test of the largest pair's difference with the seed noise as its error."""
    last = table[table["tokens"] == table["tokens"].max()].set_index("family")[
        "loss_nats_per_token"
    ]
    return float(2 * stats.norm.sf(abs(last["deep"] - last["wide"]) / (SIGMA * math.sqrt(2))))


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    frame = pd.DataFrame(rows)
    counts = Counter(frame["verdict"])
    shares = frame.drop(columns=["verdict", "status"]).astype(float).mean()
    return {
        "studies": len(rows),
        "verdicts": {word: count / len(rows) for word, count in counts.most_common()},
        "statuses": {
            word: count / len(rows) for word, count in Counter(frame["status"]).most_common()
        },
        "shares": {str(name): round(float(value), 4) for name, value in shares.items()},
    }


def run(studies: int, bootstrap: int) -> list[dict[str, Any]]:
    found = []
    for name, (level, exponent) in TRUTHS.items():
        for tau in TAUS:
            began = time.perf_counter()
            rows = [
                judge(Truth(level, exponent), tau, seed, bootstrap=bootstrap)
                for seed in range(studies)
            ]
            found.append({"truth": name, "tau": tau, **summarize(rows)})
            print(f"{name} tau {tau}: {time.perf_counter() - began:.0f} s", found[-1], flush=True)
    return found


def markdown(found: list[dict[str, Any]], command: str) -> str:
    words = list(dict.fromkeys(word for case in found for word in case["verdicts"]))
    shares = list(found[0]["shares"])
    error = 1.96 * math.sqrt(0.05 * 0.95 / found[0]["studies"])
    lines = [
        "# Verdicts and intervals on simulated studies",
        "",
        f"`{command}`",
        "",
        f"{found[0]['studies']} studies a column: 2 families x 8 sizes (10M to 316M) x 3 budgets x 1 seed, seed "
        f"noise {SIGMA} nats, tau = misfit of a shape in nats. level: A of deep 4% lower; exponent: alpha of "
        f"deep .04 higher. Monte-Carlo error of a rate of 5%: {error:.3f} (95%).",
        "",
        "| share of studies | " + " | ".join(f"{c['truth']}, tau {c['tau']}" for c in found) + " |",
        "|" + " --- |" * (len(found) + 1),
    ]
    for word in words:
        values = " | ".join(f"{case['verdicts'].get(word, 0):.3f}" for case in found)
        lines.append(f"| verdict {word} | {values} |")
    for name in shares:
        values = " | ".join(f"{case['shares'].get(name, math.nan):.3f}" for case in found)
        what = name.replace("_", " ")
        lines.append(
            f"| {what if 'reject' in name or 'hold' in name else what + ' covers'} | {values} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--bootstrap", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found = run(arguments.studies, arguments.bootstrap)
    arguments.out.mkdir(parents=True, exist_ok=True)
    command = (
        f"python -m tests.benchmarks.simulated_studies --studies {arguments.studies} "
        f"--bootstrap {arguments.bootstrap} --out {arguments.out}"
    )
    text = json.dumps({"command": command, "cases": found}, indent=1)
    (arguments.out / "simulated_studies.json").write_text(text + "\n", encoding="utf-8")
    (arguments.out / "simulated_studies.md").write_text(markdown(found, command), encoding="utf-8")


if __name__ == "__main__":
    main()
