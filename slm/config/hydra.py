"""Composes configs with Hydra and registers the schema and the help page.

Hydra stops at the first override that it does not know. Here every override is passed on
(`key=value` becomes `++key=value`), and `slm.config.load` reports all problems at once, each with the
nearest valid name; `+typo=1` is refused like a plain typo.
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

from slm.config.load import load_config
from slm.config.schema import Config, default_tree, field_descriptions
from slm.errors import ConfigError, Problem

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"


OVERRIDE = re.compile(r"^\+{0,2}(?P<key>[A-Za-z_][\w.]*)=")


def compose_config(overrides: Sequence[str]) -> Config:
    """The config of `python train.py` with these overrides, composed without running it.

    Raises:
        ConfigError: listing everything that is wrong with it.
    """
    register_schema()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        passed = [add_force_prefix(override, CONF_DIR) for override in overrides]
        return load_composed_config(compose("train", overrides=passed))


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
            passed = [add_force_prefix(override, CONF_DIR) for override in asked]
            self._composed[asked] = self._compose(passed)
        cfg = copy.deepcopy(self._composed[asked])
        for key, value in varied.items():
            if key not in groups:
                OmegaConf.update(cfg, key, value, force_add=True)
        return load_composed_config(cfg)


def add_force_prefix(argument: str, conf_dir: Path) -> str:
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


def load_composed_config(cfg: DictConfig) -> Config:
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


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ",".join(map(str, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
