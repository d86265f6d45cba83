"""A report's tables: rows of text, for HTML, Markdown and the console alike."""

from __future__ import annotations

import math

from analysis.formatting import power_of_ten, short_count
from analysis.report.study_report import Answer
from analysis.report.text import alpha_text, difference_text, interval, number, p_text

Rows = list[dict[str, str]]


def pair_rows(answer: Answer) -> Rows:
    """A row a pair of shapes at one token count."""
    matched = answer.comparison.matched
    if matched is None:
        return []
    return [
        {
            "tokens_per_param": f"{row['tokens_per_param']:g}",
            "size": f"{row['size']:,.0f}",
            "tokens": f"{row['tokens']:,.0f}",
            "FLOPs": f"{row['flops']:.3g}",
            "mismatch": f"{row['flops_mismatch']:+.1%}",
            matched.deep: f"{row['loss_nats_per_token_deep']:.4f}",
            matched.wide: f"{row['loss_nats_per_token_wide']:.4f}",
            "difference": f"{row['difference']:+.4f}",
            "at equal FLOPs": f"{row['difference_at_equal_flops']:+.4f}",
        }
        for row in matched.pairs.to_dict(orient="records")
    ]


def summary_rows(answer: Answer) -> Rows:
    """A row a token budget."""
    matched = answer.comparison.matched
    if matched is None:
        return []
    return [
        {
            "tokens_per_param": f"{row['tokens_per_param']:g}",
            "pairs": str(int(row["pairs"])),
            "deep lower in": str(int(row["deep_lower"])),
            "mean [95%]": interval(row["mean"], row["mean_low"], row["mean_high"]),
            "sd over pairs": number(row["sd"]),
            "at the largest FLOPs [95%]": interval(
                row["largest"], row["largest_low"], row["largest_high"]
            ),
            "p (Holm)": p_text(row["largest_p_holm"]),
        }
        for row in matched.summary.to_dict(orient="records")
    ]


def exponent_rows(answer: Answer) -> Rows:
    """A row a definition of N; no bare number where a fit is refused or not identified."""
    found = answer.comparison
    rows = []
    for name, one in found.by_definition.items():
        told = one.status != "UNIDENTIFIED"
        permuted = None if one.permutation is None else one.permutation.p
        rows.append(
            {
                "N": name,
                "status": one.status,
                **{
                    f"alpha {family} [95%]": alpha_text(one, family)
                    for family in dict.fromkeys((found.deep, found.wide))
                },
                "difference [95%]": difference_text(one) if not one.refused else "refused",
                "p": p_text(one.p if told else None),
                "permutation p": p_text(permuted if told else None),
            }
        )
    return rows


def delta_rows(answer: Answer) -> Rows:
    """Sensitivity to the threshold of Huber's loss; empty where there is no estimate to be sensitive."""
    found = answer.comparison
    fit = found.exponents.fit
    if fit is None or found.status not in ("OK", "WEAK"):
        return []
    pair = (found.deep, found.wide)
    rows = []
    for delta, values in fit.by_delta.items():
        alphas = [values[f"alpha[{name}]"] for name in pair]
        rows.append(
            {
                "Huber's delta": "least squares" if math.isinf(delta) else f"{delta:g}",
                "E": f"{values['E']:.4f}",
                **{f"alpha {name}": f"{a:.4f}" for name, a in zip(pair, alphas, strict=True)},
                "difference": f"{alphas[0] - alphas[1]:+.4f}",
                "beta": f"{values['beta']:.4f}",
            }
        )
    return rows


def power_rows(answer: Answer) -> Rows:
    """What a study such as this one can find."""
    power = answer.power
    if power is None:
        return []
    effects = (0.01, 0.02, 0.05)
    rows = []
    if power.se_exponent is not None and power.power_t is not None:
        rows.append(
            {
                "estimate": "difference of exponents, t test",
                "SE": number(power.se_exponent),
                "found with 80%": number(power.mde80_exponent),
                **{f"power at {e:g}": f"{power.power_t[e]:.0%}" for e in effects},
            }
        )
    if power.power_verdict is not None:
        verdict = power.power_verdict
        rows.append(
            {
                "estimate": "... by the whole verdict, simulated",
                "SE": "",
                "found with 80%": "",
                **{f"power at {e:g}": f"{verdict[e]:.0%}" for e in effects},
            }
        )
    if power.se_difference is not None:
        rows.append(
            {
                "estimate": "loss at the largest FLOPs, nats per token",
                "SE": number(power.se_difference),
                "found with 80%": number(power.mde80_difference),
                **({f"power at {e:g}": "" for e in effects} if rows else {}),
            }
        )
    return rows


