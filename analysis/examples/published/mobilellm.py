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
# # MobileLLM: four points, and an ablation of depth
#
# Two sources are re-examined. The first is the README of github.com/ValtricAI/Scaling-Laws-for-Small-Language-Models, which
# fits a power law to four MobileLLM models, measured on WikiText-2: `PPL = 1152 N^-0.246`. It says that the interval of the
# exponent is too wide to exclude the exponents of Kaplan (-0.076) and Hoffmann (-0.089), that the slope is about three times
# theirs, and that there is a knee at 300M to 400M. It also says that almost anything fits four points, and that the
# comparison with Kaplan and Hoffmann has a problem, because they varied the architecture. The second is the MobileLLM paper
# (2402.14905), which concludes from an ablation that below one billion parameters deep and thin models are better.
#
# `python -m analysis.examples.pages mobilellm` executes this page. The notebook `03_seed_reanalysis` goes through
# the first part more slowly.

# %%
import math
from dataclasses import asdict
from pathlib import Path

from IPython.display import Markdown

from analysis import fit_power_law
from analysis.examples.published.claims import Claim, claims_table, show, write_results
from analysis.examples.published.depth_ablation import (
    ABLATION,
    SHALLOW,
    USUAL,
    depth_gain,
    points_per_log_flops,
)
from analysis.examples.published.design_power import study_power
from analysis.examples.published.four_points import (
    accepted,
    fit_given_e,
    laws_by_e,
    losses,
    simulate_intervals,
    sizes,
)
from analysis.notebooks.mobilellm import (
    KAPLAN_ALPHA,
    MODELS,
    kaplan_as_perplexity,
    perplexity_steps,
)
from slm.charts import (
    INK,
    Axis,
    Figure,
    Series,
    bands,
    labels,
    layered,
    lines,
    literal_line,
    points,
    rule,
)

FOLDER = Path("analysis/examples/published/mobilellm")


total = [model.params_total for model in MODELS]
show(
    [
        {
            "model": model.name,
            "parameters": f"{model.params_total / 1e6:.1f}M",
            "without embeddings": f"{model.params_non_embedding / 1e6:.1f}M",
            "PPL": f"{model.perplexity:.3f}",
            "loss, nats/token": f"{model.loss:.4f}",
        }
        for model in MODELS
    ]
)

# %% [markdown]
# ## The slope, in perplexity and in loss
#
# The README compares the exponent of a perplexity with exponents of losses. Since `d ln PPL / d ln N = L d ln L / d ln N`,
# the first is larger by the factor L, the loss in nats, here about 2.

# %%
in_ppl = fit_power_law(total, [model.perplexity for model in MODELS], unit="perplexity")
in_loss = fit_power_law(total, losses())
in_body = fit_power_law(sizes(), losses())
kaplan_ppl = kaplan_as_perplexity()


def slope_text(fit):
    high, low = fit.alpha_interval
    return f"{-fit.alpha:.4f} [{-low:.4f}, {-high:.4f}]"


rows = [
    ("PPL", "all parameters", in_ppl),
    ("loss", "all parameters", in_loss),
    ("loss", "without embeddings", in_body),
]
show(
    [
        {
            "of": of,
            "N": n,
            "slope [naive 95% interval]": slope_text(fit),
            "relative to Kaplan's loss exponent": f"{fit.alpha / KAPLAN_ALPHA:.2f}",
        }
        for of, n, fit in rows
    ]
)

# %%
value, low, high = in_ppl.predict(2e9)
print(f"PPL = {in_ppl.A:.1f} N^{-in_ppl.alpha:.4f}, R^2 {in_ppl.r_squared:.4f}")
print(f"at 2B: PPL {value:.3f} [{low:.3f}, {high:.3f}]")
for name, exponent in (("Kaplan", 0.076), ("'Hoffmann'", 0.089)):
    print(f"p of {name} -{exponent} as a slope of PPL: {in_ppl.p_value(exponent):.4f}")
print(f"Kaplan's law of the loss, as PPL at the same N: slope {-kaplan_ppl.alpha:.4f}")

