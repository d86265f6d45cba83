"""The run directory: identity, lease, states after a kill, rerun, and metrics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from slm.errors import DataError, Interrupted, InUse, RunError
from slm.run.spec import RunSpec
from slm.tracking import lease, run_dir
from slm.tracking import result as result_module
from slm.tracking.result import RunResult
from slm.tracking.results_file import read_results
from slm.tracking.run_dir import RunDirectory
from tests.conftest import ROOT

Spec = Callable[..., RunSpec]
MICRO = ROOT / "analysis" / "examples" / "micro_first" / "results.jsonl"


def test_run_id_depends_on_the_scientific_config_only(tiny_spec: Spec) -> None:
    base = tiny_spec()
    same: list[dict[str, Any]] = [
        {"trainer": {"micro_batch_sequences": 2}},
        {"trainer": {"threads": 2, "num_workers": 1, "log_every_steps": 7}},
        {"trainer": {"compile": "on", "accelerator": "auto", "checkpoint_every_steps": 3}},
        {"trainer": {"activation_checkpointing": True}},
        {"trainer": {"deterministic": True, "gpu_memory_fraction": 0.5}},
        {"model": {"dropout": 0.0}},
        {"trainer": {"strategy": "ddp", "devices": 2, "num_nodes": 2}},
        {"tracking": {"wandb": "offline", "project": "other"}},
        {"model": {"preset": "another"}, "ladder": {"d_head": 16}},
        {
            "runs_dir": "elsewhere",
            "cache_dir": "elsewhere",
            "rerun": True,
            "study": {"name": "other"},
        },
    ]
    other: list[dict[str, Any]] = [
        {"seed": 1},
        {"budget": {"tokens": 30 * 256}},
        {"optimizer": {"lr": 1e-3}},
        {"schedule": {"kind": "cosine"}},
        {"model": {"n_layers": 3}},
        {"model": {"attention": "reference"}},
        {"model": {"mlp": "gelu"}},
        {"model": {"dropout": 0.1}},
        {"model": {"tied": False}},
        {"model": {"n_kv_heads": 1}},
        {"model": {"layer_sharing": 2}},
        {"model": {"qk_norm": True}},
        {"model": {"rope_theta": 500.0}},
        {"model": {"norm_eps": 1e-6}},
        {"model": {"document_mask": True}},
        {"optimizer": {"z_loss": 1e-4}},
        {"parametrization": {"base_depth": 2}},
        {"parametrization": {"base_width": 32}},
        {"parametrization": {"kind": "mup"}},
        {"parametrization": {"kind": "standard"}},
        {"trainer": {"precision": "bf16"}},
        {"data": {"val_tokens": 999}},
        {"tokenizer": {"kind": "byte"}},
        {"family": {"name": "another"}},
    ]
    assert {tiny_spec(**changes).run_id for changes in same} == {base.run_id}
    unused = {"kind": "standard", "base_width": 8, "base_depth": 8}
    standard = tiny_spec(parametrization={"kind": "standard"})
    assert tiny_spec(parametrization=unused).run_id == standard.run_id
    ids = [tiny_spec(**changes).run_id for changes in other]
    assert len({base.run_id, *ids}) == 1 + len(other)


def test_same_budget_in_any_unit_has_the_same_run_id(tiny_spec: Spec) -> None:
    by_tokens = tiny_spec()
    n_flop = by_tokens.flops_per_token / 6
    by_flops = tiny_spec(budget={"tokens": None, "flops": float(by_tokens.flops)})
    by_params = tiny_spec(budget={"tokens": None, "tokens_per_param": by_tokens.tokens / n_flop})
    assert by_tokens.run_id == by_flops.run_id == by_params.run_id


def test_final_state_is_recorded(tiny_spec: Spec) -> None:
    spec = tiny_spec()
    run = RunDirectory.of(spec)
    assert run.state() == "planned"
    with run.claim(spec):
        assert run.state() == "running"
    assert run.state() == "finished"
    with pytest.raises(ValueError, match="boom"), run.claim(spec):
        raise ValueError("boom")
    assert run.state() == "failed" and "boom" in (run.path / "traceback.txt").read_text()
    with pytest.raises(Interrupted), run.claim(spec):
        raise Interrupted("stop", signal.SIGTERM)
    assert run.state() == "interrupted"


def test_second_claim_of_a_run_is_refused(tiny_spec: Spec) -> None:
    spec = tiny_spec()
    run = RunDirectory.of(spec)
    refused = pytest.raises(RunError, match=rf"in use by process {os.getpid()}")
    with run.claim(spec), refused, RunDirectory.of(spec).claim(spec):
        pass


def test_killed_run_is_interrupted_and_can_be_claimed(tiny_spec: Spec) -> None:
    spec = tiny_spec()
    run = RunDirectory.of(spec)
    with run.claim(spec):
        pass
    code = (
        "import sys, time; from pathlib import Path; from slm.files import try_lock\n"
        "lock = try_lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(run.path / "lock")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    run.write_status("running")
    assert run.state() == "running" and run.is_in_use()
    process.kill()
    process.wait()
    assert run.state() == "interrupted" and not run.is_in_use()
    with run.claim(spec):
        assert run.state() == "running"


def test_status_has_a_heartbeat(tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.02)
    spec = tiny_spec()
    run = RunDirectory.of(spec)
    with run.claim(spec):
        heartbeats = set()
        for _ in range(10):
            heartbeats.add(json.loads((run.path / "status.json").read_text())["heartbeat"])
            time.sleep(0.03)
    assert len(heartbeats) > 3


def test_run_of_another_config_in_the_folder_is_refused(tiny_spec: Spec) -> None:
    spec = tiny_spec()
    run = RunDirectory.of(spec)
    with run.claim(spec):
        pass
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.004", "lr: 0.5"))
    with (
        pytest.raises(RunError, match=r"optimizer.lr: 0.5 saved, 0.004 requested"),
        run.claim(spec),
    ):
        pass
    config.write_text("{not yaml")
    with pytest.raises(RunError, match="not a readable config"), run.claim(spec):
        pass


@pytest.mark.parametrize("content", ["", "[]", "\n"])
def test_emptied_files_are_named_with_a_fix(content: str, tiny_spec: Spec) -> None:
    spec = tiny_spec()
    run = RunDirectory.of(spec)
    with run.claim(spec):
        pass
    for name, read in (("config.yaml", run.spec), ("result.json", run.result)):
        (run.path / name).write_text(content)
        with pytest.raises(RunError, match=rf"{name}: .*; start over with rerun=true") as caught:
            read()
        assert "NoneType" not in str(caught.value) and "attribute" not in str(caught.value)
    (run.path / "status.json").write_text(content)
    assert run.state() == "planned" and run.failure() == ""


def test_rerun_moves_the_old_run_to_superseded(tiny_spec: Spec) -> None:
    spec = tiny_spec()
    run = RunDirectory.of(spec)
    for _ in range(3):
        with run.claim(spec, rerun=True):
            (run.path / "mark").write_text("x")
    moved = sorted((run.path.parent / run_dir.SUPERSEDED).iterdir())
    assert [path.name for path in moved] == [f"{run.path.name}-1", f"{run.path.name}-2"]
    assert all((path / "mark").exists() for path in moved)


def test_rerun_that_loses_the_lease_of_the_new_directory_is_in_use(
    tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process takes the lease after the old directory is moved."""
    spec, original, other = tiny_spec(), RunDirectory.move_aside, []
    run = RunDirectory.of(spec)
    with run.claim(spec):
        pass

    def move_and_lose(self: RunDirectory, held: lease.HeldLease) -> Path:
        aside = original(self, held)
        other.append(self.lease.take())
        return aside

    monkeypatch.setattr(RunDirectory, "move_aside", move_and_lose)
    with pytest.raises(InUse, match="in use by process"), run.claim(spec, rerun=True):
        pass
    assert other[0].is_held
    other[0].release()


