"""Simulated studies: size, power and coverage of the verdicts and intervals of `analysis.compare`.

    python -m tests.benchmarks.simulated_studies --studies 500 --out analysis/examples/validation
    python -m tests.benchmarks.simulated_studies --studies 500 --rows k6 k8 --out out/validation

The rows are described in `study_generators`. Results are written after each row; a row that is in the output
with the same seed and at least as many studies is not computed again. For the rows in OLD_METHOD the analysis it
replaced (joint law M2, delete-one-shape jackknife) is run on the first studies too.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.compare.block_result import BlockResult
from analysis.compare.fit_block import fit_block_model
from analysis.compare.robustness import deletions
from analysis.compare.verdict import Evidence, decide
from analysis.fit.law import ALPHA, JointLaw, Points
from analysis.fit.levenberg_marquardt import Problem
from analysis.fit.profile_likelihood import quantile_t
from analysis.fit.resampling import jackknife_error, solve
from tests.benchmarks.study_generators import DEEP, ROWS, WIDE, Row, generator_of, simulate

OLD_METHOD = ("k4", "k6", "k8", "k4_exponent_.02", "k6_exponent_.02", "k8_exponent_.02")
OLD_STUDIES = 100
POWER = {
    "k4_exponent_.02": 0.33,
    "k6_exponent_.02": 0.70,
    "k8_exponent_.02": 0.80,
    "three_k6_exponent_.02": 0.83,
}
MARGINS = (1.05, 1.10)  # of the compute multiplier, for equivalence
INTERVALS = ("d_alpha", "level", "ln_kappa")


def size_limit(row: Row) -> float:
    """Return the largest allowed share of false verdicts."""
    if abs(row.noise_power) >= 0.5:
        return 0.10
    return 0.07 if row.missing or row.unbalanced or row.noise_power else 0.05


def error_ratio_limits(row: Row, name: str) -> tuple[float, float]:
    """Return the allowed range of SE / sd of the estimates."""
    if abs(row.noise_power) >= 0.5:
        return 0.8, 1.3
    if row.slope and (row.missing or row.unbalanced):
        return 0.9, 2.0
    return 0.9, 1.6 if name == "d_alpha" and row.level <= -0.2 else 1.3


def targets(name: str, result: dict[str, Any]) -> Iterator[tuple[str, float, str, float]]:
    """Yield the shares that have a target: name, share, "<=" or ">=", target."""
    row = ROWS[name]
    if not (row.level or row.d_alpha or row.e_gap):
        yield "false level verdicts", result["level_found"], "<=", size_limit(row)
    if not (row.d_alpha or row.e_gap):
        yield "false exponent verdicts", result["exponent_found"], "<=", size_limit(row)
    if name in POWER:
        yield "power", result["exponent_found"], ">=", POWER[name]
    if name == "k8_level_2%":
        yield "no_difference", result["no_difference"][0], "<=", 0.05
    for interval in INTERVALS:
        if not (row.e_gap and interval == "d_alpha"):  # d_alpha is given equal E
            least = 0.93 if size_limit(row) == 0.05 else 0.90
            yield f"coverage of {interval}", result["coverage"][interval], ">=", least


def misses(name: str, result: dict[str, Any], p: float = 0.01) -> list[str]:
    """Return the targets that a row misses: had it met them, the result would have a probability below `p`."""
    if ROWS[name].offset:
        return []  # unmatched data: reported, without a target
    studies, found = round(result["studies"] * (1 - result["exponent_refused"])), []
    for what, share, sign, limit in targets(name, result):
        count = round(share * studies)
        upper, lower = (
            stats.binom.sf(count - 1, studies, limit),
            stats.binom.cdf(count, studies, limit),
        )
        if (upper if sign == "<=" else lower) < p:
            found.append(f"{what} {share:.3f}, target {sign} {limit:g}")
    for what, ratio in result["se_over_sd"].items():
        low, high = error_ratio_limits(ROWS[name], what)
        # chi2 of the variance of the estimates, were the true ratio at a limit
        at_low, at_high = ((studies - 1) * (limit / ratio) ** 2 for limit in (low, high))
        if stats.chi2.sf(at_low, studies - 1) < p or stats.chi2.cdf(at_high, studies - 1) < p:
            found.append(f"SE / sd of {what} {ratio:.2f}, target {low:g} to {high:g}")
    return found


def judge(name: str, seed: int, study: int) -> dict[str, Any]:
    """Simulate and analyse one study; return its verdicts, estimates and whether intervals cover the truth."""
    row = ROWS[name]
    table = simulate(row, generator_of(name, study, seed))
    model = fit_block_model(table, deep=DEEP, wide=WIDE)
    if model.refused:
        return {"refused": True}
    found = verdict_of(model)
    truth = truth_of(row, table, model)
    estimates = {
        "level": (model.level, model.level_ci),
        "ln_kappa": (model.ln_kappa, model.ln_kappa_ci),
        "d_alpha": (model.d_alpha, model.d_alpha_ci),
    }
    for what, (value, interval) in estimates.items():
        found[what], found[f"{what}_truth"] = value, truth[what]
        if interval is not None:
            found[f"{what}_covered"] = interval[0] <= truth[what] <= interval[1]
    return found | {"refused": False, "level_se": model.level_se, "d_alpha_se": model.d_alpha_se}


def truth_of(row: Row, table: pd.DataFrame, model: BlockResult) -> dict[str, float]:
    """Return the true effects at the size and tokens of the model, for the families' mean ln(aspect ratio)."""
    shapes = table.drop_duplicates("shape")
    log_aspect = np.log(shapes["aspect_ratio"]).groupby(shapes["family"]).mean()
    deep, wide = math.exp(log_aspect[DEEP]), math.exp(log_aspect[WIDE])
    return {
        "d_alpha": row.d_alpha,
        "level": row.delta(model.at_n, deep, wide),
        "ln_kappa": row.ln_kappa(model.at_n, model.at_tokens, deep, wide),
    }


