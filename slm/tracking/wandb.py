"""Mirror of a run at Weights & Biases. The run directory is the primary record.

Every start writes the complete W&B run: it replays the rows of metrics.jsonl up to the step that training continues
from, then logs the new rows. So nothing is lost if an earlier start was killed, and any run directory can be uploaded
later (`upload`). A start does not resume the W&B run but writes it again under the same id, which replaces the
earlier one.

No failure of W&B (missing package or API key, unreachable host, full disk) stops training; each is logged.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from slm.config.schema import StudyConfig
from slm.files import file_hash, read_json, write_json
from slm.formatting import short_count
from slm.run.display_name import display_name, size_label
from slm.run.facts import run_facts, saved_config
from slm.run.spec import RunSpec
from slm.tracking.result import RunResult
from slm.tracking.run_dir import STEP, TOKENS, RunDirectory

log = logging.getLogger(__name__)
PROBE_SECONDS = 3.0
INIT_TIMEOUT_SECONDS = 8.0
FINISH_TIMEOUT_SECONDS = 30.0
UPLOAD_TIMEOUT_SECONDS = 120.0
JOB_TYPE = "train"
METRIC_GROUPS = ("train", "optim", "weights", "residual", "val", "perf")
UPLOADED = "wandb/uploaded.json"


class Mirror:
    """A W&B run, or a no-op without one. After a failure, it logs nothing more and only tries to finish the run."""

    def __init__(self, run: Any = None, folder: Path = Path()):
        self._run = run
        self._folder = folder
        self.has_failed = False

    @property
    def id(self) -> str | None:
        return None if self._run is None else self._run.id

    def log(self, row: Mapping[str, float]) -> None:
        if not self.has_failed:
            self._attempt("log", lambda run: _log(run, row))

    def summarize(self, result: RunResult) -> None:
        if not self.has_failed:
            self._attempt("summary", lambda run: _summarize(run, result, self._folder))

    def finish(self, exit_code: int) -> None:
        self._attempt("finish", lambda run: run.finish(exit_code=exit_code))

    def _attempt(self, operation: str, call: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:
            self.has_failed = True
            log.warning("W&B %s failed; the run continues without W&B: %s", operation, error)


@contextmanager
def mirror(spec: RunSpec, run: RunDirectory, first_step: int) -> Iterator[Mirror]:
    """Yield the mirror of a run that continues after `first_step`, and finish it, with exit code 1 after an error."""
    wandb_run = _start(spec, run.path)
    mirrored = Mirror(wandb_run, run.path)
    for row in run.read_metrics():
        if row[STEP] <= first_step:
            mirrored.log(row)
    exit_code = 1
    try:
        yield mirrored
        exit_code = 0
    finally:
        mirrored.finish(exit_code)
        if wandb_run is not None and not wandb_run.offline:
            if mirrored.has_failed:
                log.warning(
                    "W&B lacks a part of the run; to upload it, %s", _how_to_upload(spec, run.path)
                )
            else:
                with suppress(OSError):  # without the record, action=sync uploads the run again
                    _record_upload(spec, run, wandb_run.project_url)


def upload(spec: RunSpec, run: RunDirectory) -> str:
    """Upload a run directory as one W&B run, which replaces an earlier one of the same id; return the project's URL."""
    result = run.result()
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        wandb_run = _init(spec, Path(folder), "online", UPLOAD_TIMEOUT_SECONDS)
        try:
            for row in run.read_metrics():
                _log(wandb_run, row)
            if result is not None:
                _summarize(wandb_run, result, run.path)
        finally:  # also after an error: the process would wait for an unfinished run at its end
            wandb_run.finish(exit_code=int(run.state() != "finished"))
    url = str(wandb_run.project_url)
    (run.path / UPLOADED).parent.mkdir(exist_ok=True)  # absent if the run was not mirrored
    _record_upload(spec, run, url)
    return url


def uploaded_to(spec: RunSpec, run: RunDirectory) -> str | None:
    """Return the URL of the project that has the present content of a run directory; None if it must be uploaded."""
    try:
        saved = dict(read_json(run.path / UPLOADED))
        url = str(saved.pop("url"))
    except (OSError, ValueError, TypeError, KeyError):  # missing or damaged
        return None
    return url if saved == _upload_record(spec, run) else None


def _record_upload(spec: RunSpec, run: RunDirectory, url: str) -> None:
    write_json(run.path / UPLOADED, {**_upload_record(spec, run), "url": url})


def _upload_record(spec: RunSpec, run: RunDirectory) -> dict[str, Any]:
    files = (run.path / "metrics.jsonl", run.path / "result.json")
    tracking = spec.config.tracking
    return {
        "host": _settings().base_url,
        "entity": tracking.entity,
        "project": tracking.project,
        **{path.name: file_hash(path) for path in files if path.exists()},
    }


