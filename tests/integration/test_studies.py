"""sweep.py: plan, failures, results file, tuned learning rates, concurrent sweeps, audits."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from slm.config.hydra import compose_config
from slm.data.tokens.prepare import prepare
from slm.tracking.results_file import read_results
from slm.tracking.run_dir import RunDirectory
from tests.conftest import PATIENCE_SECONDS, ROOT, Cli, cli_command, cli_env
from tests.in_process import run_here

SHORT = ("study=smoke", "study.tokens_per_param=[0.05]", "tracking=disabled")  # 4 cells
TINY = (*SHORT, "study.sizes=[80k]")  # 2 of them
# One learning rate for all budgets of study=micro, which then share trunks.
NO_RULE = ("study.lr_tokens_exponent=0", "study.lr_reference=null")
ONE_PROCESS = "hydra/launcher=basic"  # imports torch once for all cells


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """The folder in which all cells of SHORT are finished."""
    folder = tmp_path_factory.mktemp("finished")
    command = cli_command("sweep.py", folder, cache_dir, *SHORT, ONE_PROCESS, "action=run")
    assert run_here(command).returncode == 0
    return folder


def test_seed_design_is_refused(cli: Cli) -> None:
    seed = cli("sweep.py", "study=seed_design", "action=plan")
    assert seed.returncode == 4
    refusals = " ".join(seed.stdout.split()).split("REFUSED exponents: ")[1:]
    for reason in ("one family", "single token budget", "correlation of ln N and ln D"):
        assert any(reason in refusal for refusal in refusals)
    assert "seed_design is REFUSED" in seed.stderr


def test_study_whose_cells_all_diverge_fails_and_says_so(cli: Cli) -> None:
    study = ("sweep.py", *TINY, ONE_PROCESS, "optimizer.lr=1e6", "schedule.warmup_fraction=0")
    for action in ((), ("action=report",)):
        done = cli(*study, *action)
        assert done.returncode == 1, done.stderr
        assert "no report: all 2 cells diverged; optimizer.lr=1e+06 is probably" in done.stderr


@pytest.mark.slow
def test_designed_study_plans_without_edits(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # for all columns
    found = cli(
        "sweep.py",
        "study=micro",
        "action=design",
        "design.flops=1e15",
        "design.largest=340k",
        "optimizer.lr=3e-3",
        *NO_RULE,
    )
    assert found.returncode == 0, found.stderr
    _, text = found.stdout.split("conf/study/micro_designed.yaml:\n")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "micro_designed.yaml").write_text(text)
    path = f"hydra.searchpath=[file://{tmp_path}]"
    plan = cli("sweep.py", path, "study=micro_designed", "action=plan", "plan.cells=true")
    assert plan.returncode == 0 and "REFUSED" not in plan.stdout, plan.stderr
    assert "optimizer steps" not in plan.stdout and "0.003" in plan.stdout
    (flops,) = re.findall(r"reduces\s+this\s+to\s+([\d.e]+)\s+FLOPs", plan.stdout)
    assert 0.3e15 < float(flops) < 1.005e15  # printed with three digits
    poor = cli("sweep.py", "study=micro", "action=design", "design.flops=1e10")
    assert poor.returncode == 4
    assert "identifies an exponent difference needs" in poor.stderr and "a level" in poor.stderr


def test_refused_study_does_not_run(cli: Cli, tmp_path: Path) -> None:
    refused = cli("sweep.py", "study=smoke", "study.claim=exponents", "action=run")
    assert refused.returncode == 4 and "2 sizes, at least 4 are needed" in refused.stderr
    assert not list((tmp_path / "runs").glob("smoke/*"))


def test_a_plan_knows_how_much_text_there_is(cli: Cli, cache_dir: Path) -> None:
    prepare(compose_config(["study=smoke", f"cache_dir={cache_dir}"]))
    plan = cli("sweep.py", *TINY, "study.tokens_per_param=[3000]", "action=plan")
    assert plan.returncode == 4
    shown = " ".join(plan.stdout.split())
    assert "would repeat the training text of 15,259,561 tokens up to" in shown


def test_an_error_in_the_corpus_starts_no_cell(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    data = ("data=jsonl", f"data.files=[{tmp_path}/a.jsonl]", "data.column=txet")
    failed = cli("sweep.py", *TINY, *data, "action=run", ONE_PROCESS)
    assert failed.returncode == 1 and failed.stderr.count("set it to one of: text") == 1
    assert "did not finish" not in failed.stderr and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_failures_are_told_counted_and_retried_on_request(
    cli: Cli, tmp_path: Path, finished: Path
) -> None:
    study = (*SHORT, "hydra.launcher.n_jobs=1")
    shutil.copytree(finished / "runs", tmp_path / "runs")
    first = cli("sweep.py", *study, "action=run", "study.max_failures=1")
    assert first.returncode == 0 and "0 to run" in first.stderr, first.stderr
    runs = sorted((tmp_path / "runs" / "smoke").glob("*/result.json"))
    assert len(runs) == 4
    for path in runs[:2]:
        (path.parent / "result.json").unlink()
        (path.parent / "status.json").unlink()
        shutil.rmtree(path.parent / "checkpoints")
        (path.parent / "env.json").unlink()
        (path.parent / "env.json").mkdir()  # in the way of the file
    stopped = cli("sweep.py", *study, "action=run", "study.max_failures=1")
    assert stopped.returncode == 1 and "2 of 4 cells did not finish" in stopped.stderr
    assert "IsADirectoryError" in stopped.stderr
    states = [RunDirectory(path.parent).state() for path in runs[:2]]
    assert sorted(states) == ["failed", "planned"]
    status = cli("sweep.py", *study, "action=status")
    assert status.returncode == 3 and "IsADirectoryError" in status.stdout
    for path in runs[:2]:
        (path.parent / "env.json").rmdir()
    again = cli("sweep.py", *study, "action=run")
    assert again.returncode == 1 and "1 of 4 cells did not finish" in again.stderr
    assert "add study.retry_failed=true to retry the failed cells" in again.stderr
    retried = cli("sweep.py", *study, "action=run", "study.retry_failed=true")
    assert retried.returncode == 0, retried.stderr


@pytest.mark.slow
def test_a_file_of_results_counts_as_done_elsewhere(
    cli: Cli, tmp_path: Path, finished: Path
) -> None:
    kept = f"study.results={tmp_path / 'results' / 'smoke.jsonl'}"
    shutil.copytree(finished / "runs", tmp_path / "runs")
    assert "is needed for action=collect" in cli("sweep.py", *TINY, "action=collect").stderr
    collected = cli("sweep.py", *TINY, kept, "action=collect")
    assert collected.returncode == 0 and "2 results, 2 of them new" in collected.stderr
    shutil.rmtree(tmp_path / "runs")
    fresh = cli("sweep.py", *TINY, kept)
    assert fresh.returncode == 0 and "0 to run" in fresh.stderr, fresh.stderr
    assert not list((tmp_path / "runs").glob("smoke/*/result.json"))
    assert (tmp_path / "runs" / "smoke" / "report" / "report.md").exists()
    more = cli("sweep.py", *TINY, kept, "study.seeds=[0,1]", ONE_PROCESS, "action=run")
    assert more.returncode == 0 and "2 to run" in more.stderr
    assert len(read_results(tmp_path / "results" / "smoke.jsonl")) == 2
    again = cli("sweep.py", *TINY, kept, "study.seeds=[0,1]", "action=collect")
    assert "4 results, 2 of them new" in again.stderr


@pytest.mark.slow
def test_rates_are_tuned_until_the_best_is_inside(cli: Cli, tmp_path: Path) -> None:
    study = (*TINY, "study.tokens_per_param=[0.1,0.3]", "study.lr_policy=tuned", ONE_PROCESS)
    # So low that the best rate lies beyond the first grid.
    done = cli("sweep.py", *study, "optimizer.lr=1e-3", "action=run")
    assert done.returncode == 0, done.stderr
    tuning = json.loads((tmp_path / "runs" / "smoke" / "lr_tuning.json").read_text())["shapes"]
    assert {shape["family"] for shape in tuning} == {"deep_thin", "wide_shallow"}
    for shape in tuning:
        rates = sorted(shape["losses"], key=float)
        best = min(rates, key=lambda rate: shape["losses"][rate])
        assert float(best) == shape["lr"] and rates[0] != best != rates[-1] and len(rates) > 3
        assert shape["curvature_nats"] > 0 and shape["penalty_nats"] >= 0
        used = {
            json.loads(path.read_text())["peak_lr"]
            for path in (tmp_path / "runs" / "smoke").glob(f"{shape['family']}-*/result.json")
            if json.loads(path.read_text())["tokens_per_param"] == 0.3
        }
        assert used == {shape["lr"]}
    again = cli("sweep.py", *study, "optimizer.lr=1e-3", "action=run")
    assert again.returncode == 0 and "0 to run" in again.stderr and "jobs" not in again.stderr


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_work(tmp_path: Path, cache_dir: Path) -> None:
    """One runs each cell in its own process, the other runs them in the process of the sweep."""
    study = (*SHORT, "study.tokens_per_param=[0.05,0.1]", "study.seeds=[0,1]", "action=run")
    sweeps = [
        subprocess.Popen(
            cli_command("sweep.py", tmp_path, cache_dir, *study, launcher),
            cwd=ROOT, env=cli_env(), stderr=subprocess.PIPE, text=True,
        )
        for launcher in ("hydra.launcher.n_jobs=1", ONE_PROCESS)
    ]  # fmt: skip
    said = [sweep.communicate(timeout=PATIENCE_SECONDS)[1] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], said
    runs = sorted((tmp_path / "runs").glob("smoke/*/result.json"))
    assert len(runs) == 2 * 2 * 2 * 2
    for path in runs:
        begun = [
            line
            for line in (path.parent / "log.txt").read_text().splitlines()
            if " steps, " in line
        ]
        assert len(begun) == 1
        rows = (path.parent / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(row)["progress/step"] for row in rows if "train/loss" in row]
        assert len(steps) == len(set(steps))
    ended = re.compile(
        r"finished: validation|nats/token, .* -> "
    )  # of a run, or of a process with one
    finished = [len(ended.findall(text)) for text in said]
    assert min(finished) > 0  # each sweep trained some cells


@pytest.mark.slow
def test_aa_study_finds_no_difference(cli: Cli, tmp_path: Path) -> None:
    """A/A study (negative control) at reduced size, from the first cell to the verdict."""
    small = (
        "study.sizes=[25k,36k,50k,72k]",
        "study.tokens_per_param=[0.3,1]",
        "study.min_steps=20",
    )
    done = cli("sweep.py", "study=aa", *small, ONE_PROCESS, "tracking=disabled")
    assert done.returncode == 0, done.stderr
    report = tmp_path / "runs" / "aa" / "report"
    comparison = json.loads((report / "results.json").read_text())["comparison"]
    assert comparison["verdict"]["word"] in {"no_difference", "inconclusive"}
    assert (comparison["deep"], comparison["wide"]) == ("arm_a", "arm_b") and comparison[
        "runs"
    ] == 16
    losses = {
        path.name.split("-")[0]: json.loads((path / "result.json").read_text())
        for path in (tmp_path / "runs" / "aa").glob("arm_*-L3-d24-*")
    }
    assert losses["arm_a"]["shape"] == losses["arm_b"]["shape"]
    assert losses["arm_a"]["val_loss_nats_per_token"] != losses["arm_b"]["val_loss_nats_per_token"]
    assert (
        "Does the analysis report a difference between two families with the same shapes"
        in (report / "report.html").read_text()
    )
    assert '<figure id="loss_curves">' in (report / "report.html").read_text()


@pytest.mark.slow
def test_audit_is_written_and_used_by_the_verdict(cli: Cli, tmp_path: Path) -> None:
    small = ("study.sizes=[50k]", "study.tokens_per_param=[0.2]", "study.min_steps=null")
    small = (*small, "tracking=disabled")
    rates = "study.grid={optimizer.lr:[1e-3,4e-3,1.6e-2]}"
    families = ("study.families=[deep_thin,wide_shallow]", "study.aspect_ratios=[]")
    families = (*families, "study.contrast=[]", "optimizer.global_batch_tokens=1024")
    audit = cli("sweep.py", "study=lr_audit", *small, *families, rates, ONE_PROCESS)
    assert audit.returncode == 0, audit.stderr
    gate = tmp_path / "runs" / "lr_audit" / "report" / "lr_audit.json"
    found = json.loads(gate.read_text())
    assert set(found["families"]) == {"deep_thin", "wide_shallow"} and found["common_lr"] == 1.3e-3
    study = ("study=micro", "study.sizes=[50k,80k]", "study.tokens_per_param=[0.2]", *families)
    study = (*study, "study.claim=none", "study.results=null", f"study.lr_audit={gate}")
    study = (*study, "tracking=disabled", ONE_PROCESS)
    judged = cli("sweep.py", *study)
    assert judged.returncode == 0, judged.stderr
    results = json.loads((tmp_path / "runs" / "micro" / "report" / "results.json").read_text())
    assert results["comparison"]["audit"] is not None
    other = cli("sweep.py", *study, "optimizer.beta2=0.9", "action=report")
    assert other.returncode == 1 and (
        "no finished cell" in other.stderr or "recipe" in other.stderr
    )
