"""What train.py and sweep.py share: the command line to Hydra, and errors to exit codes.

Hydra would stop at the first override it does not know. Here every override is let through
(`key=value` becomes `++key=value`), and `slm.config` then reports all problems at once, with the
nearest valid name; `+typo=1` gets no further than a plain typo.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slm.config import load_config
from slm.errors import ConfigError, Diverged, Interrupted, Problem, SlmError
from slm.run_spec import RunSpec, branch_specs
from slm.schema import Config, default_tree, field_descriptions
from slm.tracking.record import RunDirectory
from slm.tracking.result import RunResult
from slm.tracking.trunk import Trunk
from slm.training.launch import check_launch, find_place
from slm.training.team import ALONE, Team, assembled

log = logging.getLogger("slm")
CONF_DIR = Path(__file__).resolve().parents[1] / "conf"
OVERRIDE = re.compile(r"^\+{0,2}(?P<key>[A-Za-z_][\w.]*)=")


def run_app(main: Callable[[], Any]) -> NoReturn:
    """Run a Hydra app and exit: 0 done, 1 failed, 2 wrong config, 128 + n stopped by signal n."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us instead of Hydra's printer
    sys.argv[1:] = [let_through(argument, CONF_DIR) for argument in sys.argv[1:]]
    register_schema()
    guarded(main)


def compose_config(overrides: Sequence[str]) -> Config:
    """The config of `python train.py` with these overrides, composed without running it.

    Raises:
        ConfigError: listing everything that is wrong with it.
    """
    register_schema()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        passed = [let_through(override, CONF_DIR) for override in overrides]
        return config_of(compose("train", overrides=passed))


class Composer:
    """Configs of the cells of a study: overrides, then the grid's keys and values.

    Hydra takes a tenth of a second to compose, so what differs in plain keys alone is composed once.
    """

    def __init__(self, compose: Callable[[list[str]], DictConfig]):
        self._compose = compose
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, overrides: Sequence[str], varied: Mapping[str, Any]) -> Config:
        groups = {key for key in varied if (CONF_DIR / key).is_dir()}
        asked = (*overrides, *(f"{key}={varied[key]}" for key in varied if key in groups))
        if asked not in self._composed:
            passed = [let_through(override, CONF_DIR) for override in asked]
            self._composed[asked] = self._compose(passed)
        cfg = copy.deepcopy(self._composed[asked])
        for key, value in varied.items():
            if key not in groups:
                OmegaConf.update(cfg, key, value, force_add=True)
        return config_of(cfg)


