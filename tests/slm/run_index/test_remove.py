"""`python -m slm runs rm`: what it removes, what it never removes, and the question."""

from __future__ import annotations

import builtins
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from slm.errors import InUse
from slm.formatting import DAY
from slm.run_index import remove
from slm.run_index.scan import freed_bytes
from slm.tracking.run_dir import RunDirectory
from slm.tracking.trunk import FOLDER as TRUNKS
from slm.tracking.trunk import Trunk
from tests.slm.run_index.made import make_run, set_aside, slm


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Return a study with three finished runs, a superseded one, a trunk and a report."""
    study = tmp_path / "runs" / "mine"
    for family in ("deep_thin", "balanced", "wide_shallow"):
        make_run(study, family)
    set_aside(make_run(study, "deep_thin", seed=1))
    trunk = study / TRUNKS / "deep_thin-L4-d32-s0-0123abcd"
    for folder in (trunk, study / "report"):
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
    return study


def content(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def rm(study: Path, *words: object) -> tuple[int, str]:
    done = slm("runs", "rm", *words, f"runs_dir={study.parent}")
    return done.returncode, done.stdout + done.stderr


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", lambda question: print(question) or text)


def test_without_a_terminal_nothing_is_removed(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    before = content(study)
    code, shown = rm(study, "mine")
    assert code == 2 and "add --yes" in shown and f"{study}  (study of 3 runs)" in shown
    assert content(study) == before


@pytest.mark.parametrize(
    ("text", "is_removed"), [("y", True), ("YES", True), ("", False), ("n", False)]
)
def test_question_shows_the_size_and_only_yes_removes(
    study: Path, text: str, is_removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, text)
    code, shown = rm(study, "balanced")
    assert code == 0 and "Remove this run, freeing " in shown and "KB? [y/N]" in shown
    assert any(study.glob("balanced*")) != is_removed
    assert len([*study.glob("*_*-L4*")]) == 2


def test_files_that_a_trunk_keeps_are_not_freed(study: Path) -> None:
    one, two = make_run(study, seed=7), make_run(study, seed=8)
    (trunk,) = (study / TRUNKS).iterdir()
    (trunk / "step-00000001.ckpt").write_bytes(bytes(5_000_000))
    for run in (one, two):
        os.link(trunk / "step-00000001.ckpt", run / "file")
    os.link(one / "config.yaml", two / "shared")
    whole = sum(path.stat().st_size for path in (one / "config.yaml", one / "status.json"))
    whole += (one / "result.json").stat().st_size
    assert freed_bytes(one) == whole - (one / "config.yaml").stat().st_size
    assert freed_bytes(one, two) > whole > 0 and freed_bytes(one, two) < 1e6
    assert 5e6 < freed_bytes(one, two, trunk) < 6e6
    assert "share checkpoints" in slm("runs", study).stdout
    _, shown = rm(study, "mine", "--yes")
    assert re.search(r"^frees +5(\.\d+)? MB  .*study of 5 runs", shown, re.MULTILINE)
    assert re.search(r"removed; 5(\.\d+)? MB freed", shown)


def test_study_is_removed_as_a_whole(study: Path) -> None:
    (study / "lr_tuning.json").write_text("{}")
    code, shown = rm(study, "mine", "--yes")
    assert code == 0 and "removed" in shown and "kept" not in shown
    assert not study.exists() and study.parent.is_dir()


def test_files_that_slm_did_not_write_are_kept_and_named(study: Path) -> None:
    (study / "notes.txt").write_text("mine")
    (study / "figures").mkdir()
    _, shown = rm(study, study, "--yes")
    assert f"kept in {study}: figures, notes.txt" in shown
    assert content(study) == {study / "notes.txt", study / "figures"}


def test_a_run_is_removed_by_path_hash_or_name(study: Path) -> None:
    one, two, three = sorted(study.glob("*-L4*"))
    assert rm(study, one, two.name[-8:], "wide_shallow 50k", "--yes")[0] == 0
    assert not any(path.exists() for path in (one, two, three))
    assert len(list(study.glob(".superseded/*"))) == 1 and (study / TRUNKS).is_dir()


@pytest.mark.parametrize("named", ["run", "study"])
def test_a_run_in_use_is_never_removed(study: Path, named: str) -> None:
    run = next(study.glob("balanced*"))
    held = RunDirectory(run).lease.take()
    before = content(study)
    code, shown = rm(study, run if named == "run" else study, "--yes")
    assert code == InUse.exit_code and f"{run} is in use by process {os.getpid()}" in shown
    assert content(study) == before
    held.release()


def test_a_study_whose_trunk_is_trained_is_not_removed(study: Path) -> None:
    """The names of two trunks of a family made from a ratio differ after a dot."""
    (trunk,) = (study / TRUNKS).iterdir()
    used, other = (trunk.with_name(f"aspect_13.5-L{n}-d32-s0-0123abcd") for n in (2, 4))
    trunk.rename(used)
    other.mkdir()
    held = Trunk(used).lease.take()
    assert Trunk(other).lease.owner() is None
    assert Trunk(study / "none" / TRUNKS / other.name).lease.owner() is None
    assert not (study / "none").exists()  # reading the owner writes nothing
    before = content(study)
    assert rm(study, study, "--yes")[0] == InUse.exit_code and content(study) == before
    held.release()


def test_a_study_whose_trunk_has_no_checkpoint_yet_is_not_removed(study: Path) -> None:
    trunk = Trunk(study / TRUNKS / "deep_thin-L4-d32-s7-0123abcd")
    held = trunk.lease.take()
    before = content(study)
    assert rm(study, study, "--yes")[0] == InUse.exit_code and content(study) == before
    held.release()
    trunk.lease.path.write_text("")  # left by a process that was killed
    assert rm(study, study, "--yes")[0] == 0 and not study.exists()


def test_a_run_that_starts_during_the_removal_keeps_its_files(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = next(study.glob("balanced*"))
    removed: list[Path] = []

    def start_then_remove(path: Path, **options: Any) -> None:
        run.mkdir()  # fails if the old directory is still there
        held = RunDirectory(run).lease.take()
        (run / "new").write_text("new")
        held.release()
        removed.append(path)
        rmtree(path, **options)

    rmtree = shutil.rmtree
    monkeypatch.setattr(remove.shutil, "rmtree", start_then_remove)
    assert rm(study, run, "--yes")[0] == 0
    assert {path.name for path in run.iterdir()} == {"new"}
    assert not removed[0].exists() and removed[0] != run


def test_symbolic_links_are_not_followed(study: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    kept = make_run(outside, "kept")
    link = study / kept.name.replace("kept", "linked")
    link.symlink_to(kept)
    (study.parent / "other").symlink_to(outside)
    for target in (link, study.parent / "other", study.parent / "other" / kept.name):
        code, shown = rm(study, target, "--yes")
        assert code == 1 and "is a symbolic link to" in shown
    shutil.rmtree(study / TRUNKS)
    (study / TRUNKS).symlink_to(outside)
    _, shown = rm(study, study, "--yes")
    assert f"kept in {study}: {TRUNKS}, {link.name}" in shown
    assert (kept / "result.json").exists()


def test_folders_that_are_no_runs_are_refused(study: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "project"
    (foreign / "report").mkdir(parents=True)
    (foreign / "report" / "config.yaml").write_text("a: 1")
    for target in (foreign, foreign / "report", study.parent, study / "report", tmp_path):
        before = content(tmp_path)
        code, shown = rm(study, target, "--yes")
        assert code == 1 and "neither a run directory nor a study" in shown
        assert content(tmp_path) == before
    assert rm(study, "--yes")[0] == 2


def test_one_wrong_target_removes_nothing(study: Path) -> None:
    before = content(study)
    assert rm(study, "balanced", "zzz", "--yes")[0] == 1
    assert content(study) == before


def test_superseded_runs(study: Path) -> None:
    (old,) = study.glob(".superseded/*")
    assert rm(study, "--superseded", "days=1", "--yes")[1] == "nothing to remove\n"
    assert old.exists()
    assert rm(study, "--superseded", "--yes")[0] == 0
    assert not old.exists() and len(list(study.glob("*-L4*"))) == 3


def test_stale_runs(study: Path) -> None:
    """Interrupted, failed and planned runs are stale; those with a result or in use are not."""
    stale = [make_run(study, state=state, seed=seed, loss=None)
             for seed, state in enumerate(("interrupted", "failed", "planned", "running"), 10)]  # fmt: skip
    young = make_run(study, state="failed", seed=20, loss=None)
    used = make_run(study, state="running", seed=21, loss=None)
    make_run(study, state="failed", seed=22, loss=2.0)
    make_run(study, state="diverged", seed=23, loss=None)
    held = RunDirectory(used).lease.take()
    old = time.time() - 3 * DAY
    for run in stale:
        for path in (run, *run.iterdir()):
            os.utime(path, (old, old))
    runs = set(study.glob("*-L4*"))
    assert rm(study, "--stale", "days=2", "--yes")[0] == 0
    assert runs - set(study.glob("*-L4*")) == set(stale)
    assert rm(study, "mine", "--stale", "--yes")[0] == 0
    assert runs - set(study.glob("*-L4*")) == {*stale, young}
    held.release()


@pytest.mark.parametrize("target", [".", "../mine", f"{TRUNKS}/.."])
def test_a_target_may_be_relative_to_the_working_directory(
    study: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study)
    settings = {"superseded": False, "stale": False, "yes": True}
    with pytest.raises(remove.NotConfirmed, match="empty"):
        remove.remove([""], study.parent, None, **settings)
    assert study.exists()
    remove.remove([target], study.parent, None, **settings)
    assert not study.exists()
