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
# # Inverse depth scaling: is loss proportional to 1 / depth identified?
#
# Liu, Kangaslahti, Liu and Gore ([2602.05970](https://arxiv.org/abs/2602.05970), ICML 2026) state that the loss of
# language models is inversely proportional to depth. One part of their evidence is a fit to about 200 of Chinchilla's
# runs,
#
#     L = E + c_m / width^a + c_l / depth^b + c_D / D^c
#
# with a depth exponent b = 1.2 +- 0.3. The numbers quoted here are the outputs of `Scaling/fit-5.ipynb` and
# `fit-8.ipynb` in [their repository](https://github.com/liuyz0/DepthScaling). The paper also measures hidden states and
# trains toy residual networks; this page does not examine these. It asks whether **Chinchilla's runs identify the depth
# exponent**.
#
# **Answer: no.** Given their form, the fit has one optimum. The profile interval of its exponent contains 1 for four of
# five choices of rows and layers, the bootstrap interval for all five. But the additive law gives such exponents also for
# losses that depend on N and D only, without a term for depth: in these runs depth grows with width. And the ordinary law
# in N and D fits the same runs better with two parameters less. The runs neither show nor exclude a term 1 / depth.
#
# The table, `Scaling/get_fitting_data_chinchilla.csv`, is read from your clone of that repository (environment variable
# `DEPTH_SCALING`) or from `$SLM_TEST_DATA`; it is not part of this repository. It has the points that Besiroglu et al.
# ([2404.10102](https://arxiv.org/abs/2404.10102)) read off a figure of Hoffmann et al.
# ([2203.15556](https://arxiv.org/abs/2203.15556)), with the shapes of that paper's table. N counts all parameters.

# %%
import math
from dataclasses import asdict

import numpy as np
import pandas as pd
from IPython.display import Markdown

from analysis import fit_block_model, fit_joint
from analysis.examples.published.claims import (
    HERE,
    Claim,
    claims_table,
    find_table,
    show,
    write_results,
)
from analysis.examples.published.width_depth_charts import (
    ExponentRow,
    exponents_figure,
    profile_figure,
    shapes_figure,
)
from analysis.examples.published.width_depth_designs import (
    Truths,
    aspect_power,
    best_aspect,
    crossed_runs,
)
from analysis.examples.published.width_depth_inference import (
    LawFit,
    Noise,
    depth_free_control,
    error_difference,
    estimate_exponent,
    refits,
    shape_bootstrap,
)
from analysis.examples.published.width_depth_law import (
    Runs,
    aspect,
    aspect_law,
    joint_law,
    minimise,
    width_depth_law,
)
from analysis.fit.profile_likelihood import quantile_t
from slm.charts import INK, MUTED

FIGURES = HERE / "inverse_depth"
FIGURES.mkdir(exist_ok=True)
IN_CLONE = "Scaling/get_fitting_data_chinchilla.csv"
table = pd.read_csv(find_table("DEPTH_SCALING", IN_CLONE, "scaling/chinchilla_shapes.csv"))
selections = Runs.selections(table)
_, USUAL, PAPER = selections  # names of the choices of rows
runs = selections[USUAL]


def interval(low, high, digits=2):
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


# %% [markdown]
# ## Width and depth hardly vary independently

# %%
log_width, log_depth = np.log(runs.shapes).T
slope, intercept = np.polyfit(log_width, log_depth, 1)
rest = log_depth - intercept - slope * log_width
variation = {
    "runs": len(runs),
    "shapes": len(runs.shapes),
    "distinct losses (they were read off a figure)": len(np.unique(runs.loss)),
    "corr(ln width, ln depth) over shapes": float(np.corrcoef(log_width, log_depth)[0, 1]),
    "slope of ln depth on ln width": float(slope),
    "sd of ln depth": float(log_depth.std(ddof=1)),
    "sd of ln depth at given width": math.sqrt(float(rest @ rest) / (len(rest) - 2)),
    "smallest width / depth": float((runs.width / runs.depth).min()),
    "largest width / depth": float((runs.width / runs.depth).max()),
    "corr(ln(width / depth), ln N) over runs": float(
        np.corrcoef(aspect(runs), np.log(runs.size))[0, 1]
    ),
}
shapes_figure(runs).save(FIGURES / "shapes.png")
show([{"quantity": name, "value": f"{value:.3g}"} for name, value in variation.items()])

