"""Every command of README.md and docs/ composes to a valid run or study, or has arguments that its parser knows."""

from __future__ import annotations

import importlib.util
import itertools
import re
import tomllib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from analysis import __main__ as analysis_command
from hydra_plugins.slm_study.sweeper import _check_overrides
from slm.__main__ import parse as parse_slm
from slm.config.hydra import (
    CONF_DIR,
    Composer,
    add_force_prefix,
    compose_config,
    load_composed_config,
    register_schema,
)
from slm.config.schema import Config
from slm.data.tokens.prepare import prepared_folder
from slm.errors import ConfigError
from slm.run.spec import branch_specs
from slm.studies.checks import check_study
from slm.studies.expand import cells_of
from slm.training.distributed.rank import check_launch
from tests.conftest import ROOT
from tests.pages import OTHER_PROGRAMS, PAGES, Command, Page, all_commands, command_lines


def cells_key(command: Command) -> tuple[str, ...]:
    """Return what determines the cells of a study command: not the action, and not the launcher."""
    other = ("action=", "hydra.", "hydra/")
    return tuple(a for a in command.arguments if "=" in a and not a.startswith(other))


ALL = all_commands()
TRAIN = [c for c in ALL if c.name == "train.py"]
SWEEP = [c for c in ALL if c.name == "sweep.py"]
SWEEPS_WITH_SAME_CELLS = [
    list(group) for _, group in itertools.groupby(sorted(SWEEP, key=cells_key), cells_key)
]
SLM = [c for c in ALL if c.name == "slm" and {*c.arguments} - {"--help"}]
ANALYSIS = [c for c in ALL if c.name == "analysis" and c.arguments]
OTHER = [c for c in ALL if c.name in ("make", "install") or c.name.startswith("tests.")]
# A study with these alone has the cells that tests/slm/config/test_all_configs.py expands.
UNRELATED_TO_CELLS = {"study", "action", "trainer", "trainer.devices", "tracking", "runs_dir"}
PLACEHOLDERS = {"study=NAME": "study=demo", "study=mine": "study=demo"}


def test_commands_of_all_kinds_are_found() -> None:
    assert len(TRAIN) >= 15 and len(SWEEP) >= 25 and len(SLM) >= 10 and len(ANALYSIS) >= 4
    assert {"torchrun", "srun"} <= {c.program[0] for c in TRAIN}
    known = {"train.py", "sweep.py", "slm", "analysis", "make", "install"}
    assert {c.name for c in ALL if not c.name.startswith("tests.")} == known


def test_actions_exist() -> None:
    known = get_args(get_args(get_type_hints(Config)["action"])[0])
    named = {a for c in ALL if c.name == "sweep.py" for a in c.arguments if a.startswith("action=")}
    assert named <= {f"action={name}" for name in known}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_line_of_a_block_without_language_is_a_command(page: Page) -> None:
    """A block that is not for the shell has a language, so that no command is left out by mistake."""
    lines = [line for block in page.blocks("") for line, _ in command_lines(block)]
    assert not [
        line for line in lines if page.parse(line) is None and not line.startswith(OTHER_PROGRAMS)
    ]


@pytest.mark.parametrize("command", TRAIN, ids=str)
def test_training_command_resolves_to_runs(command: Command) -> None:
    overrides = [a for a in command.arguments if "=" in a]
    if "problems in the configuration" in command.output:
        with pytest.raises(ConfigError) as caught:
            compose_config(overrides)
        assert str(caught.value).strip() == command.output.strip()
        return
    for job in jobs_of(overrides, is_multirun="-m" in command.arguments):
        config = compose_config(job)
        for spec in branch_specs(config):
            assert spec.steps > 0
        check_launch(config.trainer, *processes_of(command))


def jobs_of(overrides: Sequence[str], *, is_multirun: bool) -> Iterator[list[str]]:
    """Yield the overrides of each job of a multirun; of an interval only the start."""
    available = [a for a in overrides if "=optuna" not in a or find_spec("optuna")]
    available = [a for a in available if not a.startswith("hydra/launcher=")]
    if not is_multirun:
        yield available
        return
    choices = []
    for override in OverridesParser.create().parse_overrides(available):
        key, value = override.get_key_element(), override.value()
        if override.is_sweep_override() and hasattr(value, "start"):
            choices.append([f"{key}={value.start}"])
        elif override.is_sweep_override():
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([str(override.input_line)])
    yield from map(list, itertools.product(*choices))


