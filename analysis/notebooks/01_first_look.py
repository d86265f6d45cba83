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
# Which family is better at matched compute, how sure is that, and what would settle it? `RUNS` is a folder
# of run directories, a study's file of results, or a CSV, Parquet or JSON-lines table; set `SLM_RUNS` or
# change the cell. The default is a part of `study=micro`: real runs, each of a quarter of a million
# parameters at most, too few and too small for an answer, which is what comes out.

# %% tags=["parameters"]
import os
from pathlib import Path

import analysis

SHIPPED = Path(analysis.__file__).parent / "examples" / "micro" / "results.jsonl"
RUNS = Path(os.environ.get("SLM_RUNS") or SHIPPED)

# %%
import pandas as pd

from analysis.report import charts, charts_diagnostics, tables, text
from analysis.report.study_report import answer

runs = analysis.load_runs(RUNS)
print(f"{len(runs.table)} finished runs; left out: {dict(runs.dropped) or 'none'}")
for warning in runs.warnings:
    print("note:", warning)
found = answer(runs)
pd.DataFrame(tables.shape_rows(found))

# %% [markdown]
# ## The answer

# %%
print(text.headline(found))
print(text.uncertainty(found))
print(found.comparison.verdict.sentence)
for reason in text.reasons(found):
    print("-", reason)

# %%
charts.loss_against_flops(found)

# %%
charts.differences(found)

# %% [markdown]
# A gap that shrinks or grows along the axis is not yet a difference of exponents: with equal exponents and
# different levels it shrinks by itself. Each pair has equal tokens and FLOPs; the interval comes from the
# scatter over pairs of shapes, not from the noise between seeds.

# %%
for line in text.budget_sentences(found):
    print("-", line)
pd.DataFrame(tables.summary_rows(found))

# %% [markdown]
# ## What a shape is worth

# %%
comparison = found.comparison
print(text.kappa_sentence(comparison.kappa, comparison.deep, comparison.wide))
if found.shape_curve is not None:
    print(f"{found.shape_curve.status}: {found.shape_curve.sentence}")
charts_diagnostics.shape_curve(found)

# %% [markdown]
# ## What would settle it
#
# The smallest true difference that would be found with a probability of 80%, now and with more runs.

# %%
pd.DataFrame(tables.extension_rows(found))