# %% [markdown]
# ![Depth against width, one point per shape](inverse_depth/shapes.png)
#
# ## One optimum
#
# The objective is the sum of the squares, or of the Huber losses (threshold 1e-3), of the residuals of ln L; logarithms
# are centred, the Jacobian is analytic. 60 random starts have exponents from 0.05 to 2; the bounds are 0.01 and 6. All
# starts reach one minimum, and the condition number of the Jacobian with scaled columns is far below our limit of
# 10,000. So there are neither several optima nor a flat valley.

# %%
law = width_depth_law(runs)
squares = minimise(law, law.starts(60))
huber = minimise(law, law.starts(60), delta=1e-3)
theta = squares.best
show(
    [
        {
            "loss function": name,
            "starts that reach it": f"{count} of 60",
            "objective": f"{objective:.6g}",
            "E": f"{math.exp(at[0]):.4f}",
            **{key: f"{at[law.names.index(key)]:.4f}" for key in "abc"},
            "condition number": f"{law.condition(at):.0f}",
        }
        for name, optima in (("squares", squares), ("Huber 1e-3", huber))
        for count, objective, at in optima.distinct()
    ]
)

# %% [markdown]
# ## The exponent depends on the rows, and on how layers are counted
#
# The profile fixes b and refits the other parameters. It has two intervals: for independent runs, and widened (or
# narrowed) to match the jackknife over shapes, because the runs of a shape share its misfit. The third interval is a
# bootstrap of whole shapes. The usual 240 rows leave out the five largest losses. The paper's code keeps the losses
# below the 40th largest one, which selects rows by their outcome and leaves 203. `fit-8.ipynb` subtracts two layers
# from the depth.

# %%
cases = {name: (chosen, 0) for name, chosen in selections.items()}
cases |= {f"{name}, depth - 2": (selections[name], 2) for name in (USUAL, PAPER)}
estimates = {
    name: estimate_exponent(width_depth_law(chosen, uncounted_layers=less), chosen.shape, "b")
    for name, (chosen, less) in cases.items()
}
show(
    [
        {
            "rows": name,
            "runs / shapes": f"{len(cases[name][0])} / {len(cases[name][0].shapes)}",
            "b": f"{one.value:.3f}",
            "SE over runs": f"{one.se_runs:.3f}",
            "SE over shapes": f"{one.se_shapes:.3f}",
            "profile, runs": interval(one.by_runs.low, one.by_runs.high),
            "profile, shapes": interval(one.by_shapes.low, one.by_shapes.high),
            "bootstrap, shapes": interval(*one.bootstrap),
            "condition number": f"{one.condition:.0f}",
            "starts, minima": f"{one.agreeing} of {one.starts}, {one.minima}",
        }
        for name, one in estimates.items()
    ]
)

# %%
profiles = {name: estimates[name] for name in selections}
by_count = {f"{len(cases[name][0])} rows": one for name, one in profiles.items()}
profile_figure(by_count, quantile_t(law.df)).save(FIGURES / "profile.png")
without = estimates[USUAL].without
influential = np.argsort(-np.abs(without - theta[5]))[:3]
show(
    [
        {
            "shape left out": "{:.0f} wide, {:.0f} deep".format(*runs.shapes[i]),
            "b": f"{without[i]:.3f}",
        }
        for i in influential
    ]
)

# %% [markdown]
# ![Profile of the depth exponent for three choices of rows](inverse_depth/profile.png)
#
# The vertical axis is the square root of (RSS / lowest RSS - 1) df, which is |t| for a linear parameter. Values of b
# below the horizontal line are accepted if runs are independent. Leaving out rows by their loss moves b from 0.93 to
# 1.33. With depth - 2 on the 240 rows the two intervals over shapes disagree: the profile, [0.44, 0.98], excludes 1, the
# bootstrap, [0.44, 1.15], does not. With all 245 rows the outliers make the
# errors over runs larger than those over shapes. The published values are near our minimum on the same 203 rows, but
# not at it:

