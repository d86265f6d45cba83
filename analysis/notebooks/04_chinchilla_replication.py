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
# # Chinchilla, replicated
#
# Hoffmann et al. (2203.15556) published exponents with intervals too narrow to be true; Besiroglu et al.
# (2404.10102) read 245 points off a figure and fitted them again. With their points in
# `$SLM_TEST_DATA/scaling/chinchilla_epoch.csv` (columns N, D, loss) this notebook fits them once more.

# %% tags=["parameters"]
import os
from pathlib import Path

DATA = Path(os.environ.get("SLM_TEST_DATA") or "../shared/data")
POINTS = DATA / "scaling" / "chinchilla_epoch.csv"

# %%
import math
import time

import numpy as np
import pandas as pd

from analysis import fit_joint

GIVEN = POINTS.is_file()
if GIVEN:
    everything = pd.read_csv(POINTS).sort_values("loss")
    points = everything.iloc[:-5]  # the five of the largest loss are outliers, as in 2404.10102
    print(f"{len(points)} of {len(everything)} points")
else:
    print(
        f"{POINTS} is not there: set SLM_TEST_DATA to the folder with the published points, run again"
    )

# %% [markdown]
# ## Huber's loss, delta 1e-3, summed

# %%
if GIVEN:
    began = time.perf_counter()
    huber = fit_joint(points["N"], points["D"], points["loss"], loss_fn="huber", delta=1e-3)
    print(f"{huber.evidence.starts} starts in {time.perf_counter() - began:.2f} s")
    print(huber.summary())

# %% [markdown]
# Published by 2404.10102: E 1.8172, A 482.01, B 2085.43, alpha .3478, beta .3658. The optimum lies next to it;
# theirs is what a delta of 1e-5 gives, nearly least absolute deviations.

# %%
if GIVEN:
    published = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
    near = fit_joint(points["N"], points["D"], points["loss"], loss_fn="huber", delta=1e-5)
    squares = fit_joint(points["N"], points["D"], points["loss"])
    rows = {"published": published, "Huber 1e-3": huber.params, "Huber 1e-5": near.params}
    rows |= {"least squares": squares.params, "variable projection": squares.vpnls}
    print(pd.DataFrame(rows).T[list(published)].round(4).to_string(na_rep="-"))

# %% [markdown]
# ## What the choice of delta does

# %%
if GIVEN:
    by_delta = {
        "inf" if math.isinf(d) else f"{d:g}": values for d, values in huber.by_delta.items()
    }
    print(pd.DataFrame(by_delta).T.round(4).to_string())

# %% [markdown]
# ## Predicting the largest from the others

# %%
if GIVEN:
    flops = 6 * points["N"] * points["D"]
    small, large = points[flops < 1e21], points[flops >= 1e21]
    fit = fit_joint(small["N"], small["D"], small["loss"], loss_fn="huber", delta=1e-3)
    error = np.log(large["loss"]) - np.log(fit.predict(large["N"], large["D"]))
    print(
        f"{len(large)} runs of 1e21 FLOPs or more: mean |error| {np.abs(error).mean():.4f} in ln L, ",
        end="",
    )
    print(f"mean {error.mean():+.4f}")
