"""One study through every launcher: the same runs, bit for bit."""

from __future__ import annotations

import pytest

from tests.clusters.conftest import MakeSweep
from tests.clusters.sweeping import SMOKE, Sweep, assert_same_study, times_resumed

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
CELLS = 8


@pytest.mark.parametrize("launcher", ["local", "slurm", "ray"])
def test_a_study_is_the_same_through_every_launcher(
    launcher: str, sweep: MakeSweep, basic_smoke: Sweep, request: pytest.FixtureRequest
) -> None:
    env, more = {}, ["hydra.launcher.n_jobs=2"] if launcher == "local" else []
    if launcher == "slurm":
        env = request.getfixturevalue("slurm").env
    elif launcher == "ray":  # one of the sweep's own
        env = request.getfixturevalue("ray_env")
        more = [
            "hydra.launcher.init.address=local",
            "+hydra.launcher.init._node_ip_address=127.0.0.1",
        ]
    study = sweep(SMOKE, f"hydra/launcher={launcher}", *more, env=env)
    assert study.to_end() == 0, study.said
    assert_same_study(study, basic_smoke)
    runs = study.runs()
    assert len(runs) == CELLS
    for run_id, run in runs.items():
        assert (run.path / "log.txt").read_text().count(f"{run_id}: ") == 1  # begun once
        assert not times_resumed(run)
        assert len(list(run.path.glob("wandb/offline-run-*"))) == 1
    assert study.to_end() == 0 and "0 to run" in study.said