# %%
PUBLISHED = {
    "E": (1.7503, 0.0256),
    "a": (0.9769, 0.0833),
    "b": (1.2014, 0.2685),
    "c": (0.2991, 0.0139),
}
TERMS = ((333.381, 0.976914), (1284.368, 1.201390), (8.486743, 0.299096))
paper = selections[PAPER]
units = (paper.width, 100 * paper.depth, paper.tokens / 1e6)
published_loss = 1.750327 + sum(c * unit**-p for (c, p), unit in zip(TERMS, units, strict=True))
paper_law = width_depth_law(paper)
minimum = minimise(paper_law, paper_law.starts(60)).best
errors = np.sqrt(np.diag(paper_law.covariance(minimum)))
ours = {"E": (math.exp(minimum[0]), math.exp(minimum[0]) * errors[0])}
ours |= {name: (minimum[place], errors[place]) for place, name in enumerate("abc", start=4)}
published_rss = float(((np.log(paper.loss) - np.log(published_loss)) ** 2).sum())
paper_rss = float((paper_law.residuals(minimum) ** 2).sum())
show(
    [
        {"fit, SE over runs": name, "sum of squares of ln L": f"{rss:.6f}"}
        | {key: f"{value:.3f} +- {error:.3f}" for key, (value, error) in found.items()}
        for name, rss, found in (
            ("published", published_rss, PUBLISHED),
            ("minimum", paper_rss, ours),
        )
    ]
)

# %% [markdown]
# ## Three laws beside each other
#
# - **additive**: their form, 7 parameters.
# - **joint**: L = E + A N^-alpha + B D^-beta (2203.15556), 5 parameters. Depth enters through N only.
# - **aspect**: the joint law with A e^(h u) and alpha + gamma u, where u = ln(width / depth); 7 parameters.
#
# Each shape is predicted by the fit to the other shapes. The last column is the mean over shapes of the difference in
# squared error of ln L. Its standard error treats shapes as independent; but their predictions share most of the runs, so
# it is only approximate.

# %%
BUILD = {"additive": width_depth_law, "joint": joint_law, "aspect": aspect_law}
fits = {
    selection: {name: LawFit.of(build(chosen), chosen.shape) for name, build in BUILD.items()}
    for selection, chosen in selections.items()
}
show(
    [
        {
            "rows": selection,
            "law": f"{name}, {len(fit.law.names)} parameters",
            "sum of squares": f"{fit.rss:.5f}",
            "residual sd of ln L": f"{math.sqrt(fit.rss / fit.law.df):.5f}",
            "rms error, shape left out": f"{fit.rms_error:.5f}",
            "squared error minus joint, 1e-6": ""
            if name == "joint"
            else "{:+.1f} +- {:.1f}".format(
                *(
                    1e6
                    * np.array(error_difference(fit, found["joint"], selections[selection].shape))
                )
            ),
        }
        for selection, found in fits.items()
        for name, fit in found.items()
    ]
)

# %% [markdown]
# In each choice of rows the joint law fits better than the additive law, with two parameters less. Its error for unseen
# shapes is lower by 2.5 and 3.1 standard errors on 240 and 245 rows; on the paper's rows 1.4 standard errors show no
# difference. `analysis.fit_joint` gives the same joint law:

# %%
print(fit_joint(runs.size, runs.tokens, runs.loss).summary())

# %% [markdown]
# ## Control: losses that depend on N and D only
#
# The additive law is fitted to the losses of the joint law, at the same runs: without noise, and with noise whose
# standard deviations (of a run, and of a shape) are those of the joint law's residuals. If depth were proportional to
# width, N^-alpha would be width^(-3 alpha) and also depth^(-3 alpha): exponents near 1, because alpha is near 1/3.
# (Here ln depth grows only 0.64 times as fast as ln width.) The last two rows count the simulations in which the joint law
# fits better by as much as observed, if either law is true. Both laws have the noise of the joint law's residuals, and the
# selection of rows by their loss is not simulated, so these counts are rough.

