"""The W&B report of a study: verdict, charts of the report, losses, failures."""

from __future__ import annotations

from typing import Any

from analysis.study_actions.dashboard.content import IMAGE, Content
from analysis.study_actions.dashboard.workspace import COLUMNS, loss_panels

TRAIN, REPORT = "train", "report"  # job types of W&B runs


def build_report(content: Content, project: str, entity: str) -> Any:
    """Return the report; its run sets name no project, so they refer to the project of the report."""
    import wandb_workspaces.reports.v2 as wr

    charts = [
        wr.MediaBrowser(
            title=key.removeprefix(IMAGE),
            media_keys=[key],
            num_columns=1,
            layout=wr.Layout(w=12, h=12),
        )
        for key in content.images
    ]
    question = content.cells[0].spec.config.study.question
    return wr.Report(
        entity=entity,
        project=project,
        title=report_title(content),
        description=content.headline,
        width="fluid",
        blocks=[
            *([wr.BlockQuote(text=question)] if question else []),
            wr.MarkdownBlock(text=content.verdict),
            *([wr.H2(text="Charts"), _grid(_runset(content, REPORT), charts)] if charts else []),
            wr.H2(text="Losses"),
            *([wr.MarkdownBlock(text=content.losses)] if content.losses else []),
            _grid(_runset(content, TRAIN), loss_panels(content), _colours(content)),
            wr.H2(text="Failures and divergences"),
            wr.MarkdownBlock(text=content.failures()),
        ],
    )


def report_title(content: Content) -> str:
    return f"Report of study {content.study}"


def _grid(runset: Any, panels: list[Any], colours: dict[Any, str] | None = None) -> Any:
    import wandb_workspaces.reports.v2 as wr

    return wr.PanelGrid(runsets=[runset], panels=panels, custom_run_colors=colours or {})


def _runset(content: Content, job_type: str) -> Any:
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    group = expr.Metric("Group") == content.study
    is_report = job_type == REPORT
    return wr.Runset(
        name=job_type,
        filters=[group, expr.Metric("JobType") == job_type],
        groupby=[] if is_report else [f"config.{key}" for key in content.group_keys],
        pinned_columns=[] if is_report else list(COLUMNS),
    )


def _colours(content: Content) -> dict[Any, str]:
    """Return the colour of each group of runs."""
    import wandb_workspaces.reports.v2 as wr

    return {
        wr.RunsetGroup(
            runset_name=TRAIN,
            keys=tuple(
                wr.RunsetGroupKey(key=wr.Config(key), value=value)
                for key, value in zip(content.group_keys, path, strict=False)
            ),
        ): colour
        for path, colour in content.group_colours()
    }
