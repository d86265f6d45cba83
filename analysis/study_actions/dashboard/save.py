"""`action=dashboard`: write the workspace and the report of a study as files, and save them at W&B if it is online."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from analysis.runs.wandb import REPORT_JOB
from analysis.study_actions.dashboard.content import Content, load_content, report_folder
from slm.errors import RunError
from slm.files import write_json
from slm.studies.cells import Cell
from slm.tracking.wandb import why_offline

log = logging.getLogger("slm")
NO_ENTITY = "ENTITY"  # the library needs one; the written files do not contain it


def save_dashboard(cells: Sequence[Cell]) -> None:
    """Write RUNS_DIR/STUDY/dashboard; if logged in to W&B, create or update workspace and report there.

    Raises:
        RunError: if the extra `dashboard` is not installed, or W&B refuses a request.
    """
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError:
        fix = "run in the repository: pip install -e '.[dashboard]'"
        raise RunError(f"action=dashboard needs wandb-workspaces; {fix}") from None
    config = cells[0].spec.config
    tracking, study = config.tracking, config.study.name
    folder = Path(config.runs_dir) / study / "dashboard"
    folder.mkdir(parents=True, exist_ok=True)
    content = load_content(cells, folder)
    write_files(content, folder)
    reason = why_offline()
    if reason is not None:
        log.info("W&B is offline: %s; written instead: %s", reason, folder)
        log.info("to create workspace and report at W&B, repeat this command when W&B is online")
        log.info("to upload the runs, repeat it with action=sync")
        return
    try:
        upload(content, folder)
    except Exception as error:  # the libraries raise many types
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        fix = f"check tracking.entity={tracking.entity or 'null'} and tracking.project={tracking.project}"
        raise RunError(
            f"W&B did not save the dashboard of study {study}: {first}; {fix}"
        ) from error


def write_files(content: Content, folder: Path) -> None:
    """Write the JSON that W&B stores for the workspace and for the report."""
    from analysis.study_actions.dashboard.report import build_report
    from analysis.study_actions.dashboard.workspace import build_workspace

    project = content.cells[0].spec.config.tracking.project
    for name, build in (("workspace", build_workspace), ("report", build_report)):
        spec = build(content, project, NO_ENTITY)._to_model().spec
        text = spec.model_dump_json(by_alias=True, exclude_none=True)
        write_json(folder / f"{name}.json", json.loads(text))


def upload(content: Content, folder: Path) -> None:
    """Save the run with the report, the W&B report and the workspace; what exists is updated."""
    import wandb
    from wandb_workspaces.workspaces import internal

    from analysis.study_actions.dashboard.report import build_report
    from analysis.study_actions.dashboard.workspace import build_workspace

    tracking = content.cells[0].spec.config.tracking
    api = wandb.Api()
    project, entity = tracking.project, tracking.entity or api.default_entity
    if content.images:
        log_report_run(content, project, entity, folder)
    report = build_report(content, project, entity)
    workspace = build_workspace(content, project, entity)
    name = internal._internal_name_to_url_query_str(workspace._internal_name)
    with suppress(ValueError):  # the project or the view does not exist yet
        reports = api.reports(f"{entity}/{project}")
        report.id = next((one.id for one in reports if one.display_name == report.title), "")
        workspace._internal_id = internal.get_view_dict(entity, project, name)["id"]
    for kind, saved, is_new in (
        ("report", report, not report.id),
        ("workspace", workspace, not workspace._internal_id),
    ):
        saved.save()
        log.info("W&B %s %s: %s", kind, "created" if is_new else "updated", saved.url)


def log_report_run(content: Content, project: str, entity: str | None, folder: Path) -> None:
    """Log the charts and files of the study's report as one W&B run, which later calls continue."""
    import wandb

    from analysis.study_actions.dashboard.workspace import IMAGE

    run_id = f"{content.study}-report"
    options: dict[str, Any] = {"id": run_id, "name": run_id, "group": content.study}
    options |= {"job_type": REPORT_JOB, "dir": str(folder)}
    options["config"] = {"run": {"family": "report", "recipe_id": content.recipe_ids[0]}}
    quiet = wandb.Settings(silent=True, console="off")
    with wandb.init(
        project=project, entity=entity, resume="allow", settings=quiet, **options
    ) as run:
        run.log({IMAGE + name: wandb.Image(str(file)) for name, file in content.images.items()})
        artifact = wandb.Artifact(run_id, type="report")
        artifact.add_dir(str(report_folder(content.cells)))
        run.log_artifact(artifact)