# %%
controls = {
    name: depth_free_control(fits[name]["additive"], fits[name]["joint"], selections[name].shape)
    for name in (USUAL, PAPER)
}


def control_rows(name):
    one, alpha = controls[name], fits[name]["joint"].theta[3]
    return {
        "sd of a run, of a shape (ln L)": f"{one.noise.sigma:.4f}, {one.noise.tau:.4f}",
        "3 alpha": f"{3 * alpha:.2f}",
        "a, no noise": f"{one.a:.2f}",
        "b, no noise": f"{one.b:.2f}",
        "rms misfit of ln L, no noise": f"{one.misfit:.5f}",
        "a, median [95% of simulations]": f"{one.a_range[1]:.2f} {interval(*one.a_range[::2])}",
        "b, median [95% of simulations]": f"{one.b_range[1]:.2f} {interval(*one.b_range[::2])}",
        "b fitted to the real losses": f"{estimates[name].value:.2f}",
        "observed RSS additive / RSS joint": f"{one.ratio:.3f}",
        "larger if the joint law is true": f"{one.larger_if_joint} of {one.replicates}",
        "larger if the additive law is true": f"{one.larger_if_additive} of {one.replicates}",
    }


by_rows = {name: control_rows(name) for name in controls}
show(
    [
        {"quantity": quantity} | {name: found[quantity] for name, found in by_rows.items()}
        for quantity in by_rows[USUAL]
    ]
)

# %%
value, error = PUBLISHED["b"]
half = quantile_t(paper_law.df) * error
FITTED, SIMULATED = "fitted: 95% interval over shapes", "no depth term: median, 95% of simulations"
rows = [
    ExponentRow(
        "published: 95% interval, SE over runs",
        "203 rows",
        value,
        (value - half, value + half),
        MUTED,
    )
]
for name, (chosen, less) in cases.items():
    one, label = estimates[name], f"{len(chosen)} rows" + (", depth - 2" if less else "")
    rows.append(ExponentRow(FITTED, label, one.value, (one.by_shapes.low, one.by_shapes.high), INK))
for name, one in controls.items():
    label = f"{len(selections[name])} rows"
    rows.append(ExponentRow(SIMULATED, label, one.b_range[1], one.b_range[::2], "var(--series-2)"))
exponents_figure(rows).save(FIGURES / "depth_exponent.png")

# %% [markdown]
# ![Depth exponent by choice of rows, and in simulated data without a depth term](inverse_depth/depth_exponent.png)
#
# The three groups have different intervals, named in the figure. Without any depth term these shapes give b with a
# median of 1.04 on the usual rows and 1.43 on the paper's rows, and the ranges contain 1. The real losses too give a
# larger b on the paper's rows. An exponent whose interval contains 1 is therefore no evidence for a term 1 / depth. The
# observed ratio of the sums of squares is rare under both laws: it speaks against the additive form, but the noise is
# not quite that of the simulations either.
#
# ## Aspect ratio at equal N
#
# Without a form for depth the question is: at equal N and D, does the loss depend on u? h is the relative change of A
# N^-alpha per unit of u, gamma the change of alpha. The additive law implies an h and a gamma: those of the aspect law
# fitted to its losses.

# %%
shape_fit = fits[USUAL]["aspect"]
implied = refits(shape_fit.law, shape_fit.theta, law.predict(theta)[0][None])[0][0]
aspects = {name: shape_fit.estimate(name) for name in ("h", "gamma")}
show(
    [
        {
            "parameter": name,
            "estimate [95% CI over shapes]": f"{found[0]:+.3f} [{found[1]:+.3f}, {found[2]:+.3f}]",
            "implied by the additive law": f"{implied[shape_fit.law.names.index(name)]:+.3f}",
            "implied by the joint law": "0",
        }
        for name, found in aspects.items()
    ]
)

# %% [markdown]
# Both laws lie in the intervals. A comparison of two families, deep (width / depth up to 60) and wide (above 78), is
# refused: the deep shapes have 0.09 to 0.66B parameters, the wide ones 0.51 to 16B.

