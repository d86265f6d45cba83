"""`python -m slm repeat`: train a recorded run again, and compare the losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from slm.architecture.memory import divisors
from slm.config.load import load_config
from slm.config.schema import Config, TrainerConfig
from slm.errors import DataError, RunError, nearest_name
from slm.run.spec import resolve
from slm.tracking.configs_file import configs_path, read_configs, read_environment
from slm.tracking.result import RunResult
from slm.tracking.results_file import read_results
from slm.tracking.run_dir import RunDirectory
from slm.training.execute import train_all


@dataclass(frozen=True)
class Recorded:
    """Config, result and environment of a run; the environment is empty if it is not known."""

    config: Config
    result: RunResult
    environment: Mapping[str, Any]


def repeat(source: Path, run: str | None, *, runs_dir: Path, cache_dir: Path) -> None:
    """Train a recorded run alone, in one process, from its first step, and print both losses.

    An interrupted repetition is continued; a finished one is set aside and trained again.

    Args:
        source: run directory, or results file of a study with its configurations beside it.
        run: with a results file, run id, or the start of it or of its hash.
        runs_dir: folder for the new run directory.
        cache_dir: folder of prepared data.

    Raises:
        DataError: if the recorded run has no validation loss.
        RunError: if the configuration makes another run here, for example because the corpus differs.
    """
    recorded = _of_directory(source, run) if source.is_dir() else _of_file(source, run)
    if recorded.result.status != "finished":
        raise DataError(
            f"{recorded.result.run_id}: {recorded.result.status}, so it has no validation loss to compare with; give a "
            "finished run"
        )
    config = replace(
        recorded.config,
        runs_dir=str(runs_dir),
        cache_dir=str(cache_dir),
        tracking=replace(recorded.config.tracking, wandb="disabled"),  # one W&B run per run id
        trainer=_alone(recorded.config),
    )
    spec = resolve(config)
    if spec.run_id != recorded.result.run_id:
        raise RunError(
            f"{recorded.result.run_id}: its configuration makes run {spec.run_id} here, so corpus, tokenizer or code differ; "
            f"check out commit {recorded.result.commit} and install its constraints.txt"
        )
    target = RunDirectory.of(spec)
    if target.path.resolve() == source.resolve():
        raise RunError(f"{target.path}: the recorded run itself; give another folder, runs_dir=DIR")
    train_all(replace(config, rerun=target.state() in ("finished", "diverged")))
    result = target.result()
    if result is None:
        raise RunError(f"{target.path}: the run has no result; run the same command again")
    print("\n".join(_comparison(recorded, Recorded(config, result, read_environment(target)))))


def _alone(config: Config) -> TrainerConfig:
    """Return the settings of a trainer in one process, with micro-batches at most as large as before."""
    trainer = config.trainer
    alone = replace(trainer, share_trunk=False, strategy="single", devices=1, num_nodes=1)
    processes, requested = trainer.processes, trainer.micro_batch_sequences
    if processes == 1 or requested == "auto":
        return alone
    sequences = config.optimizer.global_batch_tokens // config.model.seq_len
    before = min(requested or sequences, ceil(sequences / processes))
    size = max(n for n in divisors(sequences) if n <= before)
    return replace(alone, micro_batch_sequences=size)


def _of_directory(source: Path, run: str | None) -> Recorded:
    if run is not None:
        raise DataError(
            f"{source}: a folder; give a run directory alone, or a results file and a run"
        )
    directory = RunDirectory(source)
    config, result = directory.spec().config, directory.result()
    if result is None:
        raise DataError(
            f"{source}: no result to compare with; give the directory of a finished run"
        )
    return Recorded(config, result, read_environment(directory))


def _of_file(source: Path, run: str | None) -> Recorded:
    if not source.exists():
        raise DataError(f"{source}: no such file or folder; give a run directory or a results file")
    results = read_results(source)
    if run is None:
        raise DataError(f"{source}: {len(results)} runs; give the id of one of them, or its start")
    run_id = _find(run, results, source)
    path = configs_path(source)
    found = read_configs(path).get(run_id)
    if found is None:
        fix = "write it with action=collect, study.results=" + str(source)
        raise DataError(f"{path}: no configuration of {run_id}; {fix}")
    return Recorded(load_config(found["config"]), results[run_id], found.get("environment", {}))


def _find(run: str, results: Mapping[str, RunResult], source: Path) -> str:
    """Return the run id that begins with `run`, or whose hash does."""
    found = [
        run_id
        for run_id in results
        if run_id.startswith(run) or run_id.rpartition("-")[2].startswith(run)
    ]
    exact = [run_id for run_id in found if run in (run_id, run_id.rpartition("-")[2])]
    found = exact or found
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{run}: {len(found)} runs of {source} begin like this; give more of the id"
        )
    near = nearest_name(run, results) or next(iter(results), "none")
    raise DataError(
        f"{run}: no run of {source} begins like this; it has {len(results)} runs, such as {near}"
    )


def _comparison(recorded: Recorded, repeated: Recorded) -> list[str]:
    """Return both losses, their difference, and what differs between the environments."""
    one, other = recorded.result.val_loss_nats_per_token, repeated.result.val_loss_nats_per_token
    assert one is not None and other is not None
    lines = [f"recorded: {one!r} nats/token", f"repeated: {other!r} nats/token"]
    if one == other:
        return [*lines, "equal in all digits"]
    lines.append(f"difference: {other - one:+.2g} nats/token")
    here = repeated.environment
    differing = [
        f"{key} {value} (here {here.get(key)})"
        for key, value in recorded.environment.items()
        if here.get(key) != value
    ]
    if recorded.result.commit != repeated.result.commit:
        differing.append(f"commit {recorded.result.commit} (here {repeated.result.commit})")
    if not recorded.environment:
        differing.append("a machine that is not recorded")
    return [
        *lines,
        f"the recorded run had {', '.join(differing) or 'the same environment'}",
        "equal digits need the same kind of CPU, number of threads, version of torch and order of sums in the code; "
        "rounding differences grow during training",
    ]