def processes_of(command: Command) -> tuple[int, int]:
    """Return the world size that torchrun or srun starts, and the largest local rank."""
    options = dict(word.split("=", 1) for word in command.program if word.startswith("--"))
    per_node = int(options.get("--nproc-per-node") or options.get("--ntasks-per-node") or 1)
    nodes = int(options.get("--nnodes") or options.get("--nodes") or 1)
    return nodes * per_node, per_node - 1


@pytest.fixture
def _hydra() -> Iterator[None]:
    register_schema()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        yield


@pytest.mark.usefixtures("_hydra")
@pytest.mark.parametrize("commands", SWEEPS_WITH_SAME_CELLS, ids=lambda commands: str(commands[0]))
def test_study_commands_expand_to_cells(commands: list[Command]) -> None:
    if not any(argument.startswith("study=") for argument in commands[0].arguments):
        assert not commands[0].arguments, "a study command without a study"
        return
    for command in commands:
        arguments = [PLACEHOLDERS.get(a, a) for a in command.arguments if "=" in a]
        arguments = [add_force_prefix(argument, CONF_DIR) for argument in arguments]
        _check_overrides(arguments)
        config = load_composed_config(compose_study(arguments))
        check_study(config)
        if config.study.name in command.output:
            assert f"study {config.study.name} is REFUSED" in command.output
    if not {key_of(a) for a in arguments} <= UNRELATED_TO_CELLS:
        composer = Composer(lambda overrides: compose_study([*arguments, *overrides]))
        assert len(cells_of(config, composer)) > 0


def key_of(override: str) -> str:
    return override.lstrip("+").partition("=")[0]


def compose_study(arguments: Sequence[str]) -> DictConfig:
    cfg = compose("sweep", list(arguments))
    assert isinstance(cfg, DictConfig)
    return cfg


@pytest.mark.parametrize("command", SLM, ids=str)
def test_slm_command_has_known_arguments(command: Command) -> None:
    _, arguments = parse_slm(command.arguments)
    if "overrides" in arguments:
        compose_config(arguments["overrides"])


@pytest.mark.parametrize("command", ANALYSIS, ids=str)
def test_analysis_command_has_known_options(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["analysis", "--help"])
    with pytest.raises(SystemExit):
        analysis_command.main()
    documentation = capsys.readouterr().out
    options = [argument for argument in command.arguments if argument.startswith("--")]
    assert "--out" in options
    assert not [option for option in options if f"{option} " not in documentation]


@pytest.mark.parametrize("command", OTHER, ids=str)
def test_targets_extras_and_options_exist(command: Command) -> None:
    if command.name == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(command.arguments) <= set(targets)
    elif command.name == "install":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = re.findall(r"\.\[([\w,]+)\]", " ".join(command.arguments))
        named = {name for group in extras for name in group.split(",")}
        assert named <= set(project["optional-dependencies"])
    else:
        spec = importlib.util.find_spec(command.name)
        assert spec is not None and spec.origin is not None
        folder = ROOT / "tests" / "benchmarks"
        sources = [(folder / "paired.py").read_text(), Path(spec.origin).read_text()]
        for option in (a for a in command.arguments if a.startswith("--")):
            assert any(f'"{option}"' in source for source in sources), option


@pytest.mark.usefixtures("_hydra")
def test_data_prepared_for_a_cluster_are_those_of_the_study() -> None:
    """On nodes without network a study can only use data that were prepared with the same settings."""
    (page,) = (p for p in PAGES if p.name == "docs/clusters.md")
    (block,) = (b for b in page.blocks("") if "[slurm]" in b)
    commands = [page.parse(line) for line in block.splitlines()]
    prepare, sweep = (c for c in commands if c is not None and c.name in ("slm", "sweep.py"))
    folders = []
    for name, arguments in (("train", prepare.arguments[1:]), ("sweep", sweep.arguments)):
        cfg = compose(name, [add_force_prefix(a, CONF_DIR) for a in arguments])
        assert isinstance(cfg, DictConfig)
        folders.append(prepared_folder(load_composed_config(cfg)))
    assert folders[0] == folders[1]