# %%
frame = pd.DataFrame(
    {
        "aspect_ratio": runs.width / runs.depth,
        "shape": [f"{w:.0f}x{d:.0f}" for w, d in zip(runs.width, runs.depth, strict=True)],
        "params_total": runs.size,
        "flops": 6 * runs.size * runs.tokens,
        "tokens": runs.tokens,
        "loss_nats_per_token": runs.loss,
    }
)
bands = pd.cut(frame["aspect_ratio"], [0, 60, 78, 1000], labels=["deep", "mid", "wide"])
block = fit_block_model(
    frame.assign(family=bands.astype(str)), deep="deep", wide="wide", n="params_total"
)
print(block.summary())

# %% [markdown]
# The additive law also implies a best width / depth at given N. Its interval (bootstrap of shapes) covers much of the
# measured range, and it follows from the form only, since h does not differ from 0:

# %%
drawn = shape_bootstrap(law, theta, runs.shape, 300)
optima = {n: [best_aspect(at, runs, n) for at in (theta, *drawn)] for n in (1e8, 1e9, 1e10)}
show(
    [
        {
            "N": f"{n:.0e}",
            "best width / depth [95% interval]": f"{found[0]:.0f} {interval(*np.percentile(found[1:], [2.5, 97.5]), 0)}",
        }
        for n, found in optima.items()
    ]
)

# %% [markdown]
# ## What would settle it
#
# Aspect ratios crossed with sizes: 4 to 8 sizes from 30M to 1B parameters (12 width^2 depth), each with all aspect
# ratios and with 20, 60 and 180 tokens per parameter, learning rates tuned per shape. Noise as in our plans: 0.005 nats
# per run, 0.01 nats per shape. `SE of b` and the smallest difference found with 80% power (MDE) hold for the additive
# law at our fit. `separation` is the misfit of the additive law to losses of the joint law, in units of the noise:
# above 3 the runs separate the two laws, if one of them is true; a small term 1 / depth beside N is not covered. The last
# columns are the MDE between the smallest and the largest aspect ratio, by `analysis.power`.

# %%
PLANNED = Noise(sigma=0.005, tau=0.01)
BUDGETS = (20.0, 60.0, 180.0)
truths = Truths(runs, theta, fits[USUAL]["joint"].theta)
designs = [truths.planned_row("Chinchilla's 240 runs at this noise", runs, PLANNED, None)]
for rungs, ratios in (
    (8, (64.0,)),
    (4, (32.0, 64.0, 128.0)),
    (4, (16.0, 64.0, 256.0)),
    (6, (16.0, 64.0, 256.0)),
    (8, (16.0, 64.0, 256.0)),
    (6, (16.0, 32.0, 64.0, 128.0, 256.0)),
):
    sizes = np.geomspace(3e7, 1e9, rungs).tolist()
    label = f"{rungs} sizes x aspect ratio{'s' * (len(ratios) > 1)} {', '.join(f'{r:g}' for r in ratios)}"
    power = aspect_power(sizes, ratios, BUDGETS, PLANNED) if len(ratios) > 1 else None
    planned = crossed_runs(sizes, ratios, BUDGETS)
    designs.append(truths.planned_row(label, planned, PLANNED, power))
show(designs)

# %% [markdown]
# 6 sizes x 3 aspect ratios that span a factor of 16 (54 runs) separate the additive law from the joint law and give b to
# about 0.1. With one aspect ratio b is not identified at any number of sizes.
#
# ## Claims

