"""Sections of a report in their order, for HTML and Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from analysis.report import latency_text, tables, text
from analysis.report.study_report import StudyReport
from slm.summary import Rows

MAX_CELLS = 24  # rows of a loss table that is not folded


@dataclass(frozen=True)
class Table:
    """A table with its title; `folded`: shown on request in HTML. Tables of `all_runs` are in HTML only."""

    title: str
    rows: Rows
    folded: bool = False
    all_runs: bool = False


@dataclass(frozen=True)
class Section:
    """Sentences, names of figures, and tables. `folded`: shown on request in HTML."""

    name: str
    title: str
    lines: list[str]
    figures: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: bool = False


def sections(report: StudyReport) -> list[Section]:
    """Return the sections that have content."""
    return [
        *_losses(report),
        *_families(report),
        *_checks(report),
        *_secondary(report),
        *_runs(report),
    ]


def _losses(report: StudyReport) -> Iterator[Section]:
    """Yield the comparison at equal FLOPs and at equal time."""
    losses = tables.loss_rows(report)
    note = "Loss in nats per token, mean over seeds; * marks the lowest loss of a row"
    yield Section(
        "loss",
        "Loss by size and tokens" if report.comparison.block.refused else "Loss at equal FLOPs",
        [],
        ("loss_against_flops", "level"),
        (
            Table(note, losses, folded=len(losses) > MAX_CELLS),
            Table(
                "Compute multiplier by token budget, largest common size",
                tables.kappa_rows(report),
                folded=True,
            ),
        ),
    )
    if report.latency is not None:
        yield Section(
            "latency",
            "At equal latency and training time",
            latency_text.lines(report),
            ("pareto_latency", "pareto_memory", "pareto_flops"),
            (
                Table("Loss difference and multiplier", latency_text.rows(report)),
                Table("Measured time per token by size", latency_text.size_rows(report)),
                Table("Loss difference by time", latency_text.level_rows(report), folded=True),
                Table(
                    "Time multiplier by loss, the lowest common loss first",
                    latency_text.multiplier_rows(report),
                    folded=True,
                ),
            ),
        )


def _families(report: StudyReport) -> Iterator[Section]:
    """Yield contrast of the families, aspect ratio and exponents."""
    contrasts = tables.contrast_rows(report)
    yield Section(
        "contrast",
        "Contrast",
        text.contrast_lines(report),
        tables=(
            Table("Families", tables.family_rows(report)),
            Table("Other contrasts: block model, not adjusted, no verdicts", contrasts),
        ),
    )
    if report.comparison.block.is_curved:
        optima = Table("Best aspect ratio by size", tables.optimum_rows(report), folded=True)
        lines = [text.shape_line(report)]
        yield Section("shape", "Aspect ratio", lines, ("shape_curve",), (optima,))
    yield Section("exponent", "Exponents", text.exponent_lines(report), ("exponent_difference",))


def _checks(report: StudyReport) -> Iterator[Section]:
    """Yield robustness and power."""
    yield Section(
        "robustness",
        "Robustness",
        [*text.robustness_lines(report), f"Learning-rate audit: {text.audit_line(report)}"],
        ("influence_level", "influence_exponent", "residuals"),
        (
            Table("Assumptions and tests", tables.robustness_rows(report)),
            Table("Noise by family and size", tables.noise_rows(report), folded=True),
            Table("Noise between seeds", tables.seed_noise_rows(report), folded=True),
            Table("Learning-rate audit by shape", _audit_rows(report), folded=True),
        ),
    )
    if report.power is not None:
        power = report.power
        yield Section(
            "power",
            "Power of this design and of larger ones",
            text.power_lines(report),
            tables=(
                Table("Power", power.design.rows()),
                Table("Larger designs", power.extension_rows()),
                Table("Most informative additional runs per FLOP", power.next_rows(), folded=True),
            ),
        )


def _secondary(report: StudyReport) -> Iterator[Section]:
    """Yield joint law, hold-out and isoFLOP fits."""
    isoflop = [
        f"{fit.title()}, {family}; " + "; ".join(f"{key}: {value}" for key, value in fit.details())
        for family, fit in report.isoflop.items()
    ]
    yield Section(
        "secondary",
        "Secondary analyses: joint law, hold-out, isoFLOP",
        [*text.joint_lines(report), f"Hold-out: {text.hold_out_line(report)}", *isoflop],
        tables=(
            Table("Joint law by Huber delta", tables.delta_rows(report)),
            Table("Held-out cells", report.comparison.hold_out.rows()),
            *(Table(f"IsoFLOP, {family}", fit.rows()) for family, fit in report.isoflop.items()),
        ),
        folded=True,
    )


def _runs(report: StudyReport) -> Iterator[Section]:
    """Yield loss curves, limitations and the runs."""
    if report.loss_curves:
        yield Section("curves", "Loss curves", [], ("loss_curves", "loss_curves_flops"))
    yield Section("limitations", "Limitations", text.caveats(report))
    runs = Table(
        f"All {len(report.table)} runs", list(tables.run_rows(report)), folded=True, all_runs=True
    )
    yield Section("runs", "Runs in this report", text.run_lines(report), tables=(runs,))


def _audit_rows(report: StudyReport) -> Rows:
    audit = report.comparison.audit
    return [] if audit is None else audit.rows()