def test_metrics_with_an_incomplete_line_and_repeated_steps_are_read(tiny_spec: Spec) -> None:
    run = RunDirectory.of(tiny_spec())
    run.path.mkdir(parents=True)
    with run.open_metrics() as stream:
        stream.write(
            '{"progress/step": 1, "train/loss": 3.0}\n{"progress/step": 2, "train/loss": 2.5}\n'
        )
        stream.write('{"progress/step": 3, "trai')
    assert [row[run_dir.STEP] for row in run.read_metrics()] == [1, 2]
    with run.open_metrics() as stream:
        stream.write(
            '{"progress/step": 2, "train/loss": 2.0}\n{"progress/step": 2, "val/loss": 9.0}\n'
        )
    assert run.read_metrics()[1] == {"progress/step": 2, "train/loss": 2.0, "val/loss": 9.0}


def saved_result() -> dict[str, Any]:
    """A committed result of version 4, as result.json and a line of a study's file of results hold it."""
    saved = json.loads(MICRO.read_text(encoding="utf-8").splitlines()[0])
    assert saved["schema_version"] == 4
    return saved


def both_readers(folder: Path, saved: object) -> list[Callable[[], RunResult | None]]:
    """Reads of `saved` as a run's result.json and as the only line of a file of results."""
    (folder / "result.json").write_text(json.dumps(saved))
    (folder / "results.jsonl").write_text(json.dumps(saved) + "\n")
    return [
        RunDirectory(folder).result,
        lambda: next(iter(read_results(folder / "results.jsonl").values())),
    ]


