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
# # Four published points: what they can and cannot say
#
# The MobileLLM family, measured by one author: perplexity on WikiText-2, speed, memory. The README that
# published them says that `PPL = 1152 N^-0.246` with `R^2 = .9935`, that the interval of the exponent is too wide
# to tell it from those of Kaplan (-0.076) and Hoffmann (-0.089), that it is "roughly 3x steeper", and that there
# is "a knee around 300-400M". Which of these hold?

# %%
import math
from itertools import pairwise

import pandas as pd

from analysis import fit_joint, fit_power_law
from analysis.notebooks.mobilellm import MODELS, gain_per_100m

total = [model.params_total for model in MODELS]
body = [model.params_non_embedding for model in MODELS]
perplexity = [model.perplexity for model in MODELS]
loss = [model.loss for model in MODELS]
pd.DataFrame(
    {"model": [m.name for m in MODELS], "parameters": total, "PPL": perplexity, "loss, nats": loss}
).round(3)

# %% [markdown]
# ## The fit reproduces

# %%
seed = fit_power_law(total, perplexity, unit="perplexity")
print(seed.summary())
print(
    f"R^2 {seed.r_squared:.4f}: with four points nearly any falling curve has such a one; no evidence"
)
value, low, high = seed.predict(2e9)
print(f"at 2B: PPL {value:.3f} [{low:.3f}, {high:.3f}], twice the largest model: extrapolation")

# %% [markdown]
# ## First correction: the interval is not too wide, it is worth little
#
# The naive t interval excludes both published values. What is wrong is another thing: it rests on two degrees
# of freedom, knows no noise between seeds, and since all four models saw the same tokens, compute rises with
# size: an exponent in N at fixed D.

# %%
low, high = (-end for end in reversed(seed.alpha_interval))
print(f"slope {-seed.alpha:.4f} [{low:.4f}, {high:.4f}]")
for who, exponent in (("Kaplan", 0.076), ("'Hoffmann'", 0.089)):
    print(f"p of {who} -{exponent}: {seed.p_value(exponent):.4f}")

# %% [markdown]
# -0.089 is in no fit of Hoffmann et al. (alpha .34 in N, beta .28 in D, with an irreducible term).
#
# What a comparison of families would need, in the words of the refusals:

# %%
tokens = [1e12] * len(MODELS)
print(fit_joint(body, tokens, loss, model="M0").summary())

# %% [markdown]
# ## Second correction: not three times steeper
#
# An exponent of perplexity was compared with exponents of the loss. `d ln PPL / d ln N = L d ln L / d ln N`: it is
# larger by the loss in nats, about 2 here. In the same unit:

# %%
in_loss = fit_power_law(total, loss)
in_body = fit_power_law(body, loss)
for name, fit in (("all parameters", in_loss), ("without embedding", in_body)):
    low, high = (-end for end in reversed(fit.alpha_interval))
    print(
        f"loss on {name}: {-fit.alpha:.4f} [{low:.4f}, {high:.4f}], {fit.alpha / 0.076:.2f}x of Kaplan's 0.076"
    )
kaplan = [(8.8e13 / n) ** 0.076 for n in body]
as_perplexity = fit_power_law(body, [math.exp(nats) for nats in kaplan], unit="perplexity")
print(f"Kaplan's own law read as perplexity on the same N has slope {-as_perplexity.alpha:.4f}")

# %% [markdown]
# ## Third correction: a power law has no knee
#
# Its gain per parameter falls smoothly. Steps of unequal size make it look like a knee.

# %%
steps = pd.DataFrame(
    {
        "step": [f"{a.name[10:]} to {b.name[10:]}" for a, b in pairwise(MODELS)],
        "PPL saved": [a - b for a, b in pairwise(perplexity)],
        "PPL per 100M": gain_per_100m(),
        "of the fitted law": [
            100e6 * (seed.predict(a)[0] - seed.predict(b)[0]) / (b - a) for a, b in pairwise(total)
        ],
    }
)
first, last = steps.iloc[0], steps.iloc[-1]
print(f"first over last step: {first['PPL saved'] / last['PPL saved']:.1f}x in total, ", end="")
print(f"{first['PPL per 100M'] / last['PPL per 100M']:.1f}x per parameter")
steps.round(3)

# %% [markdown]
# The fitted law, which has no knee, falls as fast. What holds is the measurement itself:

# %%
small, medium = MODELS[:2]
better = 1 - medium.perplexity / small.perplexity
slower = 1 - medium.tokens_per_second / small.tokens_per_second
print(f"from 125M to 350M: {better:.1%} lower perplexity, {slower:.1%} slower")

# %% [markdown]
# ## With an irreducible loss nothing is left
#
# The form that published exponents are of has one more parameter. Four points do not identify it: any
# irreducible loss in the range is accepted, and with each comes another alpha. No estimate, only the range.

# %%
full = fit_power_law(body, loss, irreducible=True)
print(full.status)
print(f"E accepted from {full.accepted_e[0]:.2f} to {full.accepted_e[1]:.2f} nats")
for reason in full.reasons:
    print("-", reason)

# %% [markdown]
# **What they can say:** within this family, at these sizes and this data, larger is better, smoothly. **What they
# cannot:** whether deep and thin is the reason (no other family), how it changes with scale (no noise, one D),
# what happens at 2B. What could: `python sweep.py study=mobilellm action=plan`.