# %% [markdown]
# The published fit is reproduced. Two of the statements about it are wrong, and the third is not shown:
#
# 1. **An interval that does not exclude the published exponents.** The naive interval excludes both published exponents. No
#    fit of Hoffmann et al. has the exponent -0.089 (theirs are .34 in N and .28 in D, with an irreducible loss).
# 2. **A slope three times that of Kaplan.** In the same unit, the loss, it is 1.45x (1.38x without embeddings). Kaplan's
#    law, read as perplexity at these sizes, has the slope -0.1976.
# 3. **A knee at 300M to 400M.** Not shown. The gain per parameter is above the fitted law, which has no knee, in the first
#    step and below it in the next two. This is the direction of a knee, but also that of a smooth curve with an irreducible
#    loss, and four points without a noise estimate allow no test:

# %%
steps = perplexity_steps(in_ppl)
show([{k: v if isinstance(v, str) else f"{v:.3f}" for k, v in step.items()} for step in steps])

# %% [markdown]
# ## Why the interval is naive, and what it would be with an assumed noise
#
# The interval comes from the scatter of four points around a line: two degrees of freedom, one run per size, no estimate of
# the noise, and one number of tokens for all sizes, so that compute increases with N. Here 10,000 tables of four losses are
# drawn around known laws, with the noise that this project assumes for a run: a seed standard deviation of 0.005 nats and a
# random effect of the shape of 0.01 nats.

# %%
NOISE = math.hypot(0.005, 0.01)
laws = laws_by_e(NOISE)
best = min(laws, key=lambda law: law.chi2)
power_law, with_e = fit_given_e(0.0, NOISE), fit_given_e(best.E, NOISE)
simulated = {law.E: simulate_intervals(law, NOISE) for law in (power_law, with_e)}
show(
    [
        {
            "true law": f"E = {e:.2f} nats",
            "true slope of ln loss": f"{one.slope:.4f}",
            "SD of the estimates": f"{one.sd:.4f}",
            "half-width of the naive interval: 2.5%, 50%, 97.5%": ", ".join(
                f"{x:.4f}" for x in one.half_widths
            ),
            "coverage": f"{one.coverage:.1%}",
            "contains -0.076": f"{one.includes_kaplan:.0%}",
        }
        for e, one in simulated.items()
    ]
)

# %%
half_width = (in_body.alpha_interval[1] - in_body.alpha_interval[0]) / 2
known = 1.96 * simulated[0.0].sd
print(f"half-width here: naive {half_width:.4f}, with the assumed noise {known:.4f}")

# %% [markdown]
# The interval contains the slope in 95.7% of tables if the true law is a line (E = 0), and in 98.1% if it is curved,
# because the curvature counts as scatter. But the width of such an interval is nearly random: in the first row its 97.5%
# quantile is twelve times its 2.5% quantile. If this noise were known, the interval would have less than half of the width.
# Neither makes the exponent known, because the slope of a straight line is the exponent only if the irreducible loss E is
# zero. None of this covers what the four points do not vary: other seeds, other numbers of tokens, other shapes.
#
# ## The irreducible loss, and with it the exponent, is not identified
#
# A likelihood profile over E: for each E the best alpha, and whether the four points reject it.

# %%
full = fit_power_law(sizes(), losses(), irreducible=True)
ranges = {noise: accepted(laws_by_e(noise)) for noise in (NOISE, 0.005, 0.002)}
show(
    [
        {
            "noise of a run": "estimated from the four points",
            "E accepted, nats": f"{full.accepted_e[0]:.2f} to {full.accepted_e[1]:.2f}",
            "alpha accepted": f"{full.alpha_interval[0]:.2f} to {full.alpha_interval[1]:.2f}",
            "status": full.status,
        },
        *(
            {
                "noise of a run": f"assumed, {noise:.4f} nats",
                "E accepted, nats": f"{kept[0].E:.2f} to {kept[-1].E:.2f}",
                "alpha accepted": f"{kept[0].alpha:.2f} to {kept[-1].alpha:.2f}",
                "status": "",
            }
            for noise, kept in ranges.items()
        ),
    ]
)

