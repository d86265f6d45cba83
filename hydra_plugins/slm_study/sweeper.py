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
    "budget": "study.tokens_per_param, study.tokens or study.flops",
}
ONE_PROCESS = "hydra._internal.core_plugins.basic_launcher"  # runs its jobs one after the other

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="study",
    node={"_target_": f"{__name__}.StudySweeper", "max_batch_size": None},
    provider="slm",
)


class StudySweeper(Sweeper):
    """`max_batch_size` jobs are handed over at a time; null is all, and one to the basic launcher."""

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
        """Do what `action` asks for; without one, run the study and report on it."""
        from slm.config.hydra import load_composed_config
        from slm.studies.checks import check_study

        check_alone(os.environ)
        _refuse_what_the_study_decides(arguments)
        config = load_composed_config(self._compose(arguments))
        self.arguments = [a for a in arguments if not a.lstrip("+").startswith("action=")]
        check_study(config)
        action = config.action
        cells = self._cells(config)
        if action == "plan":
            from analysis.study_actions.plan import show_plan

            return show_plan(cells)
        if action == "status":
            from slm.studies.status import show_status

            return show_status(cells)
        if action == "collect":
            return _collect(config, cells)
        failed = None
        if action in (None, "run"):
            _refuse_a_design_that_cannot(cells)
            if config.study.lr_policy == "tuned":
                self._tune(config)
                cells = self._cells(config)
            failed = self._run(cells)
        if action == "report" or (action is None and any(c.state == "finished" for c in cells)):
            from analysis.study_actions.report import write_report

            write_report(cells)
        if failed is not None:
            raise failed
        return None

    def _compose(self, overrides: list[str]) -> DictConfig:
        job = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(job):
            del job["hydra"]
        return job

    def _composer(self) -> Any:
        from slm.config.hydra import Composer

        return Composer(lambda more: self._compose([*self.arguments, *more]))

    def _cells(self, config: Any) -> list[Any]:
        from slm.studies.expand import cells_of
        from slm.studies.lr_tuning import known_rates

        rates = known_rates(config) if config.study.lr_policy == "tuned" else None
        return cells_of(config, self._composer(), recorded=_recorded(config), rates=rates)

    def _tune(self, config: Any) -> None:
        """Find the learning rate of each shape before any cell that needs it is run."""
        from slm.studies.expand import arms_of
        from slm.studies.lr_tuning import tune

        tune(list(arms_of(config, self._composer())), _recorded(config), self._run_to_end)

    def _run_to_end(self, cells: Sequence[Any]) -> None:
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
        """Launch what is not done; the error that says which cells failed, if any did."""
        from slm.studies.plan_tables import design_warnings, totals

        config = cells[0].spec.config
        left = sum(not cell.is_done for cell in cells)
        log.info("%s; %d to run", totals(cells), len(cells) if config.rerun else left)
        for warning in design_warnings(cells):
            log.info("%s", warning)
        try:
            self._run_to_end(cells)
        except RunError as error:
            return error
        return None

    def _launch(self, jobs: Sequence[Any]) -> None:
        launched = [[*self.arguments, *job.overrides] for job in jobs]
        self.launcher.launch(launched, initial_job_idx=0)

    @property
    def _batch(self) -> int | None:
        if self.max_batch_size is not None:
            return self.max_batch_size
        return 1 if type(self.launcher).__module__ == ONE_PROCESS else None


def _refuse_a_design_that_cannot(cells: Sequence[Any]) -> None:
    """Before compute is spent on it; a study that is done may be reported on whatever it is."""
    from analysis.learning_rate.gate import audit_of_study
    from analysis.study_actions.plan import power_of, refusals_of, refused
    from slm.errors import DesignRefused

    audit_of_study(cells)  # raises where it is not there
    if all(cell.is_done for cell in cells):
        return
    refusals = refusals_of(cells, power_of(cells))
    if refusals:
        said = [f"REFUSED {line}" for line in refusals]
        raise DesignRefused("\n".join([*said, refused(cells[0].spec.config)]))


def _recorded(config: Any) -> dict[str, Any]:
    from slm.tracking.results_file import read_results

    return {} if config.study.results is None else read_results(Path(config.study.results))


def _collect(config: Any, cells: Sequence[Any]) -> None:
    """Add what finished here to the study's file of results."""
    from slm.tracking.results_file import write_results

    if config.study.results is None:
        fix = f"for example study.results=results/{config.study.name}.jsonl"
        rule = "names the file that action=collect writes"
        raise ConfigError([Problem("study.results", None, rule, fix)])
    known = _recorded(config)
    found = {c.spec.run_id: c.run.result() for c in cells if c.run.state() == "finished"}
    new = {run_id: result for run_id, result in found.items() if run_id not in known}
    write_results(Path(config.study.results), {**known, **new})
    log.info(
        "%s: %d results, %d of them new", config.study.results, len(known) + len(new), len(new)
    )


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
