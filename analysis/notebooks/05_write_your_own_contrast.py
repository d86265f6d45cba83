# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Write your own contrast
#
# This notebook compares any two families, reads any table, and tests a contrast that the report does not have. A
# table needs one row per run and five columns: family, shape, N, tokens, and loss in nats per token.

# %% tags=["parameters"]
import os
from pathlib import Path

import analysis

SHIPPED = Path(analysis.__file__).parent / "examples" / "micro" / "results.jsonl"
RUNS = Path(os.environ.get("SLM_RUNS") or SHIPPED)

# %%
import numpy as np
import pandas as pd
from scipy import stats

from analysis import charts, compare_families
from analysis.report import text
from analysis.report.study_report import analyze_study

runs = analysis.load_runs(RUNS)
sizes_of = runs.table.groupby("family")["rung"].nunique()
families = [f for f in runs.families if sizes_of[f] >= 2 / 3 * runs.table["rung"].nunique()]
print("families at most of the sizes, by increasing d_model/n_layers:", ", ".join(families))

# %% [markdown]
# ## Two other families
#
# By default a report compares the families with the smallest and the largest d_model/n_layers. This cell
# compares the two with the smallest ratios; the first of them is the deep one.

# %%
first, second = families[0], families[1]
report = analyze_study(runs, deep=first, wide=second, question=f"Is {first} better than {second}?")
print(text.headline(report))
for line in text.findings(report):
    print(line)
charts.level(report)

# %% [markdown]
# `analysis.report.report_on(runs, Path("out"), deep=..., wide=...)` writes the full report of this comparison.
#
# ## Your own table of runs
#
# The columns can have any names. Rungs are matched by N, and token budgets by tokens_per_param.

# %%
names = {"family": "arch", "shape": "model", "n_flop": "N", "tokens": "D"}
names["loss_nats_per_token"] = "nll"
table = runs.table.rename(columns=names)[list(names.values())]
comparison = compare_families(
    table,
    n_column="N",
    tokens_column="D",
    loss_column="nll",
    family_column="arch",
    shape_column="model",
    deep=families[0],
    wide=families[-1],
    bootstrap=0,
)
print(comparison.block)
print(
    comparison.matched.summary[["tokens_per_param", "pairs", "deep_lower", "mean", "sd"]].round(4)
)

# %% [markdown]
# ## A new contrast
#
# Does the middle family have a lower loss than the mean of the two extreme families? The contrast of a cell is
# the loss of the middle family minus the mean loss of the first and the last family. The random effect of a shape
# is shared by its token budgets, so the contrasts of a size are averaged over budgets before the t test. A test
# that treats all cells as independent gives an interval that is too narrow.

# %%
cells = runs.table.pivot_table(
    index=["rung", "tokens"], columns="family", values="loss_nats_per_token"
)
middle = families[len(families) // 2]
if len(families) > 2:
    contrast = (cells[middle] - (cells[families[0]] + cells[families[-1]]) / 2).dropna()
    by_size = contrast.groupby("rung").mean()
    test = stats.ttest_1samp(by_size, 0)
    low, high = test.confidence_interval(0.95)
    print(f"{middle} minus the mean of {families[0]} and {families[-1]}, nats per token:")
    print(
        f"{by_size.mean():+.4f} [{low:+.4f}, {high:+.4f}] over {len(by_size)} sizes, p {test.pvalue:.3f}"
    )
else:
    print("RUNS has fewer than three families, so there is no middle family")

# %% [markdown]
# ## False positive rate of the test
#
# How often does the test reject a true null hypothesis? The simulated families follow one law, with a random
# effect of a shape of 0.01 nats and a seed standard deviation of 0.005 nats. The test is applied once with cells
# and once with sizes as units.

# %%
generator = np.random.default_rng(0)
sizes, budgets, rejected = 8, 3, {"cells": 0, "sizes": 0}
for _ in range(400):
    shape = generator.normal(0, 0.01, (3, sizes, 1)) + generator.normal(
        0, 0.005, (3, sizes, budgets)
    )
    null = shape[1] - (shape[0] + shape[2]) / 2
    rejected["cells"] += stats.ttest_1samp(null.ravel(), 0).pvalue < 0.05
    rejected["sizes"] += stats.ttest_1samp(null.mean(axis=1), 0).pvalue < 0.05
pd.DataFrame(
    {"false positive rate at 5%": {unit: f"{n / 400:.1%}" for unit, n in rejected.items()}}
)
