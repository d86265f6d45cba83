"""Every launcher produces the same runs, bit for bit."""

from __future__ import annotations

import pytest

from tests.clusters.conftest import MakeSweep
from tests.clusters.sweeping import SMOKE, Sweep, assert_same_study, count_resumes

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
CELLS = 4


@pytest.mark.parametrize("launcher", ["local", "slurm", "ray"])
def test_all_launchers_produce_the_same_runs(
    launcher: str, sweep: MakeSweep, basic_smoke: Sweep, request: pytest.FixtureRequest
) -> None:
    env, overrides = {}, ["hydra.launcher.n_jobs=2"] if launcher == "local" else []
    if launcher == "slurm":
        env = request.getfixturevalue("slurm").env
    elif launcher == "ray":  # the sweep starts its own cluster
        env = request.getfixturevalue("ray_env")
        overrides = [
            "hydra.launcher.init.address=local",
            "+hydra.launcher.init._node_ip_address=127.0.0.1",
        ]
    study = sweep(SMOKE, f"hydra/launcher={launcher}", *overrides, env=env)
    assert study.run() == 0, study.output
    assert_same_study(study, basic_smoke)
    runs = study.runs()
    assert len(runs) == CELLS
    for run_id, run in runs.items():
        assert (run.path / "log.txt").read_text().count(f"run id {run_id}") == 1  # started once
        assert not count_resumes(run)
        assert len(list(run.path.glob("wandb/offline-run-*"))) == 1
