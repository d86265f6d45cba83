"""Train one run, or with -m a grid of runs. `python train.py --help` lists every key."""

import hydra
from omegaconf import DictConfig

from slm.cli import run_app, train_job


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    return train_job(cfg)


if __name__ == "__main__":
    run_app(main)
