"""The W&B report of a study: verdict, charts of the report, losses, failures."""

from __future__ import annotations

from typing import Any

import wandb_workspaces.reports.v2 as wr
from wandb_workspaces import expr

from analysis.runs.wandb import REPORT_JOB
from analysis.study_actions.dashboard.content import Content
from analysis.study_actions.dashboard.workspace import COLUMNS, images, loss_panels
from slm.tracking.wandb import JOB_TYPE


def build_report(content: Content, project: str, entity: str) -> Any:
    """Return the report; its run sets name no project, so they refer to the project of the report."""
    question = content.cells[0].spec.config.study.question
    charts = wr.PanelGrid(
        runsets=[_runset(content, REPORT_JOB)], panels=images(content, content.images)
    )
    curves = wr.PanelGrid(
        runsets=[
            _runset(
                content,
                JOB_TYPE,
                groupby=[f"config.{key}" for key in content.group_keys],
                pinned_columns=list(COLUMNS),
            )
        ],
        panels=loss_panels(content),
        custom_run_colors={
            _group(content, path): colour for path, colour in content.group_colours()
        },
    )
    return wr.Report(
        entity=entity,
        project=project,
        title=f"Report of study {content.study}",
        description=content.headline,
        width="fluid",
        blocks=[
            *([wr.BlockQuote(text=question)] if question else []),
            wr.MarkdownBlock(text=content.verdict),
            *([charts] if content.images else []),
            wr.H2(text="Losses"),
            wr.MarkdownBlock(text=content.losses),
            curves,
            wr.H2(text="Failures and divergences"),
            wr.MarkdownBlock(text=content.failures()),
        ],
    )


def _runset(content: Content, job_type: str, **options: Any) -> Any:
    filters = [
        expr.Metric("Group") == content.study,
        expr.Metric("JobType") == job_type,
        expr.Config("run.recipe_id").isin(content.recipe_ids),
    ]
    return wr.Runset(name=job_type, filters=filters, **options)


def _group(content: Content, path: tuple[str, ...]) -> Any:
    """Return the library's name of a group of runs."""
    pairs = zip(content.group_keys, path, strict=False)
    keys = [wr.RunsetGroupKey(key=wr.Config(key), value=value) for key, value in pairs]
    return wr.RunsetGroup(runset_name=JOB_TYPE, keys=tuple(keys))
