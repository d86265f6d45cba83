"""Plan, run or report a study: `python sweep.py study=demo action=plan|run|status|report`."""

import hydra
from omegaconf import DictConfig

from slm.cli import run_app, train_job


@hydra.main(version_base="1.3", config_path="conf", config_name="sweep")
def main(cfg: DictConfig) -> None:
    train_job(
        cfg
    )  # one cell; which cells there are is the sweeper's work (hydra_plugins/slm_study)


if __name__ == "__main__":
    run_app(main)