def guarded(main: Callable[[], Any]) -> NoReturn:
    """Run `main` and exit with a message and a code where it fails."""
    _log_to_console()
    try:
        main()
    except SlmError as error:
        _exit("" if error.was_shown else str(error), error.exit_code)
    except yaml.YAMLError as error:
        _exit(f"a file of conf/ is not YAML: {error}", ConfigError.exit_code)
    except MissingConfigException as error:
        _exit(_missing_option(error), ConfigError.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        _exit(f"the configuration could not be composed: {error}", ConfigError.exit_code)
    except OSError as error:
        _exit(_file_error(error), 1)
    except KeyboardInterrupt as stop:
        # Of a job in a grid the signal that stopped it: schedulers requeue by the exit code.
        cause = stop.__cause__
        _exit("stopped", cause.exit_code if isinstance(cause, Interrupted) else 130)
    sys.exit(0)


def let_through(argument: str, conf_dir: Path) -> str:
    """`model.n_layer=3` -> `++model.n_layer=3`; groups, flags and Hydra's own keys stay."""
    match = OVERRIDE.match(argument)
    if match is None or match["key"].startswith("hydra") or (conf_dir / match["key"]).is_dir():
        return argument
    return "++" + argument.lstrip("+")


def register_schema() -> None:
    """Give Hydra every key with its default, and a help page made from the schema."""
    store = ConfigStore.instance()
    store.store(name="schema", node=default_tree())
    keys = "\n".join(
        f"  {key}={_shown(value)}\n      {text}" for key, value, text in field_descriptions()
    )
    template = (
        "${hydra.help.header}\n\n"
        "Choose one option of a group (group=option):\n$APP_CONFIG_GROUPS\n\n"
        "Set any key (key=value). The values are the schema's; conf/ changes some of them, and\n"
        f"--cfg job shows the result:\n{keys}\n\n"
        "${hydra.help.footer}"
    )
    header = (
        "slm: deep or wide, below one billion parameters, under matched compute.\n\n"
        "  python train.py                               one deep-thin run, a minute or two on a laptop\n"
        "  python train.py experiment=smoke              every part of a run in seconds\n"
        "  python train.py -m family=deep_thin,wide_shallow size=128k,256k    a grid of runs\n"
        "  python sweep.py study=demo                    a matched-compute study, then its report"
    )
    footer = "--hydra-help is about Hydra itself."
    node = {"app_name": "slm", "header": header, "footer": footer, "template": template}
    store.store(group="hydra/help", name="slm", node=node)


def config_of(cfg: DictConfig) -> Config:
    """The typed config of what Hydra composed.

    Raises:
        ConfigError: listing everything that is wrong with it.
    """
    try:
        tree = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        key = str(error.full_key) if error.full_key else "config"
        value = OmegaConf.to_container(cfg, resolve=False)
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        raise ConfigError([Problem(key, value, str(error).splitlines()[0])]) from None
    assert isinstance(tree, dict)
    return load_config({str(key): value for key, value in tree.items()})


def train_job(cfg: DictConfig) -> float | None:
    """Train what a composed config asks for, unless it is done; say where everything is.

    Returns the validation loss of its longest run, which a sweeper such as Optuna's makes small.

    In a multirun an error is shown and raised, so that the other jobs go on, but a request to stop
    ends them all.
    """
    _log_to_console()  # again, for a job in a process of its launcher's
    try:
        with assembled(find_place(os.environ), log.error) as team:
            if not team.leads:
                log.setLevel(logging.CRITICAL)
            with team.together():
                config = config_of(cfg)
            return train_all(config, team)
    except SlmError as error:
        if isinstance(error, Interrupted):
            _hand_on(error.signal_number)
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            _exit("" if error.was_shown else str(error), error.exit_code)
        if not error.was_shown:
            log.error("%s", error)
        error.was_shown = True
        if isinstance(error, Interrupted):
            raise KeyboardInterrupt from error
        raise


def _hand_on(number: int) -> None:
    """Let whoever listened for a signal before us have it, now that the state is saved.

    That is how a launcher's own handler gets to put the job back into the queue.
    """
    if number != signal.SIGINT and callable(signal.getsignal(number)):
        signal.raise_signal(number)


def train_all(config: Config, team: Team = ALONE) -> float | None:
    """The run of a config, or all branches of its trunk; a branch that fails does not stop others.

    Returns the final loss of the longest, in nats per token, where this process leads.

    Raises:
        InUse: if somebody else is at this run or this trunk.
        SlmError: the first failure, after all branches.
    """
    with team.together():
        check_launch(config.trainer, team.world_size, team.local_rank)
        specs = branch_specs(config)
        runs = [RunDirectory.of(spec) for spec in specs]
    trunk = Trunk.of(specs[0])
    with ExitStack() as held:
        if trunk is not None and len(specs) > 1:
            team.decide(lambda: _hold(trunk, held))
        if trunk is not None and config.rerun:
            team.decide(trunk.forget)
        _train_each(specs, runs, team)
    result = runs[-1].result() if team.leads else None
    return None if result is None else result.val_loss_nats_per_token


def _hold(trunk: Trunk, held: ExitStack) -> None:
    held.callback(trunk.lease.take().release)


def _train_each(specs: Sequence[RunSpec], runs: Sequence[RunDirectory], team: Team) -> None:
    failures: list[SlmError] = []
    for spec, run in zip(specs, runs, strict=True):
        try:
            _train(spec, run, team)
        except Interrupted:
            raise
        except SlmError as error:
            if len(specs) > 1:
                log.error("%s: %s", spec.run_id, error)
            failures.append(error)
    if failures:
        raise failures[0]


def _train(spec: RunSpec, run: RunDirectory, team: Team) -> None:
    if not team.decide(lambda: _is_to_do(spec, run)):
        return
    with ExitStack() as held:
        team.decide(lambda: _claim(spec, run, held))
        from slm.training.runner import train  # torch and lightning take seconds to import

        result = train(spec, run, team)
    if result is not None:
        log.info("finished: validation %s; everything is in %s", _measured(result), run.path)


def _is_to_do(spec: RunSpec, run: RunDirectory) -> bool:
    state = run.state()
    if state == "finished" and not spec.config.rerun:
        run.result()  # raises if it cannot be read
        log.info("already finished, nothing to do (rerun=true starts over): %s", run.path)
        return False
    if state == "diverged" and not spec.config.rerun:
        raise Diverged(f"this run diverged before (rerun=true starts over): {run.path}")
    return True


def _claim(spec: RunSpec, run: RunDirectory, held: ExitStack) -> None:
    held.enter_context(run.claim(spec, rerun=spec.config.rerun))
    held.enter_context(_log_to_file(run.path / "log.txt"))
    log.info("%s: %s steps, %.3g FLOPs", spec.run_id, f"{spec.steps:,}", spec.flops)


def _measured(result: RunResult) -> str:
    said = [f"{result.val_loss_nats_per_token:.4f} nats/token"]
    if result.val_bits_per_byte is not None:
        said.append(f"{result.val_bits_per_byte:.4f} bits/byte")
    errors = result.val_errors or {}
    return ", ".join([*said, *(f"error {share:.2%} at {group}" for group, share in errors.items())])


def _log_to_console() -> None:
    if log.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


@contextmanager
def _log_to_file(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def _exit(message: str, code: int) -> NoReturn:
    if message:
        print(message, file=sys.stderr)
    sys.exit(code)


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ",".join(map(str, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    options = sorted(error.options or [])
    near = get_close_matches(option, options, n=1)
    fix = (f"did you mean {near[0]}? " if near else "") + f"there are: {', '.join(options)}"
    return str(ConfigError([Problem(group or "config", option, "no such option", fix)]))


def _file_error(error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    place = error.filename or "a file"
    return f"cannot use {place}: {reason}; check runs_dir and cache_dir"