# %%
kept = ranges[NOISE]
extremes = (kept[0], with_e, kept[-1])
names = [f"E {law.E:.2f}, alpha {law.alpha:.2f}" for law in extremes]
grid = [10 ** (7.9 + 0.05 * step) for step in range(43)]
curves = [
    [{"x": n, "y": float(law.loss(n)), "series": name, "group": name} for n in grid]
    for law, name in zip(extremes, names, strict=True)
]
models = Series(("MobileLLM",))
measured = [{"x": n, "y": y, "series": "MobileLLM"} for n, y in zip(sizes(), losses(), strict=True)]
shown = [row for curve in curves for row in curve]
x = Axis.around([row["x"] for row in shown], "N, parameters without embeddings", log=True, kind="count").extended(0, 0.3)  # fmt: skip
y = Axis.around([row["y"] for row in shown], "loss (nats/token)")
layers = []
for index, (curve, name) in enumerate(zip(curves, names, strict=True), start=1):
    colour, end = f"var(--series-{index})", {**curve[-1], "x": 1.08 * grid[-1], "text": name}
    layers.append(lines(curve, x, y, models).encode(**literal_line(colour)))
    layers.append(labels([end], x.x(), y.y(), colour))
extrapolation = Figure(
    "extrapolation",
    "Laws that the four points accept at a noise of 0.011 nats",
    "",
    layered(
        rule(x=float(sizes().max()), dash=(2, 3)),
        *layers,
        points(measured, x, y, models, size=90).encode(color=literal_line(INK)["color"]),
    ),
)
FOLDER.mkdir(exist_ok=True)
extrapolation.save(FOLDER / "extrapolation.png")
at_10b = [float(law.loss(1e10)) for law in extremes]
print("loss at 10B:", ", ".join(f"{loss:.3f} ({name})" for loss, name in zip(at_10b, names, strict=True)))  # fmt: skip

# %% [markdown]
# ![Three laws through the four points that separate beyond one billion parameters](mobilellm/extrapolation.png)
#
# With a noise of 0.011 nats the four points reject none of the three curves. Right of the dotted line, the largest
# model, they separate.
#
# ## The MobileLLM paper: deep and thin is better below 1B
#
# The paper trains 19 shapes at two sizes and compares their mean zero-shot accuracy on eight tasks (Figure 4; Table 11 for
# 125M, Table 12 for 350M). The paper was not at hand: the first four columns are quoted from summaries. Two independent ones
# agree on the accuracies at 125M and on the 19 shapes, one has the accuracies at 350M. Compare them with the paper before
# you cite them. The table has 8 of these 19 shapes, four per size, each with two to three times the layers of the one
# before. No rule for this choice was recorded, and the other 11 accuracies were not used.
#
# The last two columns are ours. The standard error is that of sampling the examples of the eight public test sets, without
# the noise between seeds. FLOPs are computed at a sequence length of 2048, for equal total parameters (135M and 350M) with
# an untied vocabulary of 32,000 tokens.

# %%
show(
    [
        {
            "size": model.size,
            "layers": str(model.n_layers),
            "d_model": str(model.d_model),
            "mean accuracy, %": f"{model.average:.1f}",
            "SE, points": f"{model.standard_error:.2f}",
            "training MFLOPs per token": f"{model.flops_per_token / 1e6:,.0f}",
        }
        for model in ABLATION
    ]
)

# %%
gains = [depth_gain(other) for other in (*USUAL.values(), *SHALLOW.values())]
show(
    [
        {
            "size": gain.size,
            "compared with the best deep shape": f"{gain.other.n_layers} layers",
            "difference, points [95% interval]": f"{gain.gain:+.1f} [{gain.interval[0]:+.1f}, {gain.interval[1]:+.1f}]",
            "FLOPs ratio": f"{gain.flops_ratio:.2f}",
            "worth of these FLOPs, points": f"{gain.worth:+.1f}",
        }
        for gain in gains
    ]
)

# %%
bars = [
    {
        "x": model.n_layers,
        "y": model.average,
        "low": model.average - 1.96 * model.standard_error,
        "high": model.average + 1.96 * model.standard_error,
        "series": model.size,
        "group": model.size,
    }
    for model in ABLATION
]
pair = Series(("125M", "350M"))
depth = Axis.around([row["x"] for row in bars], "layers", log=True, ticks=(4, 8, 16, 32, 64))
score = Axis.around([row[end] for row in bars for end in ("low", "high")], "mean accuracy (%)")
ablation = Figure(
    "ablation",
    "Accuracy against depth at equal parameters",
    "",
    layered(
        bands(bars, depth, score, pair),
        lines(bars, depth, score, pair),
        points(bars, depth, score, pair, size=90),
        series=pair,
    ),
)
ablation.save(FOLDER / "ablation.png")

