"""Compose configs with Hydra; register the schema.

Hydra stops at the first unknown key. `add_force_prefix` turns `key=value` into `++key=value`, which Hydra
accepts for any key, so that `slm.config.load` reports all problems at once, each with the nearest valid
name. It reports `+typo=1` like `typo=1`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slm.config.help import sweep_help, train_help
from slm.config.load import load_config
from slm.config.schema import Config, default_tree
from slm.errors import ConfigError, Problem

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"
REPLACED_TABLES = {"++plan.mfu"}  # one curve: entries of another table would change it
OVERRIDE = re.compile(r"^\+{0,2}(?P<key>[A-Za-z_][\w.]*)=")


def compose_config(overrides: Sequence[str], config_name: str = "train") -> Config:
    """Return the config that `python train.py` would use with these overrides, or sweep.py for the name "sweep".

    Raises:
        ConfigError: listing all problems of the config.
    """
    register_schema()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return load_composed_config(compose(config_name, overrides=convert_overrides(overrides)))


class Composer:
    """Composer of the configs of a study's cells: overrides, then the keys and values that vary.

    Composing takes Hydra 0.1 s, so the results are cached: configs that differ only in plain keys, not in
    options of config groups, are composed once.
    """

    def __init__(self, compose: Callable[[list[str]], DictConfig]):
        self._compose = compose
        self._cache: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, overrides: Sequence[str], varied: Mapping[str, Any]) -> Config:
        groups = {key for key in varied if (CONF_DIR / key).is_dir()}
        requested = (*overrides, *(f"{key}={varied[key]}" for key in varied if key in groups))
        if requested not in self._cache:
            self._cache[requested] = self._compose(convert_overrides(requested))
        cfg = copy.deepcopy(self._cache[requested])
        for key, value in varied.items():
            if key not in groups:
                OmegaConf.update(cfg, key, value, force_add=True)
        return load_composed_config(cfg)


def compose_study(overrides: Sequence[str]) -> tuple[Config, Composer]:
    """Return the config of these overrides of train.py, and a composer of the cells of its study.

    Raises:
        ConfigError: listing all problems of the config.
    """

    def compose_with(extra: Sequence[str]) -> DictConfig:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return compose("train", overrides=[*convert_overrides(overrides), *extra])

    register_schema()
    return load_composed_config(compose_with([])), Composer(compose_with)


def convert_overrides(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of the command line with the meaning that slm gives to them, for Hydra.

    Hydra merges a table with the table in conf/. Those of `REPLACED_TABLES` replace it: the key is first set to
    null.
    """
    converted = []
    for argument in arguments:
        passed = add_force_prefix(argument, CONF_DIR)
        key = passed.partition("=")[0]
        if key in REPLACED_TABLES:
            converted.append(f"{key}=null")
        converted.append(passed)
    return converted


def add_force_prefix(argument: str, conf_dir: Path) -> str:
    """Return `++model.n_layer=3` for `model.n_layer=3`; return groups, flags and Hydra's keys unchanged.

    The keys of a launcher get the prefix too: the launchers report unknown ones themselves.
    """
    match = OVERRIDE.match(argument)
    if match is None or (conf_dir / match["key"]).is_dir():
        return argument
    if match["key"].startswith("hydra") and not match["key"].startswith("hydra.launcher."):
        return argument
    return "++" + argument.lstrip("+")


def register_schema() -> None:
    """Register every key with its default, and the help of train.py and sweep.py, with Hydra."""
    store = ConfigStore.instance()
    store.store(name="schema", node=default_tree())
    for name, template in (("train", train_help(CONF_DIR)), ("sweep", sweep_help(CONF_DIR))):
        node = {"app_name": name, "header": "", "footer": "", "template": template}
        store.store(group="hydra/help", name=name, node=node)


def load_composed_config(cfg: DictConfig) -> Config:
    """Convert a config that Hydra composed into the typed config.

    Raises:
        ConfigError: listing all problems of the config.
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
