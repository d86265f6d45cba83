"""Hydra sweeper of sweep.py: plans a study, launches its unfinished cells, and reports on them."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.slm_study._launcher import compose_job, found_in_use
from slm.errors import ConfigError, DataError, Problem, RunError
from slm.training.distributed.rank import check_single_process

log = logging.getLogger("slm")
KEYS_SET_BY_STUDY = {
    "family": "study.families or study.aspect_ratios",
    "size": "study.sizes",
    "model": "study.models",
    "seed": "study.seeds",
    "budget": "study.tokens_per_param, study.tokens or study.flops",
}

# Actions that train nothing: MODULE:FUNCTION, imported when it is called with the cells of the study
ACTIONS = {
    "plan": "analysis.study_actions.plan:show_plan",
    "status": "slm.studies.status:print_status",
    "watch": "analysis.study_actions.watch.server:watch_study",
    "dashboard": "analysis.study_actions.dashboard.save:save_dashboard",
    "sync": "slm.studies.sync:sync_study",
}


ON_THIS_MACHINE = {"local", "basic"}  # launchers


class StudySweeper(Sweeper):
    """Sweeper that sends `max_batch_size` jobs at a time to the launcher.

    None means all jobs at once, or one at a time with the basic launcher.
    """

    def __init__(self, max_batch_size: int | None = None):
        self.max_batch_size = max_batch_size

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the requested `action`; without one, run the study and write the report."""
        from slm.config.hydra import load_composed_config
        from slm.studies.cells import check_not_all_diverged
        from slm.studies.checks import check_study
        from slm.studies.preparation import prepare_corpora

        check_single_process(os.environ)
        _check_overrides(arguments)
        config = load_composed_config(self._compose(arguments))
        self.arguments = [a for a in arguments if not a.lstrip("+").startswith("action=")]
        check_study(config)
        action = config.action
        cells = self._cells(config)
        if action in ACTIONS:
            return resolve_name(ACTIONS[action])(cells)
        if action == "design":
            from analysis.study_actions.design import show_designs

            option = str(self.config.hydra.runtime.choices["study"])
            return show_designs(config, cells, option, self.arguments)
        if action == "collect":
            return _collect_results(config, cells)
        error = None
        if action in (None, "run"):
            _check_design(cells)
            if self._launcher_name in ON_THIS_MACHINE:
                prepare_corpora(cells)
            if config.study.lr_policy == "tuned":
                self._tune(config)
                cells = self._cells(config)
            error = self._run(cells)
        if action == "report" or (action is None and any(c.state == "finished" for c in cells)):
            from analysis.study_actions.report import write_report

            try:
                write_report(cells)
            except DataError as problem:
                if error is None:
                    raise
                log.error("%s", problem)  # the failed cells are the cause
        if error is not None:
            raise error
        check_not_all_diverged(cells)
        return None

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        return compose_job(self.hydra_context, self.config, overrides)

    def _composer(self) -> Any:
        from slm.config.hydra import Composer

        return Composer(lambda overrides: self._compose([*self.arguments, *overrides]))

    def _cells(self, config: Any) -> list[Any]:
        from slm.studies.expand import cells_of
        from slm.studies.lr_tuning import known_rates

        rates = known_rates(config) if config.study.lr_policy == "tuned" else None
        return cells_of(config, self._composer(), recorded=_load_recorded(config), rates=rates)

    def _tune(self, config: Any) -> None:
        """Tune the learning rate of each shape, before the cells that use it run."""
        from slm.studies.expand import arms_of
        from slm.studies.lr_tuning import tune

        tune(list(arms_of(config, self._composer())), _load_recorded(config), self._run_cells)

    def _run_cells(self, cells: Sequence[Any]) -> None:
        from slm.studies.scheduler import run_study

        study = cells[0].spec.config.study
        run_study(
            cells,
            self._launch,
            batch=self._batch,
            rerun=cells[0].spec.config.rerun,
            retry_failed=study.retry_failed,
            max_failures=study.max_failures,
        )

    def _run(self, cells: Sequence[Any]) -> Exception | None:
        """Run the unfinished cells; return an error that lists the failed cells, or None."""
        from slm.studies.plan_tables import design_warnings, format_totals
        from slm.studies.scheduler import format_remaining

        config = cells[0].spec.config
        remaining = format_remaining(cells, config.rerun, config.study.retry_failed)
        log.info("%s; %s", format_totals(cells), remaining)
        for warning in design_warnings(cells):
            log.info("%s", warning)
        try:
            self._run_cells(cells)
        except RunError as error:
            return error
        return None

    def _launch(self, jobs: Sequence[Any]) -> list[Any]:
        """Execute the jobs; return those of which another process held a run."""
        overrides = [[*self.arguments, *job.overrides] for job in jobs]
        returns = self.launcher.launch(overrides, initial_job_idx=0)
        return [job for job, done in zip(jobs, returns, strict=True) if found_in_use(done)]

    @property
    def _batch(self) -> int | None:
        if self.max_batch_size is not None:
            return self.max_batch_size
        return 1 if self._launcher_name == "basic" else None

    @property
    def _launcher_name(self) -> str:
        return str(self.config.hydra.runtime.choices["hydra/launcher"])


