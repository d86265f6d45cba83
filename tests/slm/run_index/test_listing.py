"""`python -m slm runs` and `runs diff`: order, differences in words, widths, damaged directories, names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from slm.run_index.scan import read_run, read_studies
from slm.tracking.trunk import FOLDER as TRUNKS
from tests.slm.run_index.made import make_run, set_aside, slm


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Return a study of four finished runs and one that failed."""
    study = tmp_path / "runs" / "mine"
    make_run(study, "deep_thin", 50_000, loss=2.4321)
    make_run(study, "wide_shallow", 50_000, loss=2.5)
    make_run(study, "deep_thin", 115_000, tokens=131_072, loss=2.1)
    odd = {"optimizer": {"lr": 0.008}, "trainer": {"precision": "bf16"}}
    make_run(study, "wide_shallow", 115_000, tokens=131_072, loss=2.0999, **odd)
    failed = make_run(study, "deep_thin", 80_000, loss=None, state="failed")
    (failed / "status.json").write_text(
        '{"state": "failed", "failure": "ValueError: no more disk"}'
    )
    return study


def rows(output: str) -> list[str]:
    """Return the lines of runs, which have a hash."""
    return [line for line in output.splitlines() if re.search(r"^\*? +[0-9a-f]{8} ", line)]


def test_list_marks_the_best_run_and_names_what_differs(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    done = slm("runs", study.parent)
    assert done.returncode == 0
    heading, best, *_ = done.stdout.splitlines()
    assert f"{study}: 4 finished, 1 failed" in heading
    (marked,) = (row for row in rows(done.stdout) if row.startswith("*"))
    assert "wide_shallow" in marked and "2.0999" in marked and "131k" in marked and "115k" in marked
    assert "lr 0.008, precision bf16" in marked and marked.split()[1] in best
    others = [row for row in rows(done.stdout) if row != marked]
    assert len(others) == 4 and not any("lr " in row or "bf16" in row for row in others)
    assert any("failed" in row and "no more disk" in row for row in others)


def test_runs_that_differ_in_one_scientific_key_have_different_names(tmp_path: Path) -> None:
    for changes in ({}, {"model": {"mlp": "gelu"}}, {"model": {"tied": False}}, {"optimizer": {"lr": 0.008}}):  # fmt: skip
        make_run(tmp_path / "mine", **changes)
    (study,) = read_studies([tmp_path])
    assert {run.differs for run in study.runs} == {(), ("mlp gelu",), ("untied",), ("lr 0.008",)}
    assert len({run.name for run in study.runs}) == 4
    assert "deep_thin 50k, 20.5k tokens, s0, untied" in {run.name for run in study.runs}


def test_tokens_of_a_diverged_run_are_its_budget(study: Path) -> None:
    stopped = {"tokens": 1024, "val_loss_nats_per_token": None, "status": "diverged"}
    path = make_run(study, seed=4, state="diverged", result=stopped)
    run = read_run(path)
    assert run.tokens == 20_500 and run.name == "deep_thin 50k, 20.5k tokens, s4"


def test_of_two_recipes_the_default_is_the_one_to_compare_with(tmp_path: Path) -> None:
    make_run(tmp_path / "mine", optimizer={"lr": 0.001})
    make_run(tmp_path / "mine")
    (study,) = read_studies([tmp_path])
    assert {run.differs for run in study.runs} == {(), ("lr 0.001",)}


def test_explicit_shapes_are_compared_within_their_size(tmp_path: Path) -> None:
    for preset, layers in (("tiny", 2), ("tiny", 2), ("tiny", 3), ("large", 9)):
        shape = {"preset": preset, "n_layers": layers, "d_model": 32, "n_heads": 4}
        seed = len(list((tmp_path).glob("mine/*")))
        make_run(tmp_path / "mine", size=None, seed=seed, model=shape)  # type: ignore[arg-type]
    (study,) = read_studies([tmp_path])
    assert sorted(run.differs for run in study.runs) == [(), (), (), ("n_layers 3",)]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_list_fits_the_width_and_cuts_no_number(
    study: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = slm("runs", study).stdout.splitlines()
    (rule,) = (number for number, line in enumerate(shown) if line.startswith("──"))
    table = shown[rule - 1 :]
    assert max(map(len, table)) <= width and not any("…" in line for line in table)
    for number in ("2.4321", "2.0999", "131k", "115k", "20.5k"):
        assert any(number in line for line in table)
    assert ("run directory" in table[0]) == (width == 200)


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        ("size", "deep_thin 50k 20.5k 2.4321"),
        ("loss", "wide_shallow 115k 131k 2.0999"),
        ("tokens", "50k"),
        ("flops", "50k"),
        ("state", "failed"),
        ("time", "failed"),
    ],
)
def test_sort_orders(study: Path, sort: str, first: str) -> None:
    done = slm("runs", study, "--sort", sort)
    assert all(word in rows(done.stdout)[0] for word in first.split())


def test_runs_without_a_value_are_last(study: Path) -> None:
    for sort in ("loss", "flops"):
        assert "failed" in rows(slm("runs", study, f"sort={sort}").stdout)[-1]


def test_json_has_the_fields_of_every_run(study: Path) -> None:
    (one,) = json.loads(slm("runs", study, "--json", "--sort", "loss").stdout)
    assert one["best"] == one["runs"][0]["run_id"] and len(one["runs"]) == 5
    assert one["runs"][0]["differs"] == ["lr 0.008", "precision bf16"]
    assert (
        one["runs"][0]["tokens"] == 131_072 and one["runs"][-1]["val_loss_nats_per_token"] is None
    )
    on_disk = sum(file.stat().st_size for file in study.rglob("*") if file.is_file())
    assert one["disk_bytes"] == on_disk == sum(run["disk_bytes"] for run in one["runs"])