def test_a_later_result_loads_without_its_new_fields(tmp_path: Path) -> None:
    saved = saved_result()
    for read in both_readers(tmp_path, saved | {"schema_version": 5, "energy_joules": 12.5}):
        assert read() == RunResult(**saved | {"schema_version": 5})


def test_an_older_result_takes_the_default_of_a_field_added_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Later(RunResult):
        energy_joules: float | None = None
        cards: list[str] = field(default_factory=list)

    monkeypatch.setattr(result_module, "RunResult", Later)
    saved = saved_result()
    for read in both_readers(tmp_path, saved):
        assert read() == Later(**saved, energy_joules=None, cards=[])


@pytest.mark.parametrize(
    ("changes", "absent", "said"),
    [
        (
            {"schema_version": 3},
            (),
            "schema_version 3 is not supported; the oldest supported version is 4",
        ),
        (
            {"schema_version": "4"},
            (),
            "schema_version '4' is not supported; the oldest supported version is 4",
        ),
        ({}, ("run_id", "tokens"), "schema_version 4: missing fields run_id, tokens"),
    ],
)
def test_a_result_that_cannot_be_read_is_refused(
    tmp_path: Path, changes: dict[str, Any], absent: tuple[str, ...], said: str
) -> None:
    changed = {k: v for k, v in (saved_result() | changes).items() if k not in absent}
    of_run, of_file = both_readers(tmp_path, changed)
    with pytest.raises(RunError, match=rf"result.json: .*{said}; start over with rerun=true"):
        of_run()
    with pytest.raises(DataError, match=rf"results.jsonl, line 1: .*{said}; remove the line"):
        of_file()


def test_a_result_that_is_no_object_is_refused(tmp_path: Path) -> None:
    of_run, of_file = both_readers(tmp_path, [4])
    with pytest.raises(RunError, match="no JSON object"):
        of_run()
    with pytest.raises(DataError, match="list instead of an object"):
        of_file()
    (tmp_path / "result.json").write_text('{"schema_version": 4, ')
    with pytest.raises(RunError, match=r"result.json: not readable \(not valid JSON"):
        of_run()


def test_last_metrics_leave_out_what_is_no_finite_number(tmp_path: Path) -> None:
    lines = [
        '{"progress/step": 3, "train/loss": 2.5}',
        '{"progress/step": null, "train/loss": "x"}',
    ]
    lines += ['{"progress/step": 1e400, "train/loss": NaN}', "[]"]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert RunDirectory(tmp_path).last_metrics() == {"progress/step": 3, "train/loss": 2.5}
