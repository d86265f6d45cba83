"""Every file in conf/ composes to a valid config whose run can be resolved; every study has matched cells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from slm.config.hydra import Composer, load_composed_config, register_schema
from slm.config.schema import Config
from slm.data.tokenizers.hf_files import train_bpe
from slm.run.spec import RunSpec, resolve
from slm.studies.checks import check_study
from slm.studies.expand import cells_of
from slm.studies.plan_tables import rung_mismatch
from tests.conftest import ROOT

CONF = ROOT / "conf"
# Overrides that an option needs for a complete config.
COMPANIONS = {
    ("family", "arm_a"): ["ladder.aspect_ratios.arm=11"],
    ("family", "arm_b"): ["ladder.aspect_ratios.arm=11"],
    ("family", "aspect"): ["family.aspect_ratio=13"],
    ("family", "thinnest"): ["ladder.aspect_ratios.thinnest=2"],
    ("family", "widest"): ["ladder.aspect_ratios.widest=50", "size=800k"],
    ("family", "gqa_4"): ["size=800k"],
    ("family", "shared"): ["size=200k"],
    ("family", "custom"): ["model=tiny"],
    ("family", "mobilellm"): ["model=mobilellm_125m"],
    ("family", "tied"): ["model=d512"],
    ("family", "tied_deeper"): ["model=d512"],
    ("family", "untied"): ["model=d512"],
    ("study", "sub1b"): ["size=140m"],
    ("study", "small"): ["size=2m"],
    ("study", "gqa"): ["size=1.6m"],
    ("study", "layer_sharing"): ["size=1.6m"],
    ("data", "text_files"): [f"data.files=[{ROOT}/*.md]"],
    ("data", "jsonl"): [f"data.files=[{ROOT}/*.md]"],  # the files are read by prepare, not here
    ("data", "parquet"): [f"data.files=[{ROOT}/*.md]"],
    ("data", "hub"): ["data.repo=owner/name", f"data.revision={'0' * 40}"],
    ("tokenizer", "file"): ["tokenizer.path={tokenizer}"],
    ("tokenizer", "symbols"): ["data=khop"],
    ("ladder", "sub1b"): ["size=125m", "model.seq_len=2048"],
}

# Studies whose families differ in FLOPs on purpose.
UNMATCHED_STUDIES = {"tied_embeddings"}


def options() -> Iterator[tuple[str, str]]:
    for path in sorted(CONF.glob("*/*.yaml")):
        yield path.parent.name, path.stem


@pytest.fixture(scope="module", autouse=True)
def _hydra() -> Iterator[None]:
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str, name: str = "train") -> Config:
    cfg = compose(name, list(overrides))
    assert isinstance(cfg, DictConfig)
    return load_composed_config(cfg)


def composer(study: str) -> Composer:
    def compose_study(overrides: list[str]) -> DictConfig:
        cfg = compose("sweep", [f"study={study}", *overrides])
        assert isinstance(cfg, DictConfig)
        return cfg

    return Composer(compose_study)


@pytest.mark.parametrize(("group", "option"), options())
def test_each_option_resolves_to_a_run(group: str, option: str, tmp_path: Path) -> None:
    if option == "file":
        train_bpe(["some text"], 258).save(str(tmp_path / "tokenizer.json"))
    companions = [c.format(tokenizer=tmp_path) for c in COMPANIONS.get((group, option), [])]
    config = composed(f"{group}={option}", *companions)
    spec = resolve(config)
    assert isinstance(spec, RunSpec) and spec.steps > 0


def studies() -> list[str]:
    return [option for group, option in options() if group == "study" and option != "single"]


@pytest.mark.parametrize("study", studies())
def test_each_study_has_matched_cells(study: str) -> None:
    config = composed(f"study={study}", name="sweep")
    check_study(config)
    cells = cells_of(config, composer(study))
    assert len({cell.spec.run_id for cell in cells}) == len(cells)
    if study not in UNMATCHED_STUDIES:
        assert max(rung_mismatch(cells).values()) <= 0.03


@pytest.mark.parametrize("study", studies())
def test_overrides_of_a_cell_give_its_run_id(study: str) -> None:
    """The overrides sent to a launcher compose to the run that the plan shows."""
    config = composed(f"study={study}", name="sweep")
    cells = cells_of(config, composer(study))
    for cell in cells[:: max(1, len(cells) // 4)]:
        spec = resolve(composed(f"study={study}", *cell.overrides))
        assert spec.run_id == cell.spec.run_id


def test_command_line_overrides_an_experiment() -> None:
    assert composed("experiment=smoke", "size=128k").size == 128_000
    assert composed("experiment=smoke").size == 80_000