def test_superseded_runs_and_trunks_are_counted_with_their_disk_use(study: Path) -> None:
    set_aside(make_run(study, seed=3))
    trunk = study / TRUNKS / "deep_thin-L4-d32-s0-0123abcd"
    trunk.mkdir(parents=True)
    (trunk / "step-00000001.ckpt").write_bytes(bytes(3_000_000))
    done = slm("runs", study)
    shown = " ".join(done.stdout.split())
    assert "1 superseded (" in shown and "1 trunk (3 MB)" in shown
    assert len(rows(done.stdout)) == 5


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("config.yaml", None, "config.yaml is missing"),
        ("config.yaml", "", "config.yaml is damaged"),
        ("config.yaml", "size: [1, {a: b}", "config.yaml is damaged"),
        ("config.yaml", "family: {name: x}\nmodel: [{a: b}]", "config.yaml is damaged"),
        ("config.yaml", "\udcff", "config.yaml is damaged"),
        ("result.json", None, "result.json is missing"),
        ("result.json", '{"schema_ver', "result.json is damaged"),
        ("result.json", '{"schema_version": 1}', "result.json is damaged"),
        ("result.json", "[]", "result.json is damaged"),
    ],
)
def test_damaged_run_is_listed_with_its_problem(
    study: Path, file: str, content: str | None, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    run = make_run(study, seed=9)
    (run / file).unlink()
    if content is not None:
        (run / file).write_text(content, errors="surrogateescape")
    (row,) = (row for row in rows(slm("runs", study).stdout) if run.name[-8:] in row)
    assert "damaged" in row and problem in row


def test_empty_and_unreadable_run_directories_are_listed(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    (study / "deep_thin-L4-d32-0.0105Mtok-s7-0123abcd").mkdir()
    (make_run(study, seed=8, loss=None) / "status.json").write_text("{")
    done = slm("runs", study)
    assert done.returncode == 0 and len(rows(done.stdout)) == 7
    (row,) = (row for row in rows(done.stdout) if "0123abcd" in row)
    assert all(word in row for word in ("deep_thin", "L4-d32", "10.5k", "7", "damaged"))


def test_missing_folder_is_a_clear_error(study: Path) -> None:
    done = slm("runs", study.parent / "mime")
    assert done.returncode == 1
    assert done.stderr.strip() == f"{study.parent / 'mime'}: no such folder; did you mean {study}?"
    assert slm("runs", study.parent.parent / "absent").stderr.endswith("train some runs first\n")
    assert "a file" in slm("runs", Path(__file__)).stderr


def test_losses_on_other_validation_sets_are_not_best(study: Path) -> None:
    make_run(study, seed=5, loss=1.0, result={"val_fingerprint": "another"})
    done = slm("runs", study)
    assert "2 validation sets, whose losses are not comparable" in done.stdout
    (marked,) = (row for row in rows(done.stdout) if row.startswith("*"))
    assert "2.0999" in marked


def test_difference_of_two_runs(study: Path) -> None:
    other = {"optimizer": {"lr": 0.001}, "trainer": {"threads": 2}, "plan": {"tau": 0.5}}
    one = make_run(study, seed=6, loss=2.25)
    two = make_run(study, seed=6, loss=2.75, result={"peak_lr": 0.001}, **other)
    for run, torch in ((one, "2.10"), (two, "2.11")):
        env = {"versions": {"torch": torch, "numpy": "2"}, "command": [run.name]}
        (run / "env.json").write_text(json.dumps(env))
    done = slm("runs", "diff", one, two)
    assert done.returncode == 0, done.stderr
    science, execution, results = re.split("Other settings|Results", done.stdout)
    assert "optimizer.lr" in science and "0.004  0.001" in science and "threads" not in science
    assert "trainer.threads" in execution and "plan.tau" not in done.stdout
    assert "2.2500" in results and "2.7500" in results
    assert "A minus B: -0.5000 nats/token" in " ".join(results.split())
    assert "versions.torch" in results and "numpy" not in results and one.name not in results
    content = json.loads(slm("runs", "diff", one, two, "--json").stdout)
    assert content["science"] == {"optimizer.lr": [0.004, 0.001]}
    assert content["environment"] == {"versions.torch": ["2.10", "2.11"]}


def test_losses_of_other_data_are_not_compared(study: Path) -> None:
    one = make_run(study, seed=6)
    two = make_run(study, seed=7, result={"val_fingerprint": "another"})
    shown = " ".join(slm("runs", "diff", one, two).stdout.split())
    assert "different validation set: the losses are not comparable" in shown
    assert "A minus B" not in shown


def test_run_is_found_by_the_start_of_its_id_hash_or_name(study: Path) -> None:
    one, two = make_run(study, "odd", seed=3), make_run(study, "even", seed=4)
    where = f"--runs-dir={study.parent}"
    for first in (one, one.name[:5], one.name[-8:], "odd 50k, 20.5k"):
        done = slm("runs", "diff", first, two.name, where)
        assert done.returncode == 0 and str(one) in done.stdout, done.stderr
    done = slm("runs", "diff", "deep_thin", two.name, where)
    assert done.returncode == 1 and "3 runs of" in done.stderr and "give more" in done.stderr
    done = slm("runs", "diff", "zzz", two.name, where)
    assert done.returncode == 1 and "no run of" in done.stderr
