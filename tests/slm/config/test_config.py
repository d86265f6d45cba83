"""Strict loading of configs: all problems are reported at once, each with a fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import pytest

from slm.config.help import ACTIONS
from slm.config.hydra import add_force_prefix, compose_config
from slm.config.load import load_config
from slm.config.schema import Config, default_tree, field_descriptions, key_of_field, to_tree
from slm.errors import ConfigError
from tests.conftest import ROOT, TINY, merged


def problems_of(**changes: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load_config(merged(TINY, changes))
    return {problem.key: str(problem) for problem in caught.value.problems}


def test_config_round_trips_through_a_tree(tiny_config: Callable[..., Config]) -> None:
    table = {"1.5b": 0.4, "125m": 0.2}
    config = tiny_config(seed=3, study={"sizes": ["80k", "1.5m"]}, plan={"mfu": table})
    assert load_config(to_tree(config)) == config
    assert config.study.sizes == (80_000, 1_500_000)
    assert config.plan.mfu == {125_000_000: 0.2, 1_500_000_000: 0.4}


def test_all_problems_are_reported_at_once() -> None:
    found = problems_of(
        seed=-1,
        lr=3,
        model={"n_layer": 3, "attention": "flsh", "d_model": 33},
        trainer={"threads": 0},
    )
    model_keys = {"model.n_layer", "model.attention", "model.d_model"}
    assert set(found) == {"seed", "lr", "trainer.threads", *model_keys}


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"model": {"n_layer": 3}}, "model.n_layer", "did you mean model.n_layers?"),
        ({"n_layers": 3}, "n_layers", "did you mean model.n_layers?"),
        ({"optimizer": {"weight_decy": 3}}, "optimizer.weight_decy", "optimizer.weight_decay?"),
        ({"trainer": {"precision": "bf17"}}, "trainer.precision", "did you mean bf16?"),
        ({"model": {"d_model": 34}}, "model.d_model", "multiple of n_heads=4 (nearest: 32)"),
        ({"model": {"n_kv_heads": 3}}, "model.n_kv_heads", "must divide n_heads=4 (nearest: 2)"),
        (
            {"model": {"d_model": 36}},
            "model.d_head",
            "must be even, because RoPE rotates pairs of dimensions (nearest: 10)",
        ),
        ({"model": {"d_head": 16}}, "model.d_head", "must equal d_model=32 (nearest: 8)"),
        ({"model": {"n_layers": 0}}, "model.n_layers", "greater than 0"),
        ({"model": {"d_ff": -8}}, "model.d_ff", "greater than 0"),
        ({"budget": {"flops": 1e9}}, "budget", "more than one budget (keep one"),
        ({"budget": {"tokens": None}}, "budget", "no budget is given"),
        ({"budget": {"tokens": 0}}, "budget.tokens", "greater than 0"),
        ({"size": "80k"}, "model.n_layers", "conflicts with size=80000, from which"),
        ({"size": "80q"}, "size", "a number such as 200000, 200k or 1.5m"),
        ({"seed": True}, "seed", "must be a number"),
        (
            {"study": {"grid": {"optimizer": {"lr": [0.001, 0.002]}}}},
            "study.grid.optimizer",
            "('study.grid={optimizer.lr: [0.001,0.002]}')",
        ),
        ({"study": {"families": "tiny"}}, "study.families", "must be a list (for example [tiny])"),
        (
            {"optimizer": {"global_batch_tokens": 100}},
            "optimizer.global_batch_tokens",
            "nearest: 96",
        ),
        ({"trainer": {"micro_batch_sequences": 3}}, "trainer.micro_batch_sequences", "nearest: 2"),
        (
            {"tokenizer": {"kind": "bpe"}},
            "tokenizer.vocab_size",
            "is needed for tokenizer.kind=bpe",
        ),
        (
            {"schedule": {"warmup_fraction": 0.9}},
            "schedule.warmup_fraction",
            "warmup_fraction + decay_fraction exceeds 1 (schedule.decay_fraction=0.2) (use at most 0.8)",
        ),
        ({"optimizer": {"beta2": 1.0}}, "optimizer.beta2", "less than 1"),
        (
            {"ladder": {"aspect_ratios": {"x": 0}}},
            "ladder.aspect_ratios.x",
            "greater than or equal to 0.001",
        ),
        ({"model": {"attention": "flash"}}, "trainer.precision", "trainer=gpu, or"),
        ({"model": {"mlp": "relu"}}, "model.mlp", "'swiglu' or 'gelu'"),
        ({"model": {"layer_sharing": 0}}, "model.layer_sharing", "greater than 0"),
        ({"plan": {"mfu": 1.5}}, "plan.mfu", "above 0 and at most 1"),
        ({"plan": {"mfu": {}}}, "plan.mfu", "or a table such as {125m: 0.23"),
        (
            {"plan": {"mfu": {"125x": 0.2}}},
            "plan.mfu.125x",
            "plan.mfu.125x: must be a number such as 200000, 200k",
        ),
        (
            {"plan": {"mfu": {"125m": 0}}},
            "plan.mfu.125m",
            "plan.mfu.125m=0: must be greater than 0",
        ),
        (
            {"plan": {"mfu": "high"}},
            "plan.mfu",
            "plan.mfu=high: must be above 0 and at most 1, or a table",
        ),
        ({"plan": {"law": {"alpa": 1}}}, "plan.law.alpa", "did you mean alpha?"),
        ({"trainer": {"gpu_memory_fraction": 0}}, "trainer.gpu_memory_fraction", "greater than 0"),
        ({"study": {"grid": {"seed": [[1]]}}}, "study.grid.seed.0", "one number"),
        (
            {"tokenizer": {"vocab_size": 300}},
            "tokenizer.vocab_size",
            "vocabulary of tokenizer.kind=ascii is fixed",
        ),
    ],
)
def test_each_problem_names_the_key_the_rule_and_a_fix(
    changes: dict[str, Any], key: str, message: str
) -> None:
    assert message in problems_of(**changes)[key]


def test_a_wrong_value_is_reported_once() -> None:
    assert set(problems_of(budget={"tokens": "many"})) == {"budget.tokens"}
    wrong_batch = problems_of(optimizer={"global_batch_tokens": "abc"}, model={"seq_len": 1000})
    assert set(wrong_batch) == {"optimizer.global_batch_tokens"}


@pytest.mark.parametrize("key", [key for key, _, _ in field_descriptions()])
def test_rules_that_read_a_wrong_value_are_not_checked(key: str) -> None:
    """No rule reports another problem because of the default that replaces a wrong value."""
    section, _, name = key.rpartition(".")
    wrong: dict[str, Any] = {name: [{"neither": ["number", "nor", "word"]}]}
    tree = merged(TINY, {section: wrong} if section else wrong)
    with pytest.raises(ConfigError) as caught:
        load_config(tree)
    assert {key_of_field(p.key.split(".")) for p in caught.value.problems} == {key}


def test_rules_that_do_not_read_a_wrong_value_are_checked() -> None:
    found = problems_of(
        model={"d_ff": -8, "d_model": 34},
        data={"source": "jsonl", "column": 3},
        tokenizer={"path": "x"},
        schedule={"warmup_fraction": 0.9},
    )
    assert set(found) == {
        *("model.d_ff", "model.d_model", "data.column", "data.files"),
        *("tokenizer.path", "schedule.warmup_fraction"),
    }


def test_rules_that_read_a_mistyped_key_are_not_checked() -> None:
    assert set(problems_of(budget={"tokens": None, "token": 512})) == {"budget.token"}
    assert set(problems_of(budgt={"tokens": 512}, budget={"tokens": None})) == {"budgt"}


@pytest.mark.parametrize("tree", [None, [], "seed=0"])
def test_config_that_is_no_table_is_an_error(tree: Any) -> None:
    with pytest.raises(ConfigError, match="must be a table of keys and values"):
        load_config(tree)


def test_every_key_has_documentation() -> None:
    assert not [key for key, _, text in field_descriptions() if not text]


def test_help_of_sweep_lists_every_action() -> None:
    actions, _ = get_args(get_type_hints(Config)["action"])
    assert set(ACTIONS) == {"(no action)", *get_args(actions)}


def test_defaults_are_complete_except_budget_and_size() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(default_tree())
    assert {problem.key for problem in caught.value.problems} == {"budget", "size"}


def test_table_of_mfu_on_the_command_line_replaces_the_table_of_a_file() -> None:
    table = "plan.mfu={125m: 0.5, 1b: 0.6}"
    expected = {125_000_000: 0.5, 1_000_000_000: 0.6}
    assert len(compose_config(["plan=h100"]).plan.mfu) == 4  # type: ignore[arg-type]
    assert compose_config(["plan=h100", table]).plan.mfu == expected
    assert compose_config([f"++{table}", "plan=h100"]).plan.mfu == expected
    assert compose_config(["plan=h100", "plan.mfu=0.4"]).plan.mfu == 0.4
    with pytest.raises(ConfigError, match=r"plan\.mfu\.1b=2: must be less than or equal to 1"):
        compose_config(["plan=h100", "plan.mfu={125m: 0.5, 1b: 2}"])
    assert compose_config(["plan.law={E: 1}"]).plan.law["A"] > 1  # other tables are merged


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("model.n_layer=3", "++model.n_layer=3"),
        ("+model.typo=1", "++model.typo=1"),
        ("seed=0,1", "++seed=0,1"),
        ("model=tiny", "model=tiny"),
        ("hydra/launcher=local", "hydra/launcher=local"),
        ("hydra.launcher.n_jobs=2", "++hydra.launcher.n_jobs=2"),
        ("hydra.verbose=true", "hydra.verbose=true"),
        ("--cfg", "--cfg"),
        ("~seed", "~seed"),
    ],
)
def test_overrides_get_the_force_prefix(argument: str, expected: str) -> None:
    assert add_force_prefix(argument, ROOT / "conf") == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"source": "jsonl"}}, r"data\.files=null: is needed for data\.source=jsonl"),
        ({"data": {"files": ["a.txt"]}}, r"data\.files=.*has no effect with data\.source=prose"),
        ({"data": {"source": "hub"}}, r"data\.repo=null: is needed"),
        (
            {"data": {"source": "hub", "repo": "owner/name", "revision": "main"}},
            r"data\.revision=main: must be a commit hash",
        ),
        (
            {"data": {"new_document": "("}},
            r"data\.new_document=\(: is not a valid regular expression",
        ),
        (
            {"tokenizer": {"kind": "file"}},
            r"tokenizer\.path=null: is needed for tokenizer\.kind=file",
        ),
        (
            {"tokenizer": {"path": "x"}},
            r"tokenizer\.path=x: has no effect with tokenizer\.kind=ascii \(set tokenizer=file",
        ),
        (
            {"tokenizer": {"kind": "bpe", "vocab_size": 100}},
            r"tokenizer\.vocab_size=100: is too small .*nearest: 257",
        ),
    ],
)
def test_data_and_tokenizer_keys_must_match(
    tiny_config: Callable[..., Config], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"devices": 2}, r"trainer\.devices=2: trainer\.strategy=single runs one process"),
        ({"num_nodes": 2}, r"trainer\.num_nodes=2: trainer\.strategy=single runs one process"),
        (
            {"strategy": "ddp", "devices": 5, "num_nodes": 2},
            r"trainer\.devices=5: 10 processes, but optimizer\.global_batch_tokens=256 is only 8 sequences \(use at most 8",
        ),
        (
            {"strategy": "ddp", "devices": 3, "micro_batch_sequences": 5},
            r"must divide the 8 sequences of optimizer\.global_batch_tokens=256, or the 3 sequences of one process \(nearest: 3",
        ),
    ],
)
def test_processes_and_micro_batches_must_fit_the_global_batch(
    tiny_config: Callable[..., Config], trainer: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(trainer=trainer)
    for micro in (1, 2, 3, 4, 8):  # each divides 8 or 3
        tiny_config(trainer={"strategy": "ddp", "devices": 3, "micro_batch_sequences": micro})
