"""The W&B workspace of a study, as the object that `wandb-workspaces` saves."""

from __future__ import annotations

from typing import Any

from analysis.study_actions.dashboard.content import IMAGE, Content
from slm.files import canonical_hash
from slm.tracking.run_dir import (
    FLOPS,
    GRAD_NORM,
    LR,
    MFU,
    PEAK_MEMORY,
    RESIDUAL_RMS,
    TOKENS,
    TOKENS_PER_SECOND,
    TRAIN_LOSS,
    UPDATE_RATIO,
    VAL_BITS_PER_BYTE,
    VAL_ERROR,
    VAL_LOSS,
    WEIGHT_NORM,
)

FINAL_LOSS = "val_loss_nats_per_token"  # in the W&B summary, as in result.json
COLUMNS = [
    "run:displayName",
    "run:state",
    *(f"config:run.value.{fact}" for fact in ("family", "rung", "tokens_per_param", "seed")),
    f"summary:{FINAL_LOSS}",
]


def build_workspace(content: Content, project: str, entity: str) -> Any:
    """Return the workspace; its name and id at W&B follow from the study, so that saving it twice updates it."""
    from wandb_workspaces import workspaces as ws

    workspace = ws.Workspace(
        entity=entity,
        project=project,
        name=f"Study {content.study}",
        sections=[_section(*section) for section in sections(content)],
        settings=ws.WorkspaceSettings(x_axis=TOKENS, max_runs=content.max_runs),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("Group") == content.study],
            groupby=[ws.Config(key) for key in content.group_keys],
            order=[ws.Ordering(ws.Metric("Name"))],
            group_colors={ws.GroupPath(*path): colour for path, colour in content.group_colours()},
            run_settings={
                cell.spec.run_id: ws.RunSettings(color=content.colours[cell.family])
                for cell in content.cells
            },
            pinned_columns=list(COLUMNS),
        ),
    )
    name = canonical_hash(content.study)[:11]
    workspace._internal_name = f"nw-{name}-v"  # the form of the names that the library makes
    workspace._internal_runset_id = name  # part of the keys of the group colours
    return workspace


def _section(name: str, panels: list[Any]) -> Any:
    """Return a section of up to three columns in which all panels are visible."""
    from wandb_workspaces import workspaces as ws

    columns = min(3, len(panels))
    layout = ws.SectionLayoutSettings(columns=columns, rows=-(-len(panels) // columns))
    return ws.Section(name=name, panels=panels, is_open=True, layout_settings=layout)


def sections(content: Content) -> list[tuple[str, list[Any]]]:
    """Return the name and the panels of each section that has content."""
    found = [
        ("Loss", loss_panels(content)),
        ("Paired difference by rung", _difference_panels(content)),
        (
            "Exponents and verdict" if content.kind == "families" else "Report",
            _report_panels(content),
        ),
        ("Learning rates", _learning_rate_panels(content)),
        (
            "Throughput and MFU",
            [
                line(content, "Throughput (tokens/s)", TOKENS_PER_SECOND),
                line(content, "MFU", MFU),
                line(content, "Peak memory (bytes)", PEAK_MEMORY),
            ],
        ),
        (
            "Gradient health",
            [
                line(content, "Gradient norm", GRAD_NORM, log_y=True),
                lines(content, "Weight norm by tensor group", WEIGHT_NORM),
                lines(content, "Update-to-weight ratio by tensor group", UPDATE_RATIO, log_y=True),
                lines(content, "RMS of the residual stream by depth", RESIDUAL_RMS),
            ],
        ),
        ("Failures and divergences", _failure_panels(content)),
    ]
    return [(name, panels) for name, panels in found if panels]


def line(content: Content, title: str, metric: str, **options: Any) -> Any:
    """Return a line plot of a metric against tokens, one line per group of the run table."""
    import wandb_workspaces.reports.v2 as wr

    settings = {"x": TOKENS, "log_x": True, "max_runs_to_show": content.max_runs, **options}
    return wr.LinePlot(title=title, y=[metric], **settings)


def lines(content: Content, title: str, prefix: str, **options: Any) -> Any:
    """Return a line plot of all metrics with this prefix, the mean of each family."""
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(
        title=title,
        x=TOKENS,
        log_x=True,
        metric_regex=f"^{prefix}.*",
        groupby=wr.Config("run.family"),
        groupby_aggfunc="mean",
        groupby_rangefunc="none",
        max_runs_to_show=content.max_runs,
        **options,
    )


def loss_panels(content: Content) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    best: dict[str, Any] = {
        "groupby": wr.Config("run.family"),
        "groupby_aggfunc": "min",
        "groupby_rangefunc": "none",
    }
    panels = [
        line(content, "Lowest validation loss of a family at these FLOPs (nats/token)", VAL_LOSS, x=FLOPS, **best),
        line(content, "Validation loss against FLOPs (nats/token)", VAL_LOSS, x=FLOPS),
        line(content, "Validation loss against FLOPs (bits/byte)", VAL_BITS_PER_BYTE, x=FLOPS),
        line(content, "Validation loss against tokens (bits/byte)", VAL_BITS_PER_BYTE),
        line(content, "Training loss against FLOPs (nats/token)", TRAIN_LOSS, x=FLOPS),
        line(content, "Training loss against tokens (nats/token)", TRAIN_LOSS),
    ]  # fmt: skip
    if content.kind == "khop":
        panels.append(lines(content, "Error rate by number of hops", VAL_ERROR))
    return panels


def images(content: Content, *names: str) -> list[Any]:
    """Return a panel for each chart of the report that exists, of the run that contains the report."""
    import wandb_workspaces.reports.v2 as wr

    keys = [IMAGE + name for name in names if IMAGE + name in content.images]
    return [wr.MediaBrowser(title=key, media_keys=[key], num_columns=1) for key in keys]


def _difference_panels(content: Content) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    if content.kind != "families":
        return []
    text = content.losses or content.verdict
    return [*images(content, "level"), wr.MarkdownPanel(markdown=text)]


def _report_panels(content: Content) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    names = ["loss_against_flops", "exponent_difference"]
    if content.kind != "families":
        names = [key.removeprefix(IMAGE) for key in content.images]
    return [wr.MarkdownPanel(markdown=content.verdict), *images(content, *names)]


def _learning_rate_panels(content: Content) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    panels = [line(content, "Learning rate", LR, log_x=False)]
    if "optimizer.lr" in content.group_keys:
        panels.append(
            wr.ScatterPlot(
                title="Final validation loss against peak learning rate (nats/token)",
                x=wr.Config("optimizer.lr"),
                y=wr.SummaryMetric(FINAL_LOSS),
                log_x=True,
            )
        )
    if audit := content.lr_audit():
        panels.append(wr.MarkdownPanel(markdown=audit))
    return panels


def _failure_panels(content: Content) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.MarkdownPanel(markdown=content.failures()),
        wr.BarPlot(
            title="Training tokens by state of the run",
            metrics=[TOKENS],
            groupby="State",
            groupby_aggfunc="sum",
            max_runs_to_show=content.max_runs,
        ),
    ]