def verdict_of(model: BlockResult) -> dict[str, Any]:
    """Return word and findings, and whether the word is no_difference at each margin."""
    assert model.effects is not None
    is_significant = model.is_level_significant or model.is_exponent_significant
    without = tuple(deletions(model.effects, model.level_effects)) if is_significant else ()
    verdicts = [decide(Evidence(model, without=without, equivalent_cost=m)) for m in MARGINS]
    return {
        "word": verdicts[0].word,
        "level_verdict": verdicts[0].level,
        "exponent_verdict": verdicts[0].exponent,
        "no_difference": [verdict.word == "no_difference" for verdict in verdicts],
    }


def summarize(studies: list[dict[str, Any]]) -> dict[str, Any]:
    """Return shares, coverage and errors over the studies of a row."""
    frame = pd.DataFrame([study for study in studies if not study["refused"]])
    with_exponent = frame[frame["exponent_verdict"] != "refused"]
    sided = ["depth", "width"]
    found: dict[str, Any] = {
        "studies": len(studies),
        "refused": 1 - len(frame) / len(studies),
        "exponent_refused": 1 - len(with_exponent) / len(studies),
        "truth": {name: float(frame[f"{name}_truth"].mean()) for name in INTERVALS},
        "mean": {name: float(frame[name].mean()) for name in ("d_alpha", "level")},
        "sd": {name: float(frame[name].std()) for name in ("d_alpha", "level")},
        "coverage": {name: float(frame[f"{name}_covered"].mean()) for name in INTERVALS},
        "se_over_sd": {
            name: math.sqrt((frame[f"{name}_se"] ** 2).mean()) / frame[name].std()
            for name in ("d_alpha", "level")
        },
        "level_found": float(frame["level_verdict"].isin(sided).mean()),
        "exponent_found": float(with_exponent["exponent_verdict"].isin(sided).mean()),
        "no_difference": [float(share) for share in np.mean(list(frame["no_difference"]), axis=0)],
    }
    for name in ("word", "level_verdict", "exponent_verdict"):
        counts = Counter(study.get(name, "refused") for study in studies)
        found[name] = {word: count / len(studies) for word, count in counts.most_common()}
    return found


def judge_old(name: str, seed: int, study: int) -> dict[str, Any]:
    """Return the exponent difference by the method before this one, and whether its interval covers the truth."""
    row = ROWS[name]
    table = simulate(row, generator_of(name, study, seed))
    law = JointLaw("M2", 2)
    points = Points.of(
        table["n_flop"], table["tokens"], table["loss_nats_per_token"], table["family"] == WIDE
    )
    solution = solve(Problem.of(law, points), pd.factorize(table["shape"])[0])
    deep, wide = law.slots[ALPHA]
    difference = float(solution.theta[deep] - solution.theta[wide])
    without = solution.jackknife.theta
    error = float(jackknife_error(without[:, deep] - without[:, wide]))
    half = quantile_t(table["shape"].nunique() - 5) * error
    return {
        "d_alpha": difference,
        "se": error,
        "found": abs(difference) > half,
        "covered": abs(difference - row.d_alpha) <= half,
    }


def summarize_old(studies: list[dict[str, Any]]) -> dict[str, Any]:
    frame = pd.DataFrame(studies)
    deviation = float(frame["d_alpha"].std())
    return {
        "studies": len(frame),
        "found": float(frame["found"].mean()),
        "coverage": float(frame["covered"].mean()),
        "sd": deviation,
        "se_over_sd": math.sqrt((frame["se"] ** 2).mean()) / deviation,
    }


