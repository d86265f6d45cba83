"""The W&B workspace of a study, as the object that `wandb-workspaces` saves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import wandb_workspaces.reports.v2 as wr
from wandb_workspaces import workspaces as ws

from analysis.study_actions.dashboard.content import Content
from slm.files import canonical_hash
from slm.tracking import run_dir as keys

FINAL_LOSS = "val_loss_nats_per_token"  # in the W&B summary, as in result.json
COLUMNS = [
    "run:displayName",
    "run:state",
    *(f"config:run.value.{fact}" for fact in ("family", "rung", "tokens_per_param", "seed")),
    f"summary:{FINAL_LOSS}",
]
IMAGE = "report/"  # prefix of the W&B keys of the report's charts
BY_FAMILY = {"groupby": wr.Config("run.family"), "groupby_rangefunc": "none"}


def build_workspace(content: Content, project: str, entity: str) -> Any:
    """Return the workspace; its name at W&B follows from the study, so that it is found again."""
    colours = {ws.GroupPath(*path): colour for path, colour in content.group_colours()}
    runs = {
        cell.spec.run_id: ws.RunSettings(color=content.colour(cell.family))
        for cell in content.cells
    }
    workspace = ws.Workspace(
        entity=entity,
        project=project,
        name=f"Study {content.study}",
        sections=[_section(name, panels) for name, panels in sections(content) if panels],
        settings=ws.WorkspaceSettings(x_axis=keys.TOKENS, max_runs=content.max_runs),
        runset_settings=ws.RunsetSettings(
            filters=[
                ws.Metric("Group") == content.study,
                ws.Config("run.recipe_id").isin(content.recipe_ids),
            ],
            groupby=[ws.Config(key) for key in content.group_keys],
            order=[ws.Ordering(ws.Metric("Name"))],
            group_colors=colours,
            run_settings=runs,
            pinned_columns=list(COLUMNS),
        ),
    )
    name = canonical_hash(content.study)[:11]
    workspace._internal_name = f"nw-{name}-v"  # the form of the names that the library makes
    workspace._internal_runset_id = name  # part of the keys of the group colours
    return workspace


def _section(name: str, panels: list[Any]) -> Any:
    """Return a section that shows all its panels, in up to three columns."""
    for index, panel in enumerate(panels):
        panel._id = canonical_hash([name, index])[:11]  # random in the library
    columns = min(3, len(panels))
    layout = ws.SectionLayoutSettings(columns=columns, rows=-(-len(panels) // columns))
    return ws.Section(name=name, panels=panels, is_open=True, layout_settings=layout)


def sections(content: Content) -> list[tuple[str, list[Any]]]:
    """Return the name and the panels of each section."""
    difference, report = [], images(content, content.images)
    if content.kind == "families":
        report = images(content, ["loss_against_flops", "exponent_difference"])
        text = content.losses or content.verdict
        difference = [*images(content, ["level"]), wr.MarkdownPanel(markdown=text)]
    return [
        ("Loss", loss_panels(content)),
        ("Paired difference by rung", difference),
        (
            "Exponents and verdict" if difference else "Report",
            [wr.MarkdownPanel(markdown=content.verdict), *report],
        ),
        ("Learning rates", _learning_rate_panels(content)),
        (
            "Throughput and MFU",
            [
                line(content, "Throughput (tokens/s)", keys.TOKENS_PER_SECOND),
                line(content, "MFU", keys.MFU),
                line(content, "Peak memory (bytes)", keys.PEAK_MEMORY),
            ],
        ),
        (
            "Gradient health",
            [
                line(content, "Gradient norm", keys.GRAD_NORM, log_y=True),
                lines(content, "Weight norm by tensor group", keys.WEIGHT_NORM),
                lines(content, "Update-to-weight ratio by tensor group", keys.UPDATE_RATIO),
                lines(content, "RMS of the residual stream by depth", keys.RESIDUAL_RMS),
            ],
        ),
        ("Failures and divergences", _failure_panels(content)),
    ]


def line(content: Content, title: str, metric: str, **options: Any) -> Any:
    """Return a line plot of a metric against tokens, one line per group of the run table."""
    settings = {"y": [metric], "x": keys.TOKENS, "log_x": True, **options}
    return wr.LinePlot(title=title, max_runs_to_show=content.max_runs, **settings)


def lines(content: Content, title: str, prefix: str) -> Any:
    """Return a line plot of all metrics with this prefix, as means of each family."""
    means = BY_FAMILY | {"groupby_aggfunc": "mean", "metric_regex": f"^{prefix}.*", "y": []}
    return line(content, title, "", log_y=True, **means)


def loss_panels(content: Content) -> list[Any]:
    lowest = BY_FAMILY | {"groupby_aggfunc": "min", "x": keys.FLOPS}
    nats, bits, train = keys.VAL_LOSS, keys.VAL_BITS_PER_BYTE, keys.TRAIN_LOSS
    panels = [
        line(content, "Lowest validation loss of each family (nats/token)", nats, **lowest),
        line(content, "Validation loss against FLOPs (nats/token)", nats, x=keys.FLOPS),
        line(content, "Validation loss against FLOPs (bits/byte)", bits, x=keys.FLOPS),
        line(content, "Validation loss against tokens (nats/token)", nats),
        line(content, "Validation loss against tokens (bits/byte)", bits),
        line(content, "Training loss against FLOPs (nats/token)", train, x=keys.FLOPS),
        line(content, "Training loss against tokens (nats/token)", train),
    ]
    if content.kind == "khop":
        panels.append(lines(content, "Error rate by number of hops", keys.VAL_ERROR))
    return panels


def images(content: Content, names: Iterable[str]) -> list[Any]:
    """Return a panel for each of these charts that exists; the run that contains the report has them."""
    return [
        wr.MediaBrowser(
            title=name,
            media_keys=[IMAGE + name],
            num_columns=1,
            layout=wr.Layout(w=12, h=12),  # in a report
        )
        for name in names
        if name in content.images
    ]


def _learning_rate_panels(content: Content) -> list[Any]:
    panels = [line(content, "Learning rate", keys.LR, log_x=False)]
    if "optimizer.lr" in content.group_keys:
        loss = wr.SummaryMetric(FINAL_LOSS)
        title = "Final validation loss against peak learning rate (nats/token)"
        panels.append(wr.ScatterPlot(title=title, x=wr.Config("optimizer.lr"), y=loss, log_x=True))
    if audit := content.lr_audit():
        panels.append(wr.MarkdownPanel(markdown=audit))
    return panels


def _failure_panels(content: Content) -> list[Any]:
    bars = wr.BarPlot(
        title="Training tokens by state of the run",
        metrics=[keys.TOKENS],
        groupby="State",
        groupby_aggfunc="sum",
        max_runs_to_show=content.max_runs,
    )
    return [wr.MarkdownPanel(markdown=content.failures()), bars]
