"""Names of runs for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from slm.run.display_name import describe_setting, describe_settings, display_name
from slm.run.spec import RunSpec

Spec = Callable[..., RunSpec]
NO_BATCH = {"optimizer": {"global_batch_tokens": 4096}, "data": {"val_tokens": 1_048_576}}


@pytest.mark.parametrize(
    ("changes", "others"),
    [
        ({}, ""),
        ({"optimizer": {"global_batch_tokens": 4096, "lr": 0.008}}, ", lr 0.008"),
        ({"model": {"tied": False, "mlp": "gelu", "seq_len": 128}}, ", mlp gelu, untied"),
        ({"schedule": {"kind": "cosine"}}, ", schedule cosine"),
        ({"trainer": {"precision": "bf16", "threads": 2}}, ", precision bf16"),
        ({"data": {"val_tokens": 1_048_576, "deduplicate": False}}, ", no deduplicate"),
    ],
)
def test_run_without_a_study_names_what_differs_from_the_defaults(
    tiny_spec: Spec, changes: dict[str, Any], others: str
) -> None:
    spec = tiny_spec(
        **{"model": {"seq_len": 128}, **NO_BATCH, "budget": {"tokens": 40_960}, **changes}
    )
    assert display_name(spec) == f"tiny L2-d32, 41k tokens, s0{others}"


def test_run_of_a_study_names_the_values_of_its_grid(tiny_spec: Spec) -> None:
    grid = {"optimizer.lr": [0.001, 0.004], "model.tied": [True, False]}
    study = {"name": "rates", "grid": grid}
    names = {
        display_name(tiny_spec(study=study, optimizer={"lr": lr, "global_batch_tokens": 256}))
        for lr in (0.001, 0.004)
    }
    start = "tiny L2-d32, 5.12k tokens, s0"
    assert names == {f"{start}, lr 0.001, tied", f"{start}, lr 0.004, tied"}
    tuned = tiny_spec(study={"name": "tuned", "lr_policy": "tuned"})
    assert display_name(tuned) == f"{start}, lr 0.004"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optimizer.lr", 4e-05, "lr 4e-05"),
        ("optimizer.grad_clip", None, "grad_clip null"),
        ("model.qk_norm", True, "qk_norm"),
        ("data.files", ("a/b/one.txt", "two.txt"), "files one.txt,two.txt"),
        ("data.repo", "HuggingFaceFW/fineweb_edu", "repo fineweb_edu"),
        ("ladder.aspect_ratios.wide_shallow", 20.0, "aspect ratio of wide_shallow 20"),
        ("parametrization.kind", "mup", "parametrization mup"),
        ("optimizer.global_batch_tokens", 2048, "batch 2048"),
    ],
)
def test_settings_in_words(key: str, value: object, words: str) -> None:
    assert describe_setting(key, value) == words


def test_another_corpus_is_named_without_its_details() -> None:
    details = {"data.column": "body", "data.revision": "b08601e04326"}
    hub = {"data.source": "hub", "data.repo": "Salesforce/wikitext", **details}
    assert describe_settings({**hub, "optimizer.lr": 0.1}) == ["data wikitext", "lr 0.1"]
    assert describe_settings({"data.source": "khop", "data.khop_max_hops": 3}) == ["data khop"]
    assert describe_settings(details) == ["column body", "revision b08601e04326"]