def run_row(name: str, studies: int, seed: int, pool: Any) -> dict[str, Any]:
    """Simulate and judge the studies of a row, with `pool.map` or with the builtin if `pool` is None."""

    def over(function: Any, count: int) -> list[Any]:
        task = partial(function, name, seed)
        return list(map(task, range(count)) if pool is None else pool.map(task, range(count), 10))

    found = {"name": name, "seed": seed, **summarize(over(judge, studies))}
    found["misses"] = misses(name, found)
    if name in OLD_METHOD:
        found["old"] = summarize_old(over(judge_old, min(studies, OLD_STUDIES)))
    return found


def markdown(rows: list[dict[str, Any]], command: str) -> str:
    lines = [
        "# Verdicts and intervals on simulated studies",
        "",
        f"`{command}`",
        "",
        "Two families (aspect ratios 24 and 192) of k sizes from 10M to 316M, tokens_per_param 8, 24 and 72, one "
        "seed, tau 0.01 nats per shape, sigma 0.005 nats per run, unless the name of the row says otherwise "
        "(`tests/benchmarks/study_generators.py`). Shares in % with their Monte-Carlo standard error. "
        "Coverage: of the 95% intervals. SE / sd: root mean square standard error over the standard "
        "deviation of the estimates. no_difference: at margins 1.05 and 1.10 of the compute multiplier.",
        "",
        "| row | studies | d-alpha | level, nats | ln kappa | level found | exponent found | coverage d-alpha / level / "
        "ln kappa | SE / sd d-alpha, level | no_difference | refused, level / exponent |",
        "|" + " --- |" * 11,
    ]
    for row in rows:
        truth, studies = row["truth"], row["studies"] * (1 - row["refused"])
        cells = [
            row["name"],
            str(row["studies"]),
            f"{truth['d_alpha']:.3f}",
            f"{truth['level']:.4f}",
            f"{truth['ln_kappa']:.3f}",
            percent(row["level_found"], studies),
            percent(row["exponent_found"], studies),
            " / ".join(f"{100 * row['coverage'][name]:.1f}" for name in INTERVALS),
            ", ".join(f"{row['se_over_sd'][name]:.2f}" for name in ("d_alpha", "level")),
            " / ".join(f"{100 * share:.1f}" for share in row["no_difference"]),
            f"{100 * row['refused']:.1f} / {100 * row['exponent_refused']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## Exponent difference: this method and the one before it", ""]
    lines += [
        "The method before: joint law with its own level and exponent per family, delete-one-shape jackknife.",
        "",
        "| row | found, before | found, now | coverage, before | coverage, now | sd, before | sd, now |",
        "|" + " --- |" * 7,
    ]
    for row in rows:
        if "old" in row:
            old, name = row["old"], row["name"]
            shares = [
                percent(old["found"], old["studies"]), percent(row["exponent_found"], row["studies"]),
                percent(old["coverage"], old["studies"]),
                percent(row["coverage"]["d_alpha"], row["studies"]),
            ]  # fmt: skip
            deviations = f"{old['sd']:.4f} | {row['sd']['d_alpha']:.4f}"
            lines.append(f"| {name} | {' | '.join(shares)} | {deviations} |")
    missed = [f"- {row['name']}: {miss}" for row in rows for miss in row["misses"]]
    lines += ["", "## Targets missed by more than chance (p < 0.01)", "", *(missed or ["none"])]
    return "\n".join([*lines, ""])


def percent(share: float, studies: float) -> str:
    error = math.sqrt(share * (1 - share) / studies)
    return f"{100 * share:.1f} ± {100 * error:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--rows", nargs="+", choices=sorted(ROWS), default=list(ROWS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "simulated_studies.json"
    done = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows = {row["name"]: row for row in done}
    is_done = {
        name
        for name, row in rows.items()
        if row["seed"] == arguments.seed and row["studies"] >= arguments.studies
    }
    command = (
        f"python -m tests.benchmarks.simulated_studies --studies {arguments.studies} "
        f"--seed {arguments.seed} --out {arguments.out}"
    )
    with multiprocessing.Pool(arguments.processes) as pool:
        for name in arguments.rows:
            if name not in is_done:
                one = arguments.processes == 1
                rows[name] = run_row(name, arguments.studies, arguments.seed, None if one else pool)
                print(name, json.dumps(rows[name]), flush=True)
            ordered = [rows[known] for known in ROWS if known in rows]
            text = json.dumps({"command": command, "rows": ordered}, indent=1)
            path.write_text(text + "\n", encoding="utf-8")
            path.with_suffix(".md").write_text(markdown(ordered, command), encoding="utf-8")


if __name__ == "__main__":
    main()
