"""Mirror of a run at Weights & Biases. The run directory is the primary record.

No failure of W&B (missing package or API key, unreachable host, full disk) stops training; each is logged as
a warning. An unreachable server takes seconds to detect, then the mirror falls back to offline mode.
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
FINISH_TIMEOUT_SECONDS = 30.0  # later, `wandb sync` uploads the rest from the run directory


class Mirror:
    """A W&B run, or a no-op without one; the first failing call disables it."""

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

    def _attempt(self, operation: str, call: Any) -> None:
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:
            log.warning("W&B %s failed; training continues without W&B: %s", operation, error)
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
    """Yield the mirror of one run and always finish it, with exit code 1 if the run raised an error."""
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


def _start(mode: Literal["auto", "online", "offline"], settings: Mapping[str, Any]) -> Any:
    """Start a W&B run in this mode, else offline; None if both fail."""
    try:
        import wandb
    except ImportError:
        log.warning(
            "tracking.wandb=%s, but wandb is not installed; continuing without it (pip install wandb)",
            mode,
        )
        return None
    attempts: list[Literal["online", "offline"]] = (
        ["offline"] if mode == "offline" else ["online", "offline"]
    )
    for attempt in attempts:
        try:
            if attempt == "online" and not wandb.login(prompt=False):
                raise PermissionError("no API key; run `wandb login`")
            quiet = wandb.Settings(
                silent=True,
                console="off",
                init_timeout=INIT_TIMEOUT_SECONDS,
                finish_timeout=FINISH_TIMEOUT_SECONDS,
            )
            # Offline, a resumed run writes a new folder; `wandb sync` merges the folders by run id.
            resume: Literal["allow"] | None = "allow" if attempt == "online" else None
            run = wandb.init(mode=attempt, resume=resume, settings=quiet, **settings)
            run.define_metric("*", step_metric=TOKENS)
            return run
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            fallback = "offline" if attempt == "online" else "without W&B"
            log.warning("W&B could not start %s; continuing %s: %s", attempt, fallback, reason)
    return None
