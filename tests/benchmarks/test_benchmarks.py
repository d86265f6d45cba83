"""Tests of the benchmarks: contenders train the same model, and ratios are paired."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import paired, throughput, training
from tests.benchmarks.peers import (
    LIBRARIES,
    Case,
    Mode,
    contender,
    export_weights,
    initial_model,
    is_installed,
    peer_step,
)

TINY = ("model=tiny", "model.n_layers=2", "model.seq_len=32", "optimizer.global_batch_tokens=128")


def test_slm_and_a_peer_are_measured_from_equal_weights() -> None:
    libraries = [library for library in LIBRARIES if is_installed(library)][:2]
    result = training.compare(
        TINY, modes=["fp32-eager"], libraries=libraries, threads=1, rounds=2, seconds=0.05
    )
    rates = training.rates_of(result)
    assert set(rates) == {(library, "fp32-eager") for library in libraries}
    assert all(rate > 0 for rounds in rates.values() for rate in rounds)
    if len(libraries) > 1:
        (best, eager) = training.comparisons("deep", rates)
        assert best["ratio"] == eager["ratio"] > 0
        assert best["verdict"] == "not all modes measured"
        assert eager["verdict"].startswith("met" if eager["ratio"] >= 1.05 else "missed")


@pytest.mark.parametrize("mode", ["fp32-eager", "bf16-eager"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_first_loss_of_each_library_equals_slm(library: str, mode: str, tmp_path: Path) -> None:
    if not is_installed(library):
        pytest.skip(f"{library} is not installed")
    case = Case(TINY, "cpu", tmp_path)
    spec = case.spec("transformers", Mode("fp32", False))
    params = export_weights(spec, tmp_path)
    facts, measure = contender(library, mode, case)
    training.check_equal((library, mode), facts, params, training.first_loss(spec))
    assert measure(0.0)["tokens_per_second"] > 0


def test_check_equal_rejects_different_parameters_or_losses() -> None:
    facts = {"params": 10, "first_loss": 4.0}
    training.check_equal(("litgpt", "fp32-eager"), facts, 10, 4.0)
    for params, loss in ((11, 4.0), (10, 4.001)):
        with pytest.raises(AssertionError, match="litgpt"):
            training.check_equal(("litgpt", "fp32-eager"), facts, params, loss)


def test_deep_and_wide_have_equal_matrix_parameters() -> None:
    training.check_shapes()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_stacked_step_equals_the_steps_of_separate_models() -> None:
    mode = Mode.named("fp32-eager")
    spec = Case(TINY, "cpu", Path()).spec("slm", mode)
    stacked = throughput.stacked_step(spec, 2, "cpu")
    separate = [
        peer_step(initial_model(spec, seed), spec, mode, "cpu", lambda logits: logits)[0]
        for seed in range(2)
    ]
    for _ in range(3):  # later losses also depend on gradients, clipping and AdamW
        losses = [float(step()) for step in separate]
        assert stacked().tolist() == pytest.approx(losses, rel=1e-4)
    assert losses[0] != losses[1]


def test_ratios_are_taken_within_rounds() -> None:
    # The ratio of the medians, 30 and 10, would be 3.
    assert paired.median_ratio([40.0, 10.0, 30.0], [20.0, 10.0, 10.0]) == 2.0


def test_modes_that_the_cpu_emulates_are_skipped_with_a_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    modes = ["fp32-eager", "fp32-compiled", "bf16-eager"]
    machine = {"cpu_instruction_set": "AVX2"}
    assert training.supported_modes(modes, machine, "cpu") == ["fp32-eager"]
    printed = capsys.readouterr().out
    assert "bf16-eager is skipped: this CPU (AVX2) has no bf16 matrix products" in printed
    assert "fp32-compiled is skipped: there is no C++ compiler" in printed
    assert training.supported_modes(modes, machine, "cuda") == modes
    machine = {"cpu_instruction_set": "AVX512-BF16"}
    assert training.supported_modes(modes, machine, "cpu") == ["fp32-eager", "bf16-eager"]


def test_rounds_report_progress(capsys: pytest.CaptureFixture[str]) -> None:
    worker = paired.Worker(_instant, threads=1)
    with paired.started_workers({("slm", "fp32-eager"): lambda: worker}) as workers:
        results = paired.measure_in_rounds(workers, 2, 0.0)
    assert results == {("slm", "fp32-eager"): [{"rate": 1.0}] * 2}
    ready, *rounds = capsys.readouterr().err.splitlines()
    assert ready == "  slm fp32-eager is ready"
    assert [line.split(" took ")[0] for line in rounds] == ["  round 1 of 2", "  round 2 of 2"]


def _instant() -> tuple[paired.Result, paired.Measure]:
    return {}, lambda seconds: {"rate": 1.0}


def test_error_of_a_contender_contains_its_message() -> None:
    worker = paired.Worker(_failing, threads=1)
    with pytest.raises(RuntimeError, match="out of luck"):
        worker.wait_until_ready()
    worker.close()


def _failing() -> tuple[paired.Result, paired.Measure]:
    raise ValueError("out of luck")