def why_offline() -> str | None:
    """Return why runs cannot be uploaded from this machine now; None if they can.

    Takes at most `PROBE_SECONDS` if the host does not answer; sends nothing if no API key is configured.
    """
    from wandb.sdk.lib import wbauth  # no public function finds the key without sending it

    settings = _settings()
    if settings.mode != "online":
        return f"WANDB_MODE={settings.mode}"
    host = settings.base_url
    if wbauth.authenticate_session(host=host, source="slm", prompt=False, update_session=False):
        return _probe(host)
    return f"not logged in to W&B ({host}); run `wandb login`"


def _settings() -> Any:
    import wandb

    return wandb.setup().settings


def _probe(host: str) -> str | None:
    """Return why a W&B host does not answer a query within `PROBE_SECONDS`, name resolution included; None if it does."""
    reasons: list[str | None] = []
    query = json.dumps({"query": "query Viewer { viewer { id } }"}).encode()
    request = Request(f"{host}/graphql", query, {"Content-Type": "application/json"})

    def ask() -> None:
        try:
            with urlopen(request, timeout=PROBE_SECONDS) as answer:
                json.load(answer)
            reasons.append(None)
        except HTTPError as error:
            is_login_missing = error.code == HTTPStatus.UNAUTHORIZED  # the query has no API key
            reasons.append(None if is_login_missing else f"{host} answers with HTTP {error.code}")
        except (OSError, ValueError) as error:
            reasons.append(f"{host} does not answer ({error})")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return reasons[0] if reasons else f"{host} does not answer within {PROBE_SECONDS:.0f} s"


def _start(spec: RunSpec, folder: Path) -> Any:
    """Start a W&B run in the configured mode, else offline; None if both fail or W&B is disabled."""
    mode = spec.config.tracking.wandb
    if mode == "disabled" or os.environ.get("WANDB_MODE") == "disabled":
        return None
    try:
        if mode != "offline":
            run = _start_online(spec, folder)
            if run is not None:
                return run
        return _init(spec, folder, "offline", FINISH_TIMEOUT_SECONDS)
    except ImportError:
        log.warning("tracking.wandb=%s, but wandb is not installed (pip install wandb)", mode)
    except Exception as error:
        log.warning("W&B could not start; continuing without W&B: %s", _reason(error))
    return None


def _start_online(spec: RunSpec, folder: Path) -> Any:
    """Start an online W&B run; if that is impossible, log why and how to upload the run later, and return None."""
    import wandb

    reason = why_offline()
    if reason is None:
        try:
            run = _init(spec, folder, "online", FINISH_TIMEOUT_SECONDS)
            log.info("W&B run: %s", run.url)
            return run
        except Exception as error:
            reason = _reason(error)
            wandb.teardown()  # the failed run would occupy the id
    mode = spec.config.tracking.wandb
    log.log(
        logging.INFO if mode == "auto" else logging.WARNING,
        "tracking=%s, but W&B is offline: %s; to upload the run later, %s",
        mode,
        reason,
        _how_to_upload(spec, folder),
    )
    return None


def _how_to_upload(spec: RunSpec, folder: Path) -> str:
    name = spec.config.study.name
    if name == StudyConfig().name:  # a run outside of a study
        return f"run: wandb sync {folder}/wandb/*run-*"
    return f"repeat the sweep.py command of study {name} with action=sync"


def _reason(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


def _init(
    spec: RunSpec, folder: Path, mode: Literal["online", "offline"], finish_timeout: float
) -> Any:
    import wandb

    config = spec.config
    run = wandb.init(
        mode=mode,
        project=config.tracking.project,
        entity=config.tracking.entity,
        id=spec.run_id,
        name=display_name(spec),
        group=config.study.name,
        job_type=JOB_TYPE,
        tags=[
            config.family.name,
            f"rung {size_label(spec)}",
            f"budget {short_count(spec.tokens)}",
            f"seed {config.seed}",
        ],
        config={**saved_config(spec), "run": run_facts(spec)},
        dir=str(folder),
        reinit="create_new",  # never return a run that another job of this process left open
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_TIMEOUT_SECONDS,
            finish_timeout=finish_timeout,
            finish_timeout_raises=True,
        ),
    )
    for group in METRIC_GROUPS:
        run.define_metric(f"{group}/*", step_metric=TOKENS)
    return run


def _log(run: Any, row: Mapping[str, float]) -> None:
    """Log a row; W&B merges the rows of one step."""
    run.log(dict(row), step=int(row[STEP]))


def _summarize(run: Any, result: RunResult, folder: Path) -> None:
    """Write the result into the summary, and save config.yaml and result.json as the run's artifact."""
    import wandb

    run.summary.update(asdict(result))
    artifact = wandb.Artifact(f"run-{run.id}", type="run")
    for name in ("config.yaml", "result.json"):
        # Offline, W&B refers to the file in the run directory instead of copying it to the home directory.
        artifact.add_file(str(folder / name), policy="immutable", skip_cache=True)
    run.log_artifact(artifact)
