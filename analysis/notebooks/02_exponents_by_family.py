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
# # Exponents by family, and how robust they are
#
# The primary analysis is the block model: it estimates the difference of exponents from shapes at equal FLOPs and
# tokens. The joint law `L = E + A_f N^-alpha_f + B D^-beta` is a secondary analysis: each family f has its own level
# A_f and exponent alpha_f; E, B and beta are shared. Its estimates have a status: an UNIDENTIFIED one is given only as
# the range of accepted values, and a REFUSED one has no value.

# %% tags=["parameters"]
import os
from pathlib import Path

import analysis

SHIPPED = Path(analysis.__file__).parent / "examples" / "micro" / "results.jsonl"
RUNS = Path(os.environ.get("SLM_RUNS") or SHIPPED)
DEEP, WIDE = ("aspect_4", "aspect_32") if RUNS == SHIPPED else (None, None)

# %%
import pandas as pd

from analysis import charts, fit_joint
from analysis.report import tables, text
from analysis.report.study_report import analyze_study

report = analyze_study(analysis.load_runs(RUNS), deep=DEEP, wide=WIDE)
for line in text.exponent_lines(report):
    print(line)

# %%
charts.exponent_difference(report)

# %% [markdown]
# ## Robustness: equal E, single shapes, definition of N, noise, other tests
#
# If E may differ between families, or with another definition of N, the exponent difference is another number.

# %%
for line in text.robustness_lines(report):
    print("-", line)
pd.DataFrame(tables.robustness_rows(report))

# %%
charts.influence(report, "d_alpha")

# %%
charts.residuals(report)

# %% [markdown]
# ## The joint law

# %%
for line in text.joint_lines(report):
    print(line)

# %% [markdown]
# ## Sensitivity to the form of the law
#
# Parameters with one value per family: none in M0, A in M1, also alpha in M2 (the form of the report), also B and
# beta in M3, also E in M4. Check whether alpha changes between the forms, and which forms are identified.

# %%
table = report.table
rows = []
for model in ("M0", "M1", "M2", "M3", "M4"):
    fit = fit_joint(
        table["n"],
        table["tokens"],
        table["loss_nats_per_token"],
        list(table["family"]),
        model=model,
        cluster=list(table["shape"]),
    )
    row = {"model": model, "status": fit.status}
    for family in report.families:
        is_identified = fit.status in ("OK", "WEAK")
        alpha = f"{fit.of_family(family)['alpha']:.4f}" if is_identified else "no value"
        row[f"alpha {family}"] = alpha
    row["residual SD, ln L"] = "" if fit.evidence is None else f"{fit.evidence.residual_sd:.4f}"
    row["reason"] = "; ".join(fit.reasons[:2])
    rows.append(row)
pd.DataFrame(rows)

# %% [markdown]
# ## Sensitivity to the Huber delta

# %%
pd.DataFrame(tables.delta_rows(report))

# %% [markdown]
# ## Prediction of the largest size from the smaller ones

# %%
print(text.hold_out_line(report))
pd.DataFrame(report.comparison.hold_out.rows())
