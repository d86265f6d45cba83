"""Every command of README.md composes to a valid run or study, and every override in its text exists."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from hydra_plugins.slm_study.sweeper import _check_overrides
from slm import __main__ as slm_command
from slm.config.hydra import (
    CONF_DIR,
    Composer,
    add_force_prefix,
    compose_config,
    load_composed_config,
    register_schema,
)
from slm.config.schema import field_descriptions
from slm.data.tokens.prepare import prepared_folder
from slm.errors import ConfigError
from slm.run.spec import branch_specs
from slm.studies.checks import check_study
from slm.studies.expand import cells_of
from slm.training.distributed.rank import check_launch
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
PROGRAMS = "python train.py", "python sweep.py", "python -m slm ", "torchrun ", "srun "
SCRIPTS = "train.py", "sweep.py"
OVERRIDE = re.compile(r"\+{0,2}([a-z][\w./]*)=(.+)")
# Keys whose last part is a name of the user's choice.
OPEN_KEYS = "ladder.aspect_ratios.", "study.grid.", "plan.law."
# Settings of `python -m slm`, and of launchers and torchrun, that the text mentions without their command.
OTHER_KEYS = {"hf", "out", "run", "text", "stride", "window", "jobs_per_gpu", "max_num_timeout"}


@dataclass(frozen=True)
class Command:
    """A command of the README: the words of the program, its arguments, and the text that it is quoted in."""

    program: tuple[str, ...]
    arguments: tuple[str, ...]
    shown: str
    output: str = ""
    """The text after the command in a block where commands begin with `$`."""

    @property
    def script(self) -> str:
        return self.program[-1]


def commands() -> list[Command]:
    return [*_block_commands(), *_inline_commands()]


def _block_commands() -> Iterator[Command]:
    """Yield the commands of fenced blocks; `...` stands for the arguments of the block's first command."""
    for block in FENCE.findall(README):
        if block.lstrip().startswith("import "):
            continue
        is_session = block.startswith("$ ")
        lines = block.replace("\\\n", " ").splitlines()
        first: tuple[str, ...] = ()
        for number, line in enumerate(lines):
            if is_session and not line.startswith("$ "):
                continue
            output = "\n".join(lines[number + 1 :]) if is_session else ""
            command = parse(line.removeprefix("$ "), output)
            if command is not None:
                if "..." in command.arguments:
                    command = _complete(command, first)
                first = first or command.arguments
                yield command


def _complete(command: Command, first: Sequence[str]) -> Command:
    given = [argument for argument in command.arguments if argument != "..."]
    keys = {argument.partition("=")[0] for argument in given}
    rest = [argument for argument in first if argument.partition("=")[0] not in keys]
    return Command(command.program, (*given, *rest), command.shown)


def _inline_commands() -> Iterator[Command]:
    for text in INLINE.findall(FENCE.sub("", README)):
        command = parse(" ".join(text.split()))
        if command is not None:
            yield Command(
                command.program, tuple(a for a in command.arguments if a != "..."), command.shown
            )


def parse(line: str, output: str = "") -> Command | None:
    """Return the command of a line, without comment and placeholders; None if it is not one of ours."""
    if not line.startswith(PROGRAMS):
        return None
    words = shlex.split(line, comments=True)
    for number, word in enumerate(words):
        is_slm = words[number : number + 2] == ["-m", "slm"]
        if word in SCRIPTS or is_slm:
            end = number + (2 if is_slm else 1)
            arguments = [a for a in words[end:] if not a.endswith("=...")]
            return Command(tuple(words[:end]), tuple(arguments), line, output)
    return None


ALL = commands()
TRAIN = [c for c in ALL if c.script == "train.py"]
SWEEP = [c for c in ALL if c.script == "sweep.py"]
SLM = [c for c in ALL if c.script == "slm"]


def ids(chosen: Sequence[Command]) -> list[str]:
    return [" ".join((c.script, *c.arguments))[:80] for c in chosen]


