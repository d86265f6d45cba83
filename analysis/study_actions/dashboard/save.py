"""`action=dashboard`: write the workspace and the report of a study as files, and save them at W&B if it is reachable."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from analysis.study_actions.dashboard.content import Content, load_content, report_folder
from analysis.study_actions.dashboard.report import REPORT, build_report, report_title
from analysis.study_actions.dashboard.workspace import build_workspace
from slm.errors import RunError
from slm.files import write_json
from slm.studies.cells import Cell

log = logging.getLogger("slm")
PROBE_SECONDS = 3.0
NO_ENTITY = "ENTITY"  # the library needs one; the written files contain none


def save_dashboard(cells: Sequence[Cell]) -> None:
    """Write RUNS_DIR/STUDY/dashboard; if logged in to W&B, create or update the workspace and the report there.

    Raises:
        RunError: if the extra `dashboard` is not installed, or W&B refuses a request.
    """
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError:
        raise RunError(
            "action=dashboard needs wandb-workspaces; run pip install 'slm[dashboard]'"
        ) from None
    config = cells[0].spec.config
    folder = Path(config.runs_dir) / config.study.name / "dashboard"
    folder.mkdir(parents=True, exist_ok=True)
    content = load_content(cells, folder)
    write_files(content, folder)
    reason = why_offline()
    if reason is not None:
        log.info(
            "W&B is offline: %s. Written: %s (workspace.json, report.json, %d charts). To create the workspace and the "
            "report, run `wandb login` and this command again; upload the runs with python sweep.py study=%s action=sync",
            reason, folder, len(content.images), content.study,
        )  # fmt: skip
        return
    try:
        upload(content, folder)
    except Exception as error:  # the libraries raise many types
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(
            f"W&B did not save the dashboard of study {content.study}: {first}; check tracking.entity="
            f"{config.tracking.entity or 'null'} and tracking.project={config.tracking.project}, or use {folder}"
        ) from error


def write_files(content: Content, folder: Path) -> None:
    """Write the JSON that W&B stores for the workspace and for the report."""
    project = content.cells[0].spec.config.tracking.project
    for name, built in (
        ("workspace", build_workspace(content, project, NO_ENTITY)),
        ("report", build_report(content, project, NO_ENTITY)),
    ):
        text = built._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
        write_json(folder / f"{name}.json", json.loads(text))


def why_offline() -> str | None:
    """Return why W&B cannot be used now; None if it can."""
    import wandb

    settings = wandb.setup().settings
    if settings.mode != "online":
        return f"WANDB_MODE={settings.mode}"
    address = urlsplit(settings.base_url)
    try:
        port = address.port or {"http": 80, "https": 443}[address.scheme]
        socket.create_connection((str(address.hostname), port), PROBE_SECONDS).close()
        return None if wandb.login(prompt=False) else "not logged in"
    except OSError as error:
        return f"{settings.base_url} does not answer ({error})"
    except wandb.Error as error:
        return f"login failed ({error})"


def upload(content: Content, folder: Path) -> None:
    """Save report run, report and workspace at W&B; what exists is updated."""
    import wandb
    from wandb_workspaces.workspaces import internal

    tracking = content.cells[0].spec.config.tracking
    api = wandb.Api()
    entity, project = tracking.entity or api.default_entity, tracking.project
    if content.images:
        log_report_run(content, project, entity, folder)
    report = build_report(content, project, entity)
    report.id = _existing_report(api, f"{entity}/{project}", report_title(content))
    is_new = not report.id
    report.save()
    log.info("W&B report %s: %s", "created" if is_new else "updated", report.url)
    workspace = build_workspace(content, project, entity)
    name = internal._internal_name_to_url_query_str(workspace._internal_name)
    with suppress(ValueError):  # there is none yet
        workspace._internal_id = internal.get_view_dict(entity, project, name)["id"]
    is_new = not workspace._internal_id
    workspace.save()
    log.info("W&B workspace %s: %s", "created" if is_new else "updated", workspace.url)


def _existing_report(api: Any, path: str, title: str) -> str:
    """Return the id of the report with this title; empty if there is none."""
    try:
        return next((report.id for report in api.reports(path) if report.display_name == title), "")
    except ValueError:  # the project does not exist yet
        return ""


def log_report_run(content: Content, project: str, entity: str | None, folder: Path) -> None:
    """Log the charts and files of the study's report as one W&B run, which later calls continue."""
    import wandb

    run_id = f"{content.study}-report"
    with wandb.init(
        project=project,
        entity=entity,
        id=run_id,
        name=run_id,
        group=content.study,
        job_type=REPORT,
        config={"run": {"family": "report"}},
        resume="allow",
        dir=str(folder),
        settings=wandb.Settings(silent=True, console="off"),
    ) as run:
        run.log({key: wandb.Image(str(file)) for key, file in content.images.items()})
        artifact = wandb.Artifact(run_id, type="report")
        for file in sorted(report_folder(content.cells).iterdir()):
            artifact.add_file(str(file))
        run.log_artifact(artifact)
