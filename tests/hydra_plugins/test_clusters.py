"""What of the launchers for clusters needs neither cluster nor extra."""

from __future__ import annotations

import pickle
import signal
import subprocess
from collections.abc import Callable
from importlib.util import find_spec

import pytest

from hydra_plugins.slm_study.ray import check_reachable
from slm.errors import ConfigError, Diverged, Interrupted, PeerFailed, Problem, RunError, SlmError

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    "error",
    [
        ConfigError([Problem("size", 3, "too small", "128k"), Problem("seed", None, "missing")]),
        Interrupted("stopped", signal.SIGTERM),
        Diverged("nan", {"step": 5}),
        PeerFailed("another", 3),
        RunError("busy"),
    ],
)
def test_an_error_survives_the_way_from_a_job(error: SlmError) -> None:
    error.was_shown = True
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error) and str(back) == str(error)
    assert vars(back) == vars(error) and back.exit_code == error.exit_code


@pytest.mark.parametrize(("launcher", "module"), [("slurm", "submitit"), ("ray", "ray")])
def test_an_extra_that_is_missing_is_named(launcher: str, module: str, cli: Cli) -> None:
    """Only where it is needed: plans do without."""
    if find_spec(module) is not None:
        pytest.skip(f"the extra {launcher} is installed")
    study = ("sweep.py", "study=smoke", f"hydra/launcher={launcher}")
    plan, run = cli(*study, "action=plan"), cli(*study, "action=run")
    assert (plan.returncode, run.returncode) == (0, 2)
    assert f"pip install -e '.[{launcher}]'" in run.stderr and "Traceback" not in run.stderr


def test_a_cluster_that_is_not_there_is_told_at_once() -> None:
    check_reachable(None)
    check_reachable("auto")
    with pytest.raises(RunError, match=r"127\.0\.0\.1:9"):
        check_reachable("127.0.0.1:9")
