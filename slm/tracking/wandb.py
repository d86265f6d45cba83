"""The mirror of a run at Weights & Biases. The run directory is the truth; this is never in the way.

Whatever W&B does (absent package, no key, dead host, full disk), training goes on and a warning
says what was lost. An unreachable server costs seconds, then the mirror falls back to offline.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from slm.config.schema import TrackingConfig
from slm.tracking.run_dir import STEP, TOKENS

log = logging.getLogger(__name__)
INIT_TIMEOUT_SECONDS = 8.0
FINISH_TIMEOUT_SECONDS = 30.0  # what was not uploaded by then is in the folder, for `wandb sync`


class Mirror:
    """A W&B run, or nothing at all; calls that fail switch it off."""

    def __init__(self, run: Any = None):
        self._run = run

    @property
    def id(self) -> str | None:
        return None if self._run is None else self._run.id

    def log(self, row: Mapping[str, float]) -> None:
        self._attempt("log", lambda run: run.log(dict(row), step=int(row[STEP])))

    def summarize(self, values: Mapping[str, Any]) -> None:
        self._attempt("summary", lambda run: run.summary.update(dict(values)))

    def finish(self, exit_code: int) -> None:
        self._attempt("finish", lambda run: run.finish(exit_code=exit_code))

    def _attempt(self, what: str, call: Any) -> None:
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:
            log.warning("W&B %s failed, the mirror is off: %s", what, error)
            self._run = None


@contextmanager
def mirror(
    config: TrackingConfig,
    *,
    run_id: str,
    folder: Path,
    group: str,
    tags: list[str],
    content: Mapping[str, Any],
) -> Iterator[Mirror]:
    """A mirror for the time of one run, always finished, with exit code 1 if the run failed."""
    settings = {
        "project": config.project,
        "entity": config.entity,
        "id": run_id,
        "name": run_id,
        "group": group,
        "tags": tags,
        "config": dict(content),
        "dir": str(folder),
    }
    mirrored = Mirror(None if config.wandb == "disabled" else _start(config.wandb, settings))
    exit_code = 1
    try:
        yield mirrored
        exit_code = 0
    finally:
        mirrored.finish(exit_code)


def _start(mode: Literal["online", "offline"], settings: Mapping[str, Any]) -> Any:
    """A W&B run in this mode, else offline, else None."""
    try:
        import wandb
    except ImportError:
        log.warning("tracking.wandb=%s, but wandb is not installed; going on without", mode)
        return None
    attempts: list[Literal["online", "offline"]] = (
        [mode] if mode == "offline" else [mode, "offline"]
    )
    for tried in attempts:
        try:
            if tried == "online" and not wandb.login(prompt=False):
                raise PermissionError("no API key; use `wandb login`")
            quiet = wandb.Settings(
                silent=True,
                console="off",
                init_timeout=INIT_TIMEOUT_SECONDS,
                finish_timeout=FINISH_TIMEOUT_SECONDS,
            )
            # Offline, each resumption is a folder of its own; `wandb sync` joins them by their id.
            resume: Literal["allow"] | None = "allow" if tried == "online" else None
            run = wandb.init(mode=tried, resume=resume, settings=quiet, **settings)
            run.define_metric("*", step_metric=TOKENS)
            return run
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            instead = "offline" if tried == "online" else "without"
            log.warning("W&B could not start %s, going on %s: %s", tried, instead, reason)
    return None