def _check_design(cells: Sequence[Any]) -> None:
    """Refuse a design that cannot estimate `study.claim`, unless no cell is to be trained.

    Raises:
        DesignRefused: listing the reasons.
        DataError: if study.lr_audit is missing or belongs to another recipe.
    """
    from analysis.learning_rate.gate import audit_of_study
    from analysis.study_actions.plan import compute_power, list_refusals, refusal_message
    from slm.errors import DesignRefused

    audit_of_study(cells)  # raises the DataError
    if not cells[0].spec.config.rerun and all(cell.is_done for cell in cells):
        return
    refusals = list_refusals(cells, compute_power(cells))
    if refusals:
        lines = [f"REFUSED {line}" for line in refusals]
        raise DesignRefused("\n".join([*lines, refusal_message(cells[0].spec.config)]))


def _load_recorded(config: Any) -> dict[str, Any]:
    """Read the results of `study.results` by run id; with `rerun` none counts, so that all cells are trained."""
    from slm.tracking.results_file import read_results

    if config.study.results is None or config.rerun:
        return {}
    return read_results(Path(config.study.results))


def _collect_results(config: Any, cells: Sequence[Any]) -> None:
    """Add the results of finished runs to the file `study.results`, and their configurations to the file beside it.

    With `rerun` they replace the recorded results of the same runs.

    Raises:
        ConfigError: if study.results is null.
    """
    from slm.tracking.configs_file import configs_path, describe_run, read_configs, write_configs
    from slm.tracking.results_file import read_results, write_results

    if config.study.results is None:
        fix = f"set it, for example study.results=results/{config.study.name}.jsonl"
        rule = "is needed for action=collect, which writes this file"
        raise ConfigError([Problem("study.results", None, rule, fix)])
    path = Path(config.study.results)
    recorded = read_results(path)
    finished = {}
    for cell in cells:
        if cell.run.state() == "finished":
            if cell.result is None:
                log.warning("left out, without a readable result.json: %s", cell.run.path)
            else:
                finished[cell.spec.run_id] = cell.result
    new = {id_: result for id_, result in finished.items() if config.rerun or id_ not in recorded}
    write_results(path, {**recorded, **new})
    described = {
        cell.spec.run_id: describe_run(cell.run, cell.spec)
        for cell in cells
        if cell.spec.run_id in recorded or cell.spec.run_id in new
    }
    kept = {id_: tree for id_, tree in read_configs(configs_path(path)).items() if id_ not in new}
    write_configs(configs_path(path), {**described, **kept}, path)
    replaced = sum(id_ in recorded for id_ in new)
    added = len(new) - replaced
    more = f", {replaced} replaced" if replaced else ""
    log.info("%s: %d results, %d of them new%s", path, len(recorded) + added, added, more)


def _check_overrides(arguments: list[str]) -> None:
    """Raise a ConfigError for overrides of keys that the study sets, and for several values of a key."""
    problems = []
    for override in OverridesParser.create().parse_overrides(arguments):
        key = str(override.key_or_group)
        value = (override.input_line or "").partition("=")[2]
        study_key = KEYS_SET_BY_STUDY.get(key if key == "model" else key.partition(".")[0])
        if study_key and not key.startswith("model."):
            rule = "is set by the study for each cell"
            problems.append(Problem(key, value, rule, f"set {study_key}"))
        elif override.is_sweep_override():
            rule = "the study defines its cells, so a key has one value"
            fix = f"give one value, or set 'study.grid={{{key}:[...]}}'"
            problems.append(Problem(key, value, rule, fix))
    if problems:
        raise ConfigError(problems)