# %% [markdown]
# ![Mean accuracy against layers, with 95% intervals of the sampling of examples](mobilellm/ablation.png)
#
# - **Supported, at equal parameters:** at 350M, 5 layers are worse than 32, by 2.7 points, four standard errors of sampling.
#   Noise between seeds is not in these errors: with a standard deviation above 0.86 points per model, the interval would
#   contain 0. The deep shape has 24% more FLOPs, worth 1.2 points, so this is no comparison at equal compute.
# - **Not identified:** that about 30 layers are better than 12 or 15, or than 4 at 125M. The first two differences are 0.9
#   and 1.1 points, less than two standard errors. The third is +1.5 [+0.2, +2.8]; but the interval is without the noise
#   between seeds, and the best of 9 or 10 shapes was chosen afterwards, which makes it look better than it is. Both models
#   answer the same questions, so scores by question would give a sharper, paired test; the intervals here are too wide in
#   that respect, and too narrow in the other two.
# - **Confounded with compute:** equal parameters are not equal FLOPs. The FLOPs of attention grow with layers times width,
#   and a wide model keeps more of its parameters in the input embedding, which costs no FLOPs. So the deep shape has 16%
#   (125M) and 9% (350M) more FLOPs per token than the one with 12 or 15 layers. At the slope between the two sizes of the
#   table these are worth 0.8 and 0.5 points: most of the gain at 125M, and almost half of it at 350M. The slope is that of
#   two models, so this is a scale and not a correction. At 125M the FLOPs of 30 layers are worth more than the gain over 4
#   layers.
# - **Not tested:** a change with scale (two sizes, one number of tokens), the loss itself, the noise between seeds, and
#   whether one learning rate suits all shapes.
#
# ## A design that would settle it

# %%
designs = {name: study_power(name) for name in ("seed_design", "mobilellm", "sub1b")}
show([design.row() for design in designs.values()])

# %% [markdown]
# `seed_design` is the design of the four points. `study=mobilellm` adds two shapes of equal FLOPs at each size and has
# three token budgets; it would find an exponent difference of 0.02 in one of eight cases. `study=sub1b` spreads fewer FLOPs
# over 14 sizes and 8 aspect ratios: its standard error is three times smaller, because the unit of replication is the
# shape. Assumed are a seed standard deviation of 0.005 nats and a random effect of a shape of 0.01 nats (docs/studies.md
# has hours and other designs).
#
# ## Claims

# %%
naive = "naive, 2 degrees of freedom"
low_ppl, high_ppl = (-end for end in reversed(in_ppl.alpha_interval))
sub1b = designs["sub1b"].power
exponent_design = (
    f"study=sub1b, {designs['sub1b'].cells} cells, {designs['sub1b'].flops:.1e} FLOPs: exponent difference of 0.02 "
    f"with {sub1b.power_exponent[0.02]:.0%} power"
)
level_design = (
    f"study=sub1b (d_model / n_layers of 24 against 192; the paper's shapes have 17 against 64): ln(compute multiplier) "
    f"of {sub1b.mde80_log_kappa:.2f} with 80% power"
)
claims = [
    Claim(
        "PPL = 1152 N^-0.246 describes the four models",
        "-0.246, R^2 .9935",
        "a smooth decrease with size, for these models and tokens",
        f"{low_ppl:.4f} to {high_ppl:.4f}, {naive}",
        in_ppl.status,
        "several token budgets and seeds (no design computed)",
    ),
    Claim(
        "the interval is too wide to exclude Kaplan and Hoffmann",
        "not distinguishable",
        f"as written, both are excluded (p {in_ppl.p_value(0.076):.4f}, {in_ppl.p_value(0.089):.4f}), but the units differ",
        f"loss: {-in_loss.alpha_interval[1]:.4f} to {-in_loss.alpha_interval[0]:.4f}, {naive}",
        "wrong",
        "no new data",
    ),
    Claim(
        "the slope is 3x steeper than Kaplan's",
        "about 3x",
        f"{in_loss.alpha / KAPLAN_ALPHA:.2f}x in the unit of Kaplan's law, {in_body.alpha / KAPLAN_ALPHA:.2f}x on its N",
        "; ".join(
            f"{fit.alpha_interval[0] / KAPLAN_ALPHA:.2f}x to {fit.alpha_interval[1] / KAPLAN_ALPHA:.2f}x {of}"
            for of, fit in (("in its unit", in_loss), ("on its N", in_body))
        )
        + f", {naive}; Kaplan's exponent taken as exact, from other data and sizes",
        "wrong unit",
        "no new data",
    ),
    Claim(
        "a knee at 300 to 400M parameters",
        "yes",
        "nothing: PPL saved per 100M parameters before and after 350M "
        + ", ".join(f"{step['PPL per 100M']:.3f}" for step in steps[:2])
        + ", in the fitted law "
        + ", ".join(f"{step['PPL per 100M, fitted law']:.3f}" for step in steps[:2]),
        "none (no test with four points)",
        "not shown",
        "more sizes around 350M, with seeds (no design computed)",
    ),
    Claim(
        "the exponent of the scaling law",
        "-0.246",
        "nothing: E and alpha trade off",
        f"E {full.accepted_e[0]:.2f} to {full.accepted_e[1]:.2f}, alpha {full.alpha_interval[0]:.2f} to "
        f"{full.alpha_interval[1]:.2f}, 1 degree of freedom; E {kept[0].E:.2f} to {kept[-1].E:.2f}, alpha "
        f"{kept[0].alpha:.2f} to {kept[-1].alpha:.2f} if the noise is {NOISE:.4f} nats",
        full.status,
        "more sizes and token budgets: study=sub1b has 14 sizes and 3 budgets",
    ),
    Claim(
        "below 1B, deep and thin is better (2402.14905)",
        "30 layers over 12: +0.9 points; 32 over 15: +1.1",
        "at equal parameters and 350M, 5 layers are worse than 32; nothing at equal FLOPs",
        "; ".join(
            f"{g.interval[0]:+.1f} to {g.interval[1]:+.1f} points at {g.size}" for g in gains[:2]
        )
        + ": sampling of examples only, unpaired, without seeds",
        "UNIDENTIFIED",
        level_design,
    ),
    Claim(
        "depth is an advantage of small models in particular (2402.14905)",
        "below 1B; less above is our reading of the paper",
        "nothing: two sizes, one token budget, no loss",
        "none",
        "REFUSED",
        exponent_design,
    ),
]
Markdown(claims_table(claims))

