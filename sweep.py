"""Plan, run, watch or report a study: `python sweep.py study=demo action=plan|run|status|watch|report|...`."""

import hydra
from omegaconf import DictConfig

from slm.cli import run_app, train_job


@hydra.main(version_base="1.3", config_path="conf", config_name="sweep")
def main(cfg: DictConfig) -> None:
    # Hydra calls this once per cell; hydra_plugins/slm_study/sweeper.py makes the cells.
    train_job(cfg)


if __name__ == "__main__":
    run_app(main)
