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
# Any two families, any table, and a contrast that the report does not have. A table needs a row a run and five
# columns: family, shape, N, tokens, loss in nats per token.

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

from analysis import compare_families
from analysis.report import charts, text
from analysis.report.study_report import answer

runs = analysis.load_runs(RUNS)
families = runs.families
print("from the thinnest to the widest:", ", ".join(families))

# %% [markdown]
# ## Other two families
#
# The report takes the thinnest and the widest. Here the two thinnest; the first of them counts as deep.

# %%
first, second = families[0], families[1]
found = answer(runs, deep=first, wide=second, question=f"Is {first} better than {second}?")
print(text.headline(found))
print(text.uncertainty(found))
charts.differences(found)

# %% [markdown]
# `analysis.report.report_on(runs, Path("out"), deep=..., wide=...)` writes the whole report of it.
#
# ## Runs of your own
#
# Columns by any name; rungs and budgets are matched by N and by tokens_per_param.

# %%
mine = runs.table.rename(
    columns={
        "family": "arch", "shape": "model", "n_flop": "N", "tokens": "D", "loss_nats_per_token": "nll",
    }
)[["arch", "model", "N", "D", "nll"]]  # fmt: skip
compared = compare_families(
    mine, n_column="N", tokens_column="D", loss_column="nll", family_column="arch", shape_column="model",
    deep=families[0], wide=families[-1], bootstrap=0,
)  # fmt: skip
print(compared.verdict.word)
shown = ["tokens_per_param", "pairs", "mean", "mean_low", "mean_high"]
print(compared.matched.summary[shown].round(4))

# %% [markdown]
# ## A contrast that nobody has written yet
#
# Is the middle better than both ends together? For each size and token count: the middle family's loss less
# the mean of the thinnest and the widest. Shapes are the units, so the budgets of a size are averaged before the
# t test; testing all cells as if they were independent would give an interval that is too narrow.

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
    print("two families have no middle; RUNS with three or more is needed")

# %% [markdown]
# ## Is the test honest?
#
# Before a contrast is believed: how often does it reject where nothing differs? Families drawn from one law,
# with a random effect of a shape of .01 nats, once with cells and once with sizes as the units.

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
pd.DataFrame({"rejects a true null": {unit: f"{n / 400:.1%}" for unit, n in rejected.items()}})