# %% [markdown]
# **Limits.** The four losses are one run per size at one number of tokens, and are quoted from a README; the noise is
# assumed, not measured. The accuracies of the ablation are from summaries of the paper, 8 of 19 shapes; their intervals
# cover the sampling of test examples only, and FLOPs are computed for nominal sizes.

# %%
_ = write_results(
    "mobilellm",
    {
        "slope_ppl": [-in_ppl.alpha, low_ppl, high_ppl],
        "prefactor_ppl": in_ppl.A,
        "r_squared": in_ppl.r_squared,
        "slope_loss_total": [
            -in_loss.alpha,
            -in_loss.alpha_interval[1],
            -in_loss.alpha_interval[0],
        ],
        "slope_loss_body": [
            -in_body.alpha,
            -in_body.alpha_interval[1],
            -in_body.alpha_interval[0],
        ],
        "kaplan_slope_as_ppl": -kaplan_ppl.alpha,
        "p_kaplan": in_ppl.p_value(0.076),
        "p_hoffmann": in_ppl.p_value(0.089),
        "ppl_at_2b": list(in_ppl.predict(2e9)),
        "ppl_per_100m": [step["PPL per 100M"] for step in steps],
        "noise": NOISE,
        "simulated": {f"E={e:.2f}": asdict(one) for e, one in simulated.items()},
        "accepted_e_noise_estimated": full.accepted_e,
        "accepted_with_known_noise": {
            f"{noise:.4f}": {
                "E": [kept[0].E, kept[-1].E],
                "alpha": [kept[0].alpha, kept[-1].alpha],
            }
            for noise, kept in ranges.items()
        },
        "loss_at_10b": at_10b,
        "ablation": [
            {
                **asdict(model),
                "flops_per_token": model.flops_per_token,
                "standard_error": model.standard_error,
            }
            for model in ABLATION
        ],
        "depth_gain": [{**asdict(gain), "interval": gain.interval} for gain in gains],
        "points_per_log_flops": points_per_log_flops(),
        "designs": {
            name: {
                "cells": design.cells,
                "flops": design.flops,
                "se_level": design.power.se_level,
                "se_exponent": design.power.se_exponent,
                "power_exponent": design.power.power_exponent,
                "power_log_kappa": design.power.power_kappa,
                "refusals": design.power.refusals,
            }
            for name, design in designs.items()
        },
    },
    claims,
)
