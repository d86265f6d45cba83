"""Rule of trainer.compile=auto, and the MFU that it and the plan assume."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from slm.config.hydra import compose_config
from slm.run.compile_rule import (
    H100_FLOPS,
    LAUNCHES_PER_BLOCK,
    MIN_GPU_SECONDS,
    SECONDS_PER_LAUNCH,
    compile_decision,
    eager_gpu_seconds,
)
from slm.run.mfu import is_far_outside, mfu_at
from slm.run.spec import RunSpec, resolve

Spec = Callable[..., RunSpec]
TABLE = {100: 0.1, 400: 0.3, 1600: 0.2}


def test_mfu_is_interpolated_in_the_logarithm_of_the_parameters() -> None:
    assert [mfu_at(TABLE, n) for n in TABLE] == pytest.approx([0.1, 0.3, 0.2])
    assert mfu_at(TABLE, 200) == pytest.approx(0.2)  # halfway between 100 and 400 on a log scale
    assert mfu_at(TABLE, 800) == pytest.approx(0.25)
    assert mfu_at(TABLE, 1) == 0.1 and mfu_at(TABLE, 10**9) == 0.2
    assert mfu_at(0.4, 1) == 0.4
    assert [is_far_outside(TABLE, n) for n in (79, 81, 1999, 2001)] == [True, False, False, True]
    assert not is_far_outside(0.4, 1)


def test_gpu_decision_follows_the_predicted_time(tiny_spec: Spec) -> None:
    launches = (
        LAUNCHES_PER_BLOCK * 2
    )  # two blocks; their FLOPs take much less time than the launches
    steps = math.ceil(MIN_GPU_SECONDS / (launches * SECONDS_PER_LAUNCH))
    for count, expected in ((steps // 2, False), (2 * steps, True)):
        spec = tiny_spec(budget={"tokens": count * 256})
        seconds = eager_gpu_seconds(spec)
        assert seconds == pytest.approx(count * launches * SECONDS_PER_LAUNCH)
        decision = compile_decision(spec, "gpu")
        assert decision.compiles is expected and f"{seconds:,.0f} s" in decision.reason
    micro = tiny_spec(budget={"tokens": 256}, trainer={"micro_batch_sequences": 2})
    assert eager_gpu_seconds(micro) == pytest.approx(4 * launches * SECONDS_PER_LAUNCH)


def test_gpu_time_of_large_shapes_is_that_of_their_flops() -> None:
    overrides = ["model=mobilellm_1b", "trainer=gpu", "optimizer.global_batch_tokens=524288"]
    spec = resolve(compose_config([*overrides, "budget=tokens", "budget.tokens=10m"]))
    seconds = eager_gpu_seconds(spec)
    assert 0.2 < spec.flops / H100_FLOPS / seconds < 0.3  # the MFU
    trainer = replace(spec.config.trainer, strategy="ddp", devices=8)
    on_eight = replace(spec, config=replace(spec.config, trainer=trainer))
    assert eager_gpu_seconds(on_eight) == pytest.approx(seconds / 8)


def test_branches_of_a_trunk_get_the_same_decision(tiny_spec: Spec) -> None:
    steps = math.ceil(MIN_GPU_SECONDS / (LAUNCHES_PER_BLOCK * 2 * SECONDS_PER_LAUNCH))
    tokens = 2 * steps * 256
    for shortest, expected in ((tokens, True), (tokens // 4, False)):
        schedule = {"warmup_budget_tokens": shortest}
        for budget in (tokens, 3 * tokens):
            branch = tiny_spec(budget={"tokens": budget}, schedule=schedule)
            assert compile_decision(branch, "gpu").compiles is expected


def test_explicit_choice_is_the_decision(tiny_spec: Spec) -> None:
    for choice in ("on", "off"):
        for accelerator in ("cpu", "gpu"):
            decision = compile_decision(tiny_spec(trainer={"compile": choice}), accelerator)
            assert decision.as_dict() == {
                "compiled": choice == "on",
                "reason": f"trainer.compile={choice}",
            }
