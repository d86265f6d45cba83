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
# # What `study=micro` answers
#
# The runs of [PROTOCOL.md](PROTOCOL.md), which was written before them. [report.md](report.md) has all tables; this page has
# what the protocol asks for beyond it: where the scatter between shapes comes from, the noise between seeds, the controls,
# and the cost.

# %%
import json
import math
from pathlib import Path

import pandas as pd
from IPython.display import Markdown
from scipy import stats

from analysis.report.study_report import analyze_study
from analysis.report.write import markdown_table
from analysis.runs.load import load_runs

HERE = Path("analysis/examples/micro")
AUDIT, SPEED = HERE / "lr_audit.json", HERE / "speed.json"
runs = load_runs(HERE / "results.jsonl")
report = analyze_study(
    runs,
    deep="aspect_4",
    wide="aspect_32",
    audit=json.loads(AUDIT.read_text()) if AUDIT.exists() else None,
    speed=SPEED if SPEED.exists() else None,
)


def show(rows: list[dict[str, str]]) -> Markdown:
    """Return rows as a Markdown table."""
    return Markdown("\n".join(markdown_table(rows)) if rows else "no rows")


print(report.summary())

# %% [markdown]
# ## Where the scatter between shapes comes from
#
# The deviation of a shape is the mean over its budgets and seeds of the residual from the block model, with the effect of
# the shape. If shapes deviate because their integers miss the rule of the family, the deviation should follow the ratio
# d_ff / d_model, the aspect ratio relative to that of the family, or the number of layers.

# %%
one_per_shape = []
for (family, shape), rows in report.table.dropna(subset=["residual"]).groupby(["family", "shape"]):
    dims = json.loads(str(rows["model_shape"].iloc[0]))
    one_per_shape.append(
        {
            "family": family,
            "shape": shape,
            "n": float(rows["n"].mean()),
            "deviation": float(rows["residual"].mean()),
            "seed_sd": float(rows.groupby("tokens")["loss_nats_per_token"].std().mean()),
            "ln(d_ff / d_model)": math.log(dims["d_ff"] / dims["d_model"]),
            "ln(aspect / family's)": math.log(
                dims["d_model"] / dims["n_layers"] / float(str(family).partition("_")[2])
            ),
            "one layer": float(dims["n_layers"] == 1),
        }
    )
shapes = pd.DataFrame(one_per_shape)
largest = shapes.reindex(shapes["deviation"].abs().sort_values(ascending=False).index).head(8)
show(
    [
        {
            "family": str(row["family"]),
            "shape": str(row["shape"]),
            "N": f"{row['n']:,.0f}",
            "deviation, nats": f"{row['deviation']:+.4f}",
            "d_ff / d_model": f"{math.exp(row['ln(d_ff / d_model)']):.2f}",
        }
        for _, row in largest.iterrows()
    ]
)

# %% [markdown]
# Spearman correlation of the deviation with each candidate, over shapes. The p values are not corrected: these are
# explanations to look into, not findings.

# %%
candidates = []
for name in ("ln(d_ff / d_model)", "ln(aspect / family's)", "one layer"):
    if shapes[name].nunique() > 1:
        found = stats.spearmanr(shapes[name], shapes["deviation"])
        candidates.append(
            {"candidate": name, "rho": f"{found.statistic:+.2f}", "p": f"{found.pvalue:.3f}"}
        )
show(candidates)

# %% [markdown]
# The share of the scatter that seeds explain: a shape with one seed deviates by its own effect and by the noise of its
# seed.

# %%
block = report.comparison.block
parts = {"shape (tau)": block.tau, "seed of a shape": block.trunk_sigma, "run (sigma)": block.sigma}
show(
    [
        {"part": name, "standard deviation, nats": "-" if value is None else f"{value:.4f}"}
        for name, value in parts.items()
    ]
)

# %% [markdown]
# ## Noise between seeds

# %%
if report.seed_noise_ratio is not None:
    ratio = report.seed_noise_ratio
    print(
        f"standard deviation between seeds, aspect_4 relative to aspect_32: {ratio.ratio:.2f} "
        f"[{ratio.interval[0]:.2f}, {ratio.interval[1]:.2f}], p {ratio.p:.3f}, {ratio.cells} families and sizes"
    )
show(
    [
        {
            "N": f"{one.n:,.0f}",
            "family": one.family,
            "seeds": str(one.seeds),
            "SD, nats [95% CI]": f"{one.sd:.4f} [{one.interval[0]:.4f}, {one.interval[1]:.4f}]",
        }
        for one in report.seed_noise
    ]
)

# %% [markdown]
# ## Cost
#
# Every budget has a learning rate of its own, so no trunks are shared. Hours are the sum of the wall times of single runs,
# two of which ran at a time, partly beside other work.

# %%
results = [json.loads(line) for line in (HERE / "results.jsonl").read_text().splitlines()]
flops = sum(row["flops"] for row in results)
hours = sum(row["wall_seconds"] for row in results) / 3600
print(f"{len(results)} runs, {flops:.3g} FLOPs, {hours:.1f} hours of runs")
