"""Random overrides end in a run or in one message, never in another exception, in bounded time."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from slm.cli import run_and_exit
from slm.config.hydra import (
    CONF_DIR,
    convert_overrides,
    load_composed_config,
    register_schema,
)
from slm.config.load import load_config
from slm.config.schema import default_tree, field_descriptions
from slm.run.spec import branch_specs
from slm.studies.checks import check_study

MAX_SECONDS = 60.0  # on a busy machine; an endless search would take longer
KEYS = [key for key, _, _ in field_descriptions()]
GROUPS = sorted(path.name for path in CONF_DIR.iterdir() if path.is_dir())
OPTIONS = sorted({path.stem for path in CONF_DIR.glob("*/*.yaml")})
WORDS = [
    "nan", "inf", "-inf", "1e400", "-1e308", "1e308", "1e18", "9" * 400, "0", "-1", "0.5", "1", "3", "7", "64", "1e-300",
    "1_000", "0x10", "1e5k", "125m", "1b", "k", "true", "null", "''", "[]", "{}", "[1,2]", "[null]", "[nan,1]", "{a:1}",
    "{a:{b:[1]}}", "[[1],[2]]", "a,b", "1,2", "'a b'", "\"x\"", "ü", "漢字", "'\u2028'", "a=b", "${seed}", "${nope}", "${",
    "${oc.env:NOPE}", "}", "]", "(", "'", "choice(1,2)", "range(1,3)", "*", "???", "@x", "!tag", "&a", "2026-11-29", "deep_thin",
    "wsd", "cosine", "flash", "bpe", "khop", "fsdp", "auto", "x" * 300,
]  # fmt: skip
printed = st.one_of(
    st.sampled_from(WORDS),
    st.integers(-(10**25), 10**25).map(str),
    st.integers(-3, 5000).map(str),
    st.floats().map(str),
    st.text(max_size=6),
)
keys = st.one_of(
    st.sampled_from([*KEYS, *KEYS, *GROUPS]),
    st.sampled_from(KEYS).map(lambda key: f"{key}.sub"),
    st.sampled_from(["", "a", "model.", ".seed", "study.grid.optimizer.lr", "ladder.aspect_ratios.x", "ü", "model.n_layer"]),
)  # fmt: skip
arguments = st.one_of(
    st.builds("{}={}".format, keys, printed),
    st.builds("{}={}".format, st.sampled_from(GROUPS), st.sampled_from(OPTIONS)),
    st.builds("{}{}".format, st.sampled_from(["~", "+", "++", "~~", "+++"]), keys),
    st.builds("++{}={}".format, keys, printed),
)
values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.integers(-3, 5000), st.floats(), st.text(max_size=4),
        st.sampled_from(["125m", "1e400", "9" * 400, "auto", "wsd", 10**12 + 39, 10**30, 1e308, float("nan")]),
    ),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.one_of(st.text(max_size=3), st.integers(), st.none()), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


def fuzz(examples: int) -> Any:
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _hydra() -> Iterator[None]:
    register_schema()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        yield


def exit_code_and_message(overrides: list[str]) -> tuple[object, str]:
    """Return what train.py would exit with before it opens data; an exception that it does not catch is raised."""

    def resolve_config() -> None:
        config = load_composed_config(compose("train", overrides=convert_overrides(overrides)))
        branch_specs(config)
        check_study(config)

    stderr = io.StringIO()
    with pytest.raises(SystemExit) as stopped, redirect_stderr(stderr):
        run_and_exit(resolve_config)
    return stopped.value.code, stderr.getvalue()


@pytest.mark.parametrize("examples", [15, pytest.param(1000, marks=pytest.mark.slow)])
def test_overrides_compose_or_end_in_one_message(examples: int) -> None:
    @fuzz(examples)
    @given(st.lists(arguments, max_size=4))
    def run(overrides: list[str]) -> None:
        began = time.monotonic()
        code, message = exit_code_and_message(overrides)
        assert code in {0, 1, 2} and "Traceback" not in message, message
        assert bool(message) == bool(code)
        is_list = "in the configuration:" in message
        assert is_list or len(message.strip("\n").split("\n")) <= 1, message
        assert time.monotonic() - began < MAX_SECONDS

    run()


@pytest.mark.parametrize("examples", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_trees_load_or_end_in_one_message(examples: int) -> None:
    """Values that no override has, such as tables with numbers as keys."""

    @fuzz(examples)
    @given(st.lists(st.tuples(keys, values), max_size=4))
    def run(changes: list[tuple[str, Any]]) -> None:
        tree = default_tree()
        tree |= {"size": "200k", "budget": {"tokens": 100_000}, "family": {"aspect_ratio": 5.0}}
        for key, value in changes:
            section, _, leaf = key.partition(".")
            table = tree.setdefault(section, {})
            if leaf and isinstance(table, dict):
                table[leaf] = value
            else:
                tree[section] = value
        began = time.monotonic()
        with pytest.raises(SystemExit) as stopped, redirect_stderr(io.StringIO()):
            run_and_exit(lambda: branch_specs(load_config(tree)))
        assert stopped.value.code in {0, 1, 2}
        assert time.monotonic() - began < MAX_SECONDS

    run()
