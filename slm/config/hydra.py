"""Compose configs with Hydra; register the schema and the text of `--help`.

Hydra stops at the first unknown key. `add_force_prefix` turns `key=value` into `++key=value`, which Hydra
accepts for any key, so that `slm.config.load` reports all problems at once, each with the nearest valid
name. It reports `+typo=1` like `typo=1`.
"""

from __future__ import annotations

import copy
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slm.config.load import load_config
from slm.config.schema import Config, default_tree, field_descriptions
from slm.errors import ConfigError, Problem

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"
OVERRIDE = re.compile(r"^\+{0,2}(?P<key>[A-Za-z_][\w.]*)=")
HELP_TEXT = textwrap.TextWrapper(
    width=100, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
)


def compose_config(overrides: Sequence[str]) -> Config:
    """Return the config that `python train.py` would use with these overrides.

    Raises:
        ConfigError: listing all problems of the config.
    """
    register_schema()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        passed = [add_force_prefix(override, CONF_DIR) for override in overrides]
        return load_composed_config(compose("train", overrides=passed))


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
            passed = [add_force_prefix(override, CONF_DIR) for override in requested]
            self._cache[requested] = self._compose(passed)
        cfg = copy.deepcopy(self._cache[requested])
        for key, value in varied.items():
            if key not in groups:
                OmegaConf.update(cfg, key, value, force_add=True)
        return load_composed_config(cfg)


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
    """Register every key with its default, and a help text generated from the schema, with Hydra."""
    store = ConfigStore.instance()
    store.store(name="schema", node=default_tree())
    keys = "\n".join(
        f"  {key}={_format_value(value)}\n{HELP_TEXT.fill(' '.join(text.split()))}"
        for key, value, text in field_descriptions()
    )
    template = (
        "${hydra.help.header}\n\n"
        "Config groups; choose an option with group=option:\n$APP_CONFIG_GROUPS\n\n"
        "Keys; set one with key=value. The values below are the defaults of the schema, and the files in\n"
        f"conf/ change some of them. To print the values of a command, add --cfg job to it.\n{keys}\n\n"
        "${hydra.help.footer}"
    )
    header = (
        "slm compares deep and wide language models below one billion parameters at matched compute.\n\n"
        "  python train.py                       train one deep-thin model, 1 to 2 minutes on a laptop\n"
        "  python train.py experiment=smoke      train a tiny model in seconds, to test the installation\n"
        "  python train.py -m family=deep_thin,wide_shallow size=128k,256k\n"
        "                                        train a grid of models\n"
        "  python sweep.py study=demo            run a matched-compute study and write its report"
    )
    footer = "--hydra-help prints the help of Hydra."
    node = {"app_name": "slm", "header": header, "footer": footer, "template": template}
    store.store(group="hydra/help", name="slm", node=node)


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


def _format_value(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ",".join(map(str, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
