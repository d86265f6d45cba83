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
# # Exponents by family, and whether to believe them
#
# The joint law `L = E + A_f N^-alpha_f + B D^-beta`: level and exponent of each family, the rest shared. Every
# estimate comes with a status. REFUSED and UNIDENTIFIED ones are not shown as numbers: what the runs accept is
# a range.

# %% tags=["parameters"]
import os
from pathlib import Path

import analysis

SHIPPED = Path(analysis.__file__).parent / "examples" / "micro" / "results.jsonl"
RUNS = Path(os.environ.get("SLM_RUNS") or SHIPPED)

# %%
import pandas as pd

from analysis import fit_joint
from analysis.report import charts, charts_diagnostics, tables, text
from analysis.report.study_report import answer

found = answer(analysis.load_runs(RUNS))
print(text.exponent_sentence(found))

# %%
charts.alphas(found)

# %% [markdown]
# ## Is it the law that says so?
#
# M0 has nothing of a family's own, M1 the level, M2 (the primary) the exponent too, M3 also B and beta, M4 also
# E. What matters is whether alpha stays where it is, and which of them are identified at all.

# %%
table = found.table
rows = []
for model in ("M0", "M1", "M2", "M3", "M4"):
    fit = fit_joint(
        table["n"], table["tokens"], table["loss_nats_per_token"], list(table["family"]),
        model=model, cluster=list(table["shape"]),
    )  # fmt: skip
    row = {"model": model, "status": fit.status}
    for family in found.families:
        told = fit.status in ("OK", "WEAK")
        row[f"alpha {family}"] = f"{fit.of_family(family)['alpha']:.4f}" if told else "no number"
    row["residual sd, ln L"] = "" if fit.evidence is None else f"{fit.evidence.residual_sd:.4f}"
    row["why"] = "; ".join(fit.reasons[:2])
    rows.append(row)
pd.DataFrame(rows)

# %% [markdown]
# ## Is it the definition of N?
#
# `n_flop` (FLOPs per token / 6) is primary. If the sign of the difference changed with the definition, the
# verdict would be `definition_dependent`, not that one family is better.

# %%
pd.DataFrame(tables.exponent_rows(found))

# %%
charts.exponent_difference(found)

# %% [markdown]
# ## Is it the loss function?

# %%
pd.DataFrame(tables.delta_rows(found))

# %% [markdown]
# ## Is it one shape? Does it extrapolate?

# %%
one = found.comparison.exponents
if one.without is not None and one.status in ("OK", "WEAK"):
    shape, difference = one.without
    print(f"without {shape} the difference is {difference:+.4f}, with it {one.difference:+.4f}")
print("Hold-out:", text.hold_out_sentence(found))
charts_diagnostics.residuals(found)

# %%
charts_diagnostics.hold_out(found)
