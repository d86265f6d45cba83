"""Upload the runs of a study to W&B from their run directories."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from slm.errors import RunError
from slm.run.display_name import display_name
from slm.studies.cells import Cell
from slm.tracking.wandb import upload, uploaded_to, why_offline

log = logging.getLogger("slm")


def sync_study(cells: Sequence[Cell]) -> None:
    """Upload the runs of a study, the cheapest first; skip running runs, and runs that are unchanged since their upload.

    Raises:
        RunError: before the first upload if W&B is not reachable; at the end if an upload failed.
    """
    try:
        reason = why_offline()
    except ImportError:
        reason = "wandb is not installed (pip install wandb)"
    if reason is not None:
        raise RunError(f"nothing was uploaded to W&B: {reason}")
    counts: Counter[str] = Counter()
    urls = set()
    ordered = sorted(cells, key=lambda cell: cell.spec.flops)
    for number, cell in enumerate(ordered, 1):
        try:
            outcome, url = _sync(cell)
        except Exception as error:  # of W&B, which has many
            outcome, url = f"failed: {error}", ""
        counts[outcome.partition(":")[0]] += 1
        urls |= {url} - {""}
        log.info("[%d/%d] %s: %s", number, len(ordered), display_name(cell.spec), outcome)
    summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    log.info("%s", "; ".join([summary, *urls]))
    if counts["failed"]:
        raise RunError(f"{counts['failed']} uploads failed; action=sync repeats them")


def _sync(cell: Cell) -> tuple[str, str]:
    """Upload the run of a cell if necessary; return the outcome, and the project's URL if the run is there."""
    run = cell.run
    if not (run.path / "config.yaml").exists():
        if cell.recorded is not None:
            return "without run directory: its result is in study.results only", ""
        return "not started", ""
    state = run.state()
    if state == "running":
        return "running: upload it after its end", ""
    # Project and entity of this call, everything else as the run was trained
    config = replace(run.spec().config, tracking=cell.spec.config.tracking)
    spec = replace(cell.spec, config=config)
    url = uploaded_to(spec, run)
    if url is not None:
        return "unchanged", url
    return "uploaded", upload(spec, run)
