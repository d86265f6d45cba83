"""Slurm cluster of one node for tests: real daemons on the loopback interface, all files in one folder.

It has no accounting, like many clusters. A job of partition `high` preempts a job of `low`, which Slurm
requeues.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
# A requeued job waits until its credential expires, by default two minutes.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
MailProg=/bin/true
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


class Slurm:
    """Commands to a running cluster; processes use the cluster through `env`."""

    def __init__(self, folder: Path):
        self.env = {"SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: str) -> str:
        """Run a Slurm command and return its output.

        Raises:
            subprocess.CalledProcessError: if it fails.
        """
        env = {**os.environ, **self.env}
        return subprocess.run(
            command, env=env, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    def jobs(self, state: str = "all") -> list[str]:
        """Return the ids of jobs in a state, such as RUNNING or PENDING."""
        return self.run("squeue", "--array", "-h", f"--states={state}", "-o", "%i").split()

    def is_idle(self) -> bool:
        try:
            return self.run("sinfo", "-h", "-p", "low", "-o", "%t").strip() == "idle"
        except subprocess.CalledProcessError:
            return False

    def clear(self) -> None:
        """Cancel all jobs and wait until the queue is empty."""
        self.run("scancel", f"--user={os.environ.get('USER', 'root')}")
        wait_until(self.is_idle, 60)


def missing() -> str:
    """Return the reason why Slurm cannot be started here, or an empty string."""
    absent = [daemon for daemon in DAEMONS if shutil.which(daemon) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "slurmd needs root to run jobs as their users"


@contextmanager
def one_node_slurm(folder: Path, cpus: int) -> Iterator[Slurm]:
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    config = CONFIG.format(
        folder=folder, host=host, cpus=cpus, controller_port=free_port(), node_port=free_port()
    )
    (folder / "slurm.conf").write_text(config)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    options = ("key-file", "socket", "pid-file", "log-file", "seed-file")
    files = [f"--{option}={folder}/munge.{option.partition('-')[0]}" for option in options]
    slurm = Slurm(folder)
    with ExitStack() as running:
        running.enter_context(daemon(folder, "munged", "--foreground", "--force", *files))
        wait_until((folder / "munge.socket").exists, 20)
        running.enter_context(daemon(folder, "slurmctld", "-D"))
        running.enter_context(daemon(folder, "slurmd", "-D"))
        wait_until(slurm.is_idle, 60)
        try:
            yield slurm
        finally:
            slurm.clear()


@contextmanager
def daemon(folder: Path, *command: str) -> Iterator[None]:
    output = folder / f"{command[0]}.log"
    env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    with output.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    """Wait until a condition is true.

    Raises:
        TimeoutError: if it is not true within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            name = getattr(condition, "__qualname__", condition)
            raise TimeoutError(f"{name} is not true after {seconds:.0f} s")
        time.sleep(0.05)
