"""Speed and objective of the joint fit on the published Chinchilla points, compared with the PyPI package `chinchilla`.

    python -m venv /tmp/peer && /tmp/peer/bin/pip install chinchilla==0.2.0
    python -m tests.benchmarks.fits --peer /tmp/peer/bin/python

Both minimise the Huber loss of ln L with delta 1e-3: slm from a grid of 108 starts and 20 random starts, the
peer from a grid of 108 starts. The objective is the sum over points (the peer minimises the mean). Times are
CPU seconds of one process. The points are in SLM_TEST_DATA/scaling.

Measured with numpy 2.4 on one core: slm 0.56 s including status, intervals and sensitivity (0.34 s for the
starts), objective 1.0183e-3; the peer 1.60 s, objective 1.0686e-3 (alpha 0.391: it stopped before the
minimum); 1000 bootstrap refits of M2 0.25 s.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.fit.joint import fit_joint
from analysis.fit.law import JointLaw, Points
from analysis.fit.levenberg_marquardt import Problem, minimise, start_grid
from analysis.fit.resampling import cluster_bootstrap

PEER = """
import json, sys, time
import numpy as np, pandas as pd
from chinchilla import Chinchilla
points = pd.read_csv(sys.argv[1])
log = lambda y, p: np.log(y) - np.log(p)
def loss_fn(y, p, delta=1e-3):
    r = np.abs(log(y, p))
    return np.where(r < delta, r**2 / 2, delta * (r - delta / 2))
grid = dict(e=[-0.5, 0.2, 0.6], a=[3.0, 6.0, 9.0], b=[3.0, 6.0, 9.0], alpha=[0.2, 0.6], beta=[0.2, 0.6])
cc = Chinchilla(sys.argv[2], param_grid=grid, loss_fn=loss_fn, log_level=40)
for row in points.itertuples():
    cc.append(N=row.N, D=row.D, C=row.C, loss=row.loss)
began = time.process_time()
cc.fit(parallel=False)
seconds = time.process_time() - began
fit = dict(E=float(cc.E), A=float(cc.A), B=float(cc.B), alpha=float(cc.alpha), beta=float(cc.beta))
predicted = cc.E + cc.A * points.N**-float(cc.alpha) + cc.B * points.D**-float(cc.beta)
print(json.dumps(dict(seconds=seconds, objective=float(loss_fn(points.loss, predicted).sum()), **fit)))
"""


def load_points(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "scaling" / "chinchilla_epoch.csv").sort_values("loss").iloc[:-5]


def time_slm(points: pd.DataFrame, repeats: int) -> None:
    for name in ("huber", "lsq"):
        durations = []
        for _ in range(repeats):
            began = time.process_time()
            fit = fit_joint(points["N"], points["D"], points["loss"], loss_fn=name)  # type: ignore[arg-type]
            durations.append(time.process_time() - began)
        assert fit.evidence is not None
        print(
            f"fit_joint {name}: {np.median(durations):.2f} s (median of {repeats} repeats, "
            f"{fit.evidence.starts} starts, including status, intervals and sensitivity), "
            f"objective {fit.objective:.6e}, {dict(fit.params)}"
        )
    family = np.arange(len(points)) % 2
    fit_points = Points.of(points["N"], points["D"], points["loss"], family)
    problem = Problem.of(JointLaw("M2", 2), fit_points)
    solution = minimise(problem, start_grid(problem.law, fit_points))
    began = time.process_time()
    cluster_bootstrap(
        problem, solution.theta[solution.best], np.arange(len(points)), family, replicates=1000
    )
    print(f"1000 bootstrap refits of M2: {time.process_time() - began:.2f} s")


def time_peer(points: pd.DataFrame, python: Path, scratch: Path) -> None:
    scratch.mkdir(parents=True, exist_ok=True)
    points.to_csv(scratch / "points.csv", index=False)
    (scratch / "df.csv").unlink(missing_ok=True)
    command = [str(python), "-c", PEER, str(scratch / "points.csv"), str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the peer failed: {done.stderr[-2000:]}")
    print(f"chinchilla (PyPI): {json.loads(done.stdout.splitlines()[-1])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    data = os.environ.get("SLM_TEST_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(data))
    parser.add_argument("--peer", type=Path, help="python of an environment with chinchilla==0.2.0")
    parser.add_argument("--scratch", type=Path, default=Path("out/fits"))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    points = load_points(arguments.data)
    time_slm(points, arguments.repeats)
    if arguments.peer is None:
        print("chinchilla (PyPI): skipped; pass --peer PYTHON to measure it")
    else:
        time_peer(points, arguments.peer, arguments.scratch)


if __name__ == "__main__":
    main()
