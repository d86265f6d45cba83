"""A Hydra sweeper that hands a launcher the unfinished cells of a study, and says what became of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from slm.errors import ConfigError, Problem, RunError
from slm.training.launch import check_alone

log = logging.getLogger("slm")
DECIDED_BY_STUDY = {
    "family": "study.families",
    "size": "study.sizes",
    "model": "study.models",
    "seed": "study.seeds",
    "budget": "study.tokens_per_param or study.tokens",
}
DONE = {"finished", "diverged"}  # a divergence is a result; rerun=true tries again

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="study",
    node={"_target_": f"{__name__}.StudySweeper"},
    provider="slm",
)


class StudySweeper(Sweeper):
    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Do what `action` asks for; without one, run the study and report on it."""
        from slm.app import Composer, config_of
        from slm.sweeps.study import cells_of, check_study

        check_alone(os.environ)
        _refuse_what_the_study_decides(arguments)
        config = config_of(self._compose(arguments))
        arguments = [a for a in arguments if not a.lstrip("+").startswith("action=")]
        check_study(config)
        cells = cells_of(config, Composer(lambda more: self._compose([*arguments, *more])))
        action = config.action
        if action == "plan":
            return _show(cells, plan=True)
        if action == "status":
            return _show(cells, plan=False)
        unfinished = None
        if action in (None, "run"):
            unfinished = self._run(cells, arguments, retry=config.rerun)
        if action in (None, "report") and (unfinished is None or _any_finished(cells)):
            _report(Path(config.runs_dir) / config.study.name, cells, config.study.analysis)
        if unfinished is not None:
            raise unfinished
        return None

    def _compose(self, overrides: list[str]) -> DictConfig:
        job = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(job):
            del job["hydra"]
        return job

    def _run(self, cells: Sequence[Any], arguments: list[str], *, retry: bool) -> Exception | None:
        """Launch what is not done; the error that says which cells failed, if any did."""
        from slm.sweeps.plan import design_warnings, totals
        from slm.sweeps.study import jobs_of

        todo = {id(cell) for cell in cells if retry or cell.run.state() not in DONE}
        log.info("%s; %d to run", totals(cells), len(todo))
        for warning in design_warnings(cells):
            log.info("%s", warning)
        # A trunk with a branch to do is handed over whole: its finished ones are passed over there.
        jobs = [job for job in jobs_of(cells) if any(id(cell) in todo for cell in job.cells)]
        if jobs:
            launched = [[*arguments, *job.overrides] for job in jobs]
            self.launcher.launch(launched, initial_job_idx=0)
        states = {cell.run.path: cell.run.state() for cell in cells}
        for path in (path for path, state in states.items() if state == "diverged"):
            log.warning("diverged: %s", path)
        failed = {path: state for path, state in states.items() if state not in DONE}
        if failed:
            lines = [f"  {state}: {path}" for path, state in failed.items()]
            return RunError(
                "\n".join([f"{len(failed)} of {len(cells)} cells did not finish:", *lines])
            )
        return None


def _any_finished(cells: Sequence[Any]) -> bool:
    return any(cell.run.state() == "finished" for cell in cells)


def _refuse_what_the_study_decides(arguments: list[str]) -> None:
    problems = []
    for override in OverridesParser.create().parse_overrides(arguments):
        key = str(override.key_or_group)
        given = (override.input_line or "").partition("=")[2]
        decided = DECIDED_BY_STUDY.get(key if key == "model" else key.partition(".")[0])
        if decided and not key.startswith("model."):
            fix = f"set {decided}"
            problems.append(Problem(key, given, "the study decides this for each cell", fix))
        elif override.is_sweep_override():
            problems.append(Problem(key, given, "a study makes its own cells", "give one value"))
    if problems:
        raise ConfigError(problems)


def _show(cells: Sequence[Any], *, plan: bool) -> None:
    from rich.console import Console

    from slm.sweeps.plan import cells_table, design_warnings, ladder_table, totals

    console = Console(width=None if Console().is_terminal else 160)
    if plan:
        console.print(ladder_table(cells))
    console.print(cells_table(cells))
    console.print(totals(cells))
    for warning in design_warnings(cells) if plan else ():
        console.print(warning, soft_wrap=True)


def _report(study: Path, cells: Sequence[Any], analysis: str) -> None:
    from analysis.khop import write_khop_report  # pandas and matplotlib take a second
    from analysis.lr_transfer import write_lr_report
    from analysis.report import write_report

    ids = {cell.spec.run_id for cell in cells}
    if analysis == "lr_transfer":
        write_lr_report(study, study / "report", ids)
    elif analysis == "khop":
        write_khop_report(study, study / "report", ids)
    else:
        write_report(study, study / "report", only=ids)
