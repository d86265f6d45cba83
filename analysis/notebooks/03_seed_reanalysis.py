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
# # Four published points: which conclusions they support
#
# Four MobileLLM models, measured by one author: perplexity on WikiText-2, speed and memory. The README with these
# measurements makes four statements: `PPL = 1152 N^-0.246` with `R^2 = .9935`; the interval of the exponent is
# too wide to exclude the exponents of Kaplan (-0.076) and Hoffmann (-0.089); the slope is "roughly 3x steeper";
# there is "a knee around 300-400M". Which of them are correct?

# %%
import pandas as pd

from analysis import fit_joint, fit_power_law
from analysis.notebooks.mobilellm import MODELS, kaplan_as_perplexity, perplexity_steps

total = [model.params_total for model in MODELS]
body = [model.params_non_embedding for model in MODELS]
perplexity = [model.perplexity for model in MODELS]
loss = [model.loss for model in MODELS]
pd.DataFrame(
    {"model": [m.name for m in MODELS], "parameters": total, "PPL": perplexity, "loss, nats": loss}
).round(3)

# %% [markdown]
# ## The published fit is reproduced

# %%
seed = fit_power_law(total, perplexity, unit="perplexity")
print(seed.summary())
print(
    f"R^2 {seed.r_squared:.4f}: no evidence, because nearly any decreasing curve through four points has it"
)
value, low, high = seed.predict(2e9)
print(f"at 2B: PPL {value:.3f} [{low:.3f}, {high:.3f}], extrapolation to twice the largest model")

# %% [markdown]
# ## First correction: the interval is not too wide
#
# The naive t interval excludes both published values. Its problem is another one: it has two degrees of freedom
# and no estimate of the seed standard deviation. All four models were also trained on the same number of
# tokens, so compute increases with size, and the exponent is one in N at fixed D.

# %%
low, high = (-end for end in reversed(seed.alpha_interval))
print(f"slope {-seed.alpha:.4f} [{low:.4f}, {high:.4f}]")
for name, exponent in (("Kaplan", 0.076), ("'Hoffmann'", 0.089)):
    print(f"p of {name} -{exponent}: {seed.p_value(exponent):.4f}")

# %% [markdown]
# No fit of Hoffmann et al. has the exponent -0.089 (alpha .34 in N, beta .28 in D, with an irreducible term).
#
# The joint law is refused for these runs. The reasons list what a comparison of families needs:

# %%
tokens = [1e12] * len(MODELS)
print(fit_joint(body, tokens, loss, model="M0").summary())

# %% [markdown]
# ## Second correction: the slope is not three times steeper
#
# The README compares an exponent of perplexity with exponents of the loss. Since
# `d ln PPL / d ln N = L d ln L / d ln N`, the exponent of perplexity is larger by a factor L, the loss in nats, which
# is about 2 here. With the loss as the unit of both:

# %%
in_loss = fit_power_law(total, loss)
in_body = fit_power_law(body, loss)
for name, fit in (("all parameters", in_loss), ("parameters without embeddings", in_body)):
    low, high = (-end for end in reversed(fit.alpha_interval))
    print(
        f"loss on {name}: {-fit.alpha:.4f} [{low:.4f}, {high:.4f}], {fit.alpha / 0.076:.2f}x Kaplan's 0.076"
    )
slope = -kaplan_as_perplexity().alpha
print(f"Kaplan's law, converted to perplexity at the same N, has slope {slope:.4f}")

# %% [markdown]
# ## Third correction: a power law has no knee
#
# Its gain per parameter decreases smoothly. Steps of unequal size make it look like a knee.

# %%
steps = pd.DataFrame(perplexity_steps(seed))
first, last = steps.iloc[0], steps.iloc[-1]
print(f"first over last step: {first['PPL saved'] / last['PPL saved']:.1f}x in total, ", end="")
print(f"{first['PPL per 100M'] / last['PPL per 100M']:.1f}x per parameter")
steps.round(3)

# %% [markdown]
# The gain of the fitted law, which has no knee, decreases nearly as fast. The measured comparison of the two smallest
# models is correct:

# %%
small, medium = MODELS[:2]
better = 1 - medium.perplexity / small.perplexity
slower = 1 - medium.tokens_per_second / small.tokens_per_second
print(f"from 125M to 350M: {better:.1%} lower perplexity, {slower:.1%} slower")

# %% [markdown]
# ## With an irreducible loss, the exponent is not identified
#
# The published exponents come from a law with one more parameter, the irreducible loss E. Four points do not
# identify it: every E in the range below is accepted, and each has another alpha. So only the range is given.

# %%
full = fit_power_law(body, loss, irreducible=True)
print(full.status)
print(f"E accepted from {full.accepted_e[0]:.2f} to {full.accepted_e[1]:.2f} nats")
for reason in full.reasons:
    print("-", reason)

# %% [markdown]
# **Supported by these points:** within this family, for these sizes and data, the perplexity decreases smoothly
# with size. **Not supported:** that the deep and thin shape is the reason (there is no other family), any change
# with scale (no noise estimate, one D), and the perplexity at 2B. `python sweep.py study=mobilellm action=plan`
# shows a design that can test them.
#
# The page `analysis/examples/published/mobilellm.md` is the short form of this notebook. It adds a simulation of the
# intervals, the ablation of depth and width in the MobileLLM paper, and the power of designs that would settle the claims.
