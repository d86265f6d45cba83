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
# The runs of [PROTOCOL.md](PROTOCOL.md), which was written before them. This page writes [report.md](report.md), which has all
# tables, and adds the answer in words, the claims that it bears on, and what the protocol asks for beyond the report: where
# the scatter between shapes comes from, the noise between seeds, the cost of the learning rates, the controls, and the cost.

# %%
import json
import math
from pathlib import Path
from statistics import median

import pandas as pd
from IPython.display import Markdown
from scipy import stats

from analysis.compare.families import Comparison
from analysis.learning_rate.gate import load_audit
from analysis.learning_rate.tuning_cost import tuning_costs
from analysis.report.study_report import analyze_study
from analysis.report.write import markdown_table, write_report
from analysis.runs.load import load_runs
from analysis.runs.result_table import results_table
from slm.config.hydra import compose_study
from slm.studies.cells import jobs_of
from slm.studies.expand import cells_of
from slm.studies.rate_rule import RateRule
from slm.tracking.results_file import read_results

HERE = Path("analysis/examples/micro")
AUDIT = HERE / "lr_audit.json"
QUESTION = (
    "From 13 to 190 thousand parameters, is deep and thin better than wide and shallow, and does the "
    "advantage grow with size?"
)


def show(rows: list[dict[str, str]]) -> Markdown:
    """Return rows as a Markdown table."""
    return Markdown("\n".join(markdown_table(rows)) if rows else "no rows")


report = write_report(
    HERE / "results.jsonl", HERE, deep="aspect_4", wide="aspect_32", audit=AUDIT, question=QUESTION
)

# %% [markdown]
# ## The answer

# %%
comparison = report.comparison
block = comparison.block
assert block.level_ci is not None and block.d_alpha_ci is not None
assert report.power is not None and comparison.robustness is not None
smallest, largest = block.optima[0], block.optima[-1]
others = {(one.deep, one.wide): one for one in report.other_contrasts}
noise = {one["power"]: one for one in comparison.robustness.to_dict()["noise"]}


def optimum(one: dict[str, float]) -> str:
    """Return the best aspect ratio of a size with its interval."""
    return f"{one['best_aspect']:.1f} [{one['low']:.1f}, {one['high']:.1f}]"


print(sorted(noise))
print(report.power)

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
# ## Cost of the learning rates
#
# The audit estimates what the rule for the learning rate costs; its costs are subtracted from the losses, and the
# analysis is repeated.

# %%
audit_runs = results_table(list(read_results(HERE / "lr_audit.jsonl").values()))
rule = RateRule.of(compose_study(["study=micro"])[0])
audit_runs["used_lr"] = audit_runs["tokens"].map(rule.rate)
runs = load_runs(HERE / "results.jsonl")
costs = tuning_costs(runs.table, audit_runs)
losses = runs.table["loss_nats_per_token"] - costs
corrected = analyze_study(
    runs.table.assign(loss_nats_per_token=losses),
    deep="aspect_4",
    wide="aspect_32",
    audit=load_audit(AUDIT, runs),
    bootstrap=0,
)


def estimates(comparison: Comparison) -> dict[str, str]:
    """Return the primary estimates and the verdict as cells of a table."""
    one = comparison.block
    return {
        "loss difference, nats": one.level_text,
        "exponent difference": one.d_alpha_interval_text,
        "verdict": comparison.verdict.word,
    }


print(f"estimated costs: {costs.min():.4f} to {costs.max():.4f} nats/token")
show(
    [
        {"losses": "as measured", **estimates(report.comparison)},
        {"losses": "without the estimated cost", **estimates(corrected.comparison)},
    ]
)

# %% [markdown]
# ## A size that is left out
#
# Size 340k is not part of the study (PROTOCOL, change of 2026-11-30), but its five runs at the shortest budget are finished
# ([extension.jsonl](extension.jsonl)). The joint law of the other sizes predicts them.

# %%
extended = pd.concat([runs.table, load_runs(HERE / "extension.jsonl").table], ignore_index=True)
predicted = analyze_study(
    extended, deep="aspect_4", wide="aspect_32", bootstrap=0
).comparison.hold_out
print(*predicted.reasons, sep="\n")
show(predicted.rows())

# %% [markdown]
# ## Controls

# %%
negative = json.loads(Path("analysis/examples/aa/results.json").read_text())
positive = json.loads(Path("analysis/examples/khop/results.json").read_text())
block = negative["comparison"]["block"]
show(
    [
        {
            "control": "`study=aa`: one family under two names",
            "must be": "no difference",
            "found": f"`{negative['comparison']['verdict']['word']}`: {block['level']:+.4f} nats/token "
            f"[{block['level_ci'][0]:+.4f}, {block['level_ci'][1]:+.4f}], p {block['p_level']:.2f}",
        },
        {
            "control": "`study=khop`: a task that needs depth",
            "must be": "deep better",
            "found": positive["verdict"],
        },
    ]
)

# %% [markdown]
# ## Cost
#
# Every budget has a learning rate of its own, so no trunks are shared. Two runs of one thread ran at a time, on two cores.

# %%
results = [json.loads(line) for line in (HERE / "results.jsonl").read_text().splitlines()]
flops = sum(row["flops"] for row in results)
hours = sum(row["wall_seconds"] for row in results) / 3600
with_one_rate = ["study=micro", "study.lr_tokens_exponent=0", "study.lr_reference=null"]
with_trunks = sum(job.flops for job in jobs_of(cells_of(*compose_study(with_one_rate))))
print(f"{len(results)} runs, {flops:.3g} FLOPs, {hours:.1f} core-hours.")
print(
    f"With one learning rate, budgets would share trunks: {with_trunks:.3g} FLOPs for the whole study."
)

# %% [markdown]
# What running two at a time saved: the training time of the same runs one after another, by the throughput of each shape
# alone on the machine (`python -m slm speed study=micro`). Half of the core-hours is the time on two cores; it includes
# validation.

# %%
speeds = json.loads((HERE / "speed.json").read_text())["speeds"]
alone = {
    json.dumps(one["shape"], sort_keys=True): median(one["train_tokens_per_second"])
    for one in speeds
}
alone_seconds = sum(
    row["tokens"] / alone[json.dumps(row["shape"], sort_keys=True)] for row in results
)
print(f"{alone_seconds / 3600:.1f} hours one after another, {hours / 2:.1f} hours two at a time")