def test_commands_of_all_kinds_are_found() -> None:
    assert len(TRAIN) >= 9 and len(SWEEP) >= 20 and len(SLM) >= 5
    assert {"torchrun", "srun"} <= {c.program[0] for c in TRAIN}
    for script, found in (("train.py", TRAIN), ("sweep.py", SWEEP)):
        quoted = re.findall(rf"python {script}|torchrun[^`]*? {script}", README)
        assert len(found) == len(quoted)


@pytest.mark.parametrize("command", TRAIN, ids=ids(TRAIN))
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
@pytest.mark.parametrize("command", SWEEP, ids=ids(SWEEP))
def test_study_command_expands_to_cells(command: Command) -> None:
    arguments = [add_force_prefix(argument, CONF_DIR) for argument in command.arguments]
    # A placeholder, and the study that the README writes as an example.
    arguments = ["study=demo" if a in ("study=NAME", "study=mine") else a for a in arguments]
    _check_overrides(arguments)

    def compose_study(overrides: list[str]) -> DictConfig:
        cfg = compose("sweep", [*arguments, *overrides])
        assert isinstance(cfg, DictConfig)
        return cfg

    config = load_composed_config(compose_study([]))
    check_study(config)
    cells = cells_of(config, Composer(compose_study))
    assert len(cells) > 0
    if config.study.name in command.output:
        assert f"study {config.study.name} is REFUSED" in command.output


@pytest.mark.parametrize("command", SLM, ids=ids(SLM))
def test_slm_command_has_known_arguments(command: Command) -> None:
    name, *arguments = command.arguments
    assert name in slm_command.COMMANDS
    if name in ("describe", "prepare"):
        compose_config([a for a in arguments if a not in ("...", "--json")])
        return
    documentation = str(slm_command.__doc__)
    for argument in arguments:
        key, separator, _ = argument.partition("=")
        assert f"{key}{separator}" in documentation, argument


@pytest.mark.usefixtures("_hydra")
def test_data_prepared_for_a_cluster_are_those_of_the_study() -> None:
    """On nodes without network a study can only use data that were prepared with the same settings."""
    (block,) = (b for b in FENCE.findall(README) if "[slurm]" in b)
    prepare, sweep = filter(None, map(parse, block.splitlines()))
    folders = []
    for name, arguments in (("train", prepare.arguments[1:]), ("sweep", sweep.arguments)):
        cfg = compose(name, [add_force_prefix(a, CONF_DIR) for a in arguments])
        assert isinstance(cfg, DictConfig)
        folders.append(prepared_folder(load_composed_config(cfg)))
    assert folders[0] == folders[1]


def mentioned_overrides() -> list[str]:
    """Return the overrides in inline code that consists of overrides alone."""
    found = []
    for text in INLINE.findall(FENCE.sub("", README)):
        try:
            words = shlex.split(" ".join(text.split()))
        except ValueError:
            continue
        if all(OVERRIDE.fullmatch(word) for word in words):
            found += words
    return sorted(set(found))


def test_mentioned_overrides_exist() -> None:
    keys = {key for key, _, _ in field_descriptions()}
    wrong = []
    for override in mentioned_overrides():
        match = OVERRIDE.fullmatch(override)
        assert match is not None
        key, value = match.groups()
        if key.startswith("hydra/") or (CONF_DIR / key).is_dir():
            exists = value.isupper() or _is_option(key, value)
        else:
            is_free = key in OTHER_KEYS or key.startswith(("hydra.", *OPEN_KEYS))
            exists = is_free or key in keys
        if not exists:
            wrong.append(override)
    assert not wrong
    assert len(mentioned_overrides()) > 60


def _is_option(group: str, value: str) -> bool:
    if group.startswith("hydra/"):
        return value in {"basic", "local", "optuna", "ray", "slurm"}
    return all((CONF_DIR / group / f"{option}.yaml").exists() for option in value.split(","))


def test_example_study_has_known_keys() -> None:
    (block,) = (b for b in FENCE.findall(README) if b.startswith("# conf/study/mine.yaml"))
    known = {key for key, _, _ in field_descriptions()}
    content = yaml.safe_load(block)
    assert {f"{name}.{key}" for name, keys in content.items() for key in keys} <= known
