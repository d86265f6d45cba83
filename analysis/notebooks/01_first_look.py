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
# table; set `SLM_RUNS` or change the cell. The default is the 135 runs of `study=micro`, with at most a fifth of a million
# parameters each. `DEEP` and `WIDE` name the compared families; None takes the smallest and the largest aspect ratio.

# %% tags=["parameters"]
import os
from pathlib import Path

import analysis

SHIPPED = Path(analysis.__file__).parent / "examples" / "micro" / "results.jsonl"
RUNS = Path(os.environ.get("SLM_RUNS") or SHIPPED)
DEEP, WIDE = ("aspect_4", "aspect_32") if RUNS == SHIPPED else (None, None)

# %%
import pandas as pd

from analysis import charts
from analysis.report import tables, text
from analysis.report.study_report import analyze_study

runs = analysis.load_runs(RUNS)
print(f"{len(runs.table)} finished runs; left out: {dict(runs.dropped) or 'none'}")
for warning in runs.warnings:
    print("note:", warning)
report = analyze_study(runs, deep=DEEP, wide=WIDE)
pd.DataFrame(tables.family_rows(report))

# %% [markdown]
# ## Result

# %%
print(text.headline(report))
for line in text.findings(report):
    print(line)
for condition in report.comparison.verdict.conditions:
    print("- condition:", condition)

# %%
charts.loss_against_flops(report)

# %%
pd.DataFrame(tables.loss_rows(report))

# %%
charts.level(report)

# %% [markdown]
# The line is the block model: shapes are compared within blocks of equal FLOPs and tokens, with a random effect of
# each shape. The interval comes from the variation between shapes, not from the seed standard deviation. A loss
# difference that shrinks with N does not imply different exponents: with equal exponents and different levels, it
# also shrinks.

# %% [markdown]
# ## Compute multiplier and aspect ratio

# %%
print("compute multiplier [95% CI]:", report.comparison.block.kappa_text)
if report.comparison.block.is_curved:
    print(text.shape_line(report))
charts.shape_curve(report)

# %% [markdown]
# ## Other contrasts

# %%
for line in text.contrast_lines(report):
    print(line)
pd.DataFrame(tables.contrast_rows(report))

# %% [markdown]
# ## Power of larger designs
#
# MDE (80% power): the smallest true difference that is detected with probability 80%, for this design and for
# larger ones.

# %%
pd.DataFrame(report.power.extension_rows())