def extension_rows(answer: Answer) -> Rows:
    """What more runs of one kind would make it possible to find, and what they cost."""
    power = answer.power
    if power is None or not answer.extensions:
        return []
    spent = float(answer.table["flops"].sum())
    here = {
        "add": "nothing (as it is)",
        "runs": "",
        "FLOPs": "",
        "of those spent": "",
        "exponents found with 80%": number(power.mde80_exponent),
        "loss found with 80%, nats": number(power.mde80_difference),
    }
    return [
        here,
        *(
            {
                "add": one.name,
                "runs": f"+{one.runs}",
                "FLOPs": power_of_ten(one.flops),
                "of those spent": f"{one.flops / spent:.2g}x",
                "exponents found with 80%": number(one.mde80_exponent),
                "loss found with 80%, nats": number(one.mde80_difference),
            }
            for one in answer.extensions
        ),
    ]


def next_rows(answer: Answer) -> Rows:
    """Single runs, the one that lowers the standard error most per FLOP first."""
    return [
        {
            "family": run.family,
            "N_flop": short_count(
                run.flops / run.tokens / 6
            ),
            "what": run.shape if run.seed else f"new shape, {run.rung}",
            "tokens": short_count(run.tokens),
            "seed": str(run.seed),
            "FLOPs": power_of_ten(run.flops),
            "SE of the difference then": number(run.se_exponent, digits=5),
        }
        for run in answer.next_runs
    ]  # fmt: skip


def hold_out_rows(answer: Answer) -> Rows:
    return [
        {
            "family": cell.family,
            "N": short_count(cell.n),
            "tokens": short_count(cell.tokens),
            "observed": f"{cell.observed:.4f}",
            "predicted [95%]": interval(cell.predicted, cell.low, cell.high, signed=False),
            "error, nats": f"{cell.error_nats:+.4f}",
            "error": f"{cell.error_percent:+.2f}%",
            "inside": "yes" if cell.inside else "NO",
        }
        for cell in answer.comparison.hold_out.cells
    ]


def audit_rows(answer: Answer) -> Rows:
    audit = answer.comparison.audit
    if audit is None:
        return []
    if not audit.shapes:
        return [
            {
                "family": name,
                "audit": f"FAILED: {audit.failed[name]}" if name in audit.failed else "passed",
            }
            for name in audit.families
        ]
    return [
        {
            "family": one.family,
            "shape": one.shape,
            "best rate": f"{one.best_lr:.2e}" + ("" if one.interior else " (edge of the grid)"),
            "the rate used costs, nats": number(one.penalty),
            "twice off costs, nats": number(one.cost_of_two),
        }
        for one in audit.shapes
    ]


def shape_rows(answer: Answer) -> Rows:
    """What went in, a row a family."""
    rows = []
    for name in answer.families:
        own = answer.table[answer.table["family"] == name]
        ratio = own["tokens"] / own["n"]
        row = {
            "family": name,
            "runs": str(len(own)),
            "sizes": str(own["shape"].nunique()),
            "N": f"{short_count(own['n'].min())} to {short_count(own['n'].max())}",
            "tokens_per_param": f"{ratio.min():.3g} to {ratio.max():.3g}",
            "seeds": str(own["seed"].nunique()),
        }
        if "aspect_ratio" in own:
            aspect = own["aspect_ratio"]
            row["d_model / n_layers"] = f"{aspect.min():.3g} to {aspect.max():.3g}"
        if "tokens_per_second" in own:
            row["tokens/s, median"] = f"{own['tokens_per_second'].median():,.0f}"
        rows.append(row)
    return rows


def run_rows(answer: Answer) -> Rows:
    """Every run."""
    return [
        {
            "run": str(row["run_id"]),
            "family": row["family"],
            "shape": row["shape"],
            "N": short_count(row["n"]),
            "tokens": short_count(row["tokens"]),
            "FLOPs": power_of_ten(row["flops"], 3),
            "seed": str(row["seed"]),
            "loss": f"{row['loss_nats_per_token']:.4f}",
            "residual": "-" if math.isnan(row["residual"]) else f"{row['residual']:+.2%}",
        }
        for row in answer.table.to_dict("records")
    ]