# %%
best = next(row for row in designs if row["design"].startswith("6 sizes x aspect ratios 16, 64"))
wanted = f"{best['design']}, 3 budgets ({best['runs / shapes'].split(' / ')[0]} runs): "
gaps = {
    name: 1e6
    * np.array(
        error_difference(fits[name]["additive"], fits[name]["joint"], selections[name].shape)
    )
    for name in controls
}
control = controls[USUAL]
values = [(one, len(cases[name][0])) for name, one in profiles.items()]
less = estimates[f"{USUAL}, depth - 2"]
claims = [
    Claim(
        "Depth exponent b of the additive law",
        "1.2 +- 0.3 (SE over runs, 203 rows); that this is 1 is our reading",
        "given the form, one optimum: "
        + ", ".join(f"{one.value:.2f} ({count} rows)" for one, count in values),
        "profile over shapes: "
        + ", ".join(
            f"{interval(one.by_shapes.low, one.by_shapes.high)} ({count})" for one, count in values
        )
        + f", with depth - 2 {interval(less.by_shapes.low, less.by_shapes.high)} ({len(runs)}); bootstrap: "
        + ", ".join(f"{interval(*one.bootstrap)} ({count})" for one, count in values)
        + f", with depth - 2 {interval(*less.bootstrap)} ({len(runs)})",
        "WEAK",
        f"{wanted}MDE of b {best['MDE of b']} (here {designs[0]['MDE of b']})",
    ),
    Claim(
        "Loss is inversely proportional to depth",
        "yes; among other evidence, b of these runs",
        "nothing: losses that depend on N and D only give such exponents too: medians "
        + ", ".join(
            f"{one.b_range[1]:.2f} ({len(selections[name])} rows)" for name, one in controls.items()
        ),
        ", ".join(
            f"{interval(*one.b_range[::2])} without a depth term ({len(selections[name])} rows)"
            for name, one in controls.items()
        ),
        "UNIDENTIFIED",
        f"{wanted}separation {best['separation']} (here {designs[0]['separation']})",
    ),
    Claim(
        "Width and depth have separate terms that add",
        "form of the fit, assumed",
        f"the law in N and D fits better with two parameters less: RSS ratio on 240 rows {control.ratio:.3f}, reached in "
        f"{control.larger_if_additive} of {control.replicates} simulations of the additive law and "
        f"{control.larger_if_joint} of the joint law",
        "squared error of unseen shapes, additive minus joint, 1e-6: "
        + ", ".join(
            f"{interval(gap - 1.96 * se, gap + 1.96 * se, 1)} ({len(selections[name])} rows)"
            for name, (gap, se) in gaps.items()
        ),
        "not supported",
        f"{wanted}separation {best['separation']}",
    ),
    Claim(
        "At equal N and D the loss depends on width / depth",
        "implied by the form",
        "no difference shown: "
        + ", ".join(f"{name} {found[0]:+.3f}" for name, found in aspects.items()),
        ", ".join(f"{name} {interval(*found[1:], 3)}" for name, found in aspects.items()),
        "inconclusive",
        f"{wanted}MDE of the exponent difference {best['MDE of the exponent difference']}, of the loss difference "
        f"{best['MDE of the loss difference, nats']} nats",
    ),
    Claim(
        "Deep and wide models have different exponents",
        "not claimed by the authors",
        "nothing: the two families have hardly any sizes in common",
        "none",
        "REFUSED",
        f"{wanted}MDE of the exponent difference {best['MDE of the exponent difference']}",
    ),
]
results = {
    "variation": variation,
    "depth_exponent": {
        name: {
            "runs": len(cases[name][0]),
            "b": one.value,
            "se_runs": one.se_runs,
            "se_shapes": one.se_shapes,
            "by_runs": [one.by_runs.low, one.by_runs.high],
            "by_shapes": [one.by_shapes.low, one.by_shapes.high],
            "bootstrap": list(one.bootstrap),
            "condition": one.condition,
            "minima": one.minima,
        }
        for name, one in estimates.items()
    },
    "huber_b": float(huber.best[5]),
    "laws": {
        selection: {
            name: {"rss": fit.rss, "rms_error": fit.rms_error} for name, fit in found.items()
        }
        for selection, found in fits.items()
    },
    "published_rss": published_rss,
    "control": {name: asdict(one) for name, one in controls.items()},
    "aspect": aspects,
    "block_model": {"refused": list(block.reasons)},
    "designs": designs,
}
write_results("inverse_depth", results, claims)
Markdown(claims_table(claims))

# %% [markdown]
# **Limits.** The losses were read off a figure (94 distinct values for 240 runs), with one run per point; the learning rates
# and seeds are not known. Intervals over shapes treat shapes as independent. The laws compared are three of many, and the
# paper's other evidence (hidden states, toy networks) is not examined.
