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
# # A first look at a finished study
#
# Which family has the lower loss at matched compute, how large is the uncertainty, and which further runs would
# reduce it? `RUNS` is a folder of run directories, a study's file of results, or a CSV, Parquet or JSON-lines
# table; set `SLM_RUNS` or change the cell. The default is a part of `study=micro`: real runs with at most a
# quarter of a million parameters each. They are too few and too small for a significant difference.

# %% tags=["parameters"]
import os
from pathlib import Path

import analysis

SHIPPED = Path(analysis.__file__).parent / "examples" / "micro" / "results.jsonl"
RUNS = Path(os.environ.get("SLM_RUNS") or SHIPPED)

# %%
import pandas as pd

from analysis import charts
from analysis.report import tables, text
from analysis.report.study_report import analyze_study

runs = analysis.load_runs(RUNS)
print(f"{len(runs.table)} finished runs; left out: {dict(runs.dropped) or 'none'}")
for warning in runs.warnings:
    print("note:", warning)
report = analyze_study(runs)
pd.DataFrame(tables.family_rows(report))

# %% [markdown]
# ## Result

# %%
print(text.headline(report))
print(text.uncertainty(report))
print(report.comparison.verdict.sentence)
for reason in text.reasons(report):
    print("-", reason)

# %%
charts.loss_against_flops(report)

# %%
charts.differences(report)

# %% [markdown]
# A loss difference that shrinks along the axis does not imply different exponents: with equal exponents and
# different levels, it also shrinks. The two runs of a pair have equal tokens and FLOPs. The interval is computed
# from the variation between pairs of shapes, not from the seed standard deviation.

# %%
for line in text.budget_sentences(report):
    print("-", line)
pd.DataFrame(tables.summary_rows(report))

# %% [markdown]
# ## Compute multiplier and shape curve

# %%
comparison = report.comparison
print(text.kappa_sentence(comparison.kappa, comparison.deep, comparison.wide))
if report.shape_curve is not None:
    print(f"{report.shape_curve.status}: {report.shape_curve.sentence}")
charts.shape_curve(report)

# %% [markdown]
# ## Power of larger designs
#
# MDE (80% power): the smallest true difference that is detected with probability 80%, for this design and for
# larger ones.

# %%
pd.DataFrame(tables.extension_rows(report))
