"""`python -m slm speed`: the shapes of a study, rounds, the file of speeds, and the figures of a measurement."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from slm.architecture.shapes import ModelShape, count_parameters
from slm.console import fitting_columns
from slm.errors import ConfigError, DataError
from slm.evaluation.speed import measure_inference
from slm.model.transformer import Transformer
from slm.speed import cli
from slm.speed.cli import shapes_of, speed, speed_path, speed_table
from slm.speed.measure import measure_rounds, prepare_device, random_model
from slm.tracking.speeds import InferenceSpeed, ShapeSpeed, merge_speeds, read_speeds, write_speeds

SHAPE = ModelShape(2, 32, 4, 2, 8, 64, 99, 48)
QUICK = ["speed.rounds=2", "speed.new_tokens=3", "speed.prompt_tokens=4", "speed.training=false"]


def made(
    device: str = "cpu", dtype: str = "fp32", d_model: int = 32, seconds: float = 1.0
) -> ShapeSpeed:
    inference = InferenceSpeed(
        batch_size=1,
        prompt_tokens=4,
        new_tokens=3,
        dtype=dtype,
        prefill_seconds=(seconds,),
        decode_seconds_per_token=(seconds,),
        peak_memory_bytes=1000,
    )
    return ShapeSpeed(
        shape=replace(SHAPE, d_model=d_model).as_dict(),
        device=device,
        inference=inference,
        train_tokens_per_second=(),
        train_batch_tokens=None,
        torch="2",
    )


def test_new_speeds_replace_only_those_of_the_same_measurement(tmp_path: Path) -> None:
    with_training = replace(made(), train_tokens_per_second=(5.0,), train_batch_tokens=256)
    stored = [with_training, made("gpu"), made(dtype="bf16"), made(d_model=64)]
    newer = made(seconds=2.0)
    merged = merge_speeds(stored, [newer, made("another cpu")])
    kept = replace(newer, train_tokens_per_second=(5.0,), train_batch_tokens=256)
    assert merged == [kept, *stored[1:], made("another cpu")]
    write_speeds(tmp_path / "a" / "speed.json", merged)
    assert read_speeds(tmp_path / "a" / "speed.json") == merged


def test_shapes_of_a_study_and_of_a_single_config() -> None:
    specs, families = shapes_of(["study=smoke", *QUICK])
    assert [families[spec.shape] for spec in specs] == [
        ["wide_shallow"],
        ["deep_thin"],
        ["deep_thin"],
        ["wide_shallow"],
    ]
    assert len({spec.shape for spec in specs}) == 4
    specs, families = shapes_of(["model=mobilellm_125m", "speed.dtype=bf16"])
    (spec,) = specs
    assert spec.shape.n_layers == 30 and families == {spec.shape: ["mobilellm"]}


def test_command_saves_every_round_and_keeps_other_measurements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "speed.json"
    write_speeds(path, [made("another device")])
    overrides = ["study=smoke", *QUICK, f"speed.file={path}", "trainer.threads=1"]

    def interrupted(specs: object, device: object) -> object:
        rounds = measure_rounds(specs, device)  # type: ignore[arg-type]
        yield next(rounds)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli, "measure_rounds", interrupted)
        with pytest.raises(KeyboardInterrupt):
            speed(overrides, json=False)
    assert [len(s.inference.prefill_seconds) for s in read_speeds(path) if s.inference] == [1] * 5

    speed(overrides, json=True)
    printed = json.loads(capsys.readouterr().out)
    stored = read_speeds(path)
    assert len(stored) == 5 and stored[0] == made("another device")
    assert [s["shape"] for s in printed] == [s.shape for s in stored[1:]]
    for one in stored[1:]:
        assert one.device.endswith(", 1 thread") and one.inference is not None
        assert len(one.inference.decode_seconds_per_token) == 2
        assert min(one.inference.decode_seconds_per_token) > 0
        weights = 4 * count_parameters(ModelShape(**one.shape)).params_total
        assert one.inference.peak_memory_bytes is not None
        assert one.inference.peak_memory_bytes >= weights

    path.write_text("{")
    with pytest.raises(DataError, match="delete it"):
        speed(["model=tiny", *overrides[1:]], json=False)


def test_short_shapes_get_a_longer_rope_table_and_a_note(tmp_path: Path) -> None:
    overrides = ["study=smoke", *QUICK, "speed.new_tokens=300", f"runs_dir={tmp_path}"]
    specs, families = shapes_of(overrides)
    config = specs[0].config
    model = random_model(specs[0], "cpu")
    assert model.shape.seq_len == 304 and specs[0].shape.seq_len == 128
    assert speed_path(config) == tmp_path / "smoke" / "speed.json"
    measured = [replace(made(), shape=specs[0].shape.as_dict())]
    table = speed_table(measured, config, families)
    assert "seq_len=128 is shorter" in table.note


@pytest.mark.parametrize(("rounds", "expected"), [(1, "; 1 round."), (3, "medians of 3 rounds.")])
def test_table_is_by_family_and_size_and_fits_80_columns(rounds: int, expected: str) -> None:
    specs, families = shapes_of(["study=demo", f"speed.rounds={rounds}"])
    measured = [
        replace(made(seconds=0.001), shape=spec.shape.as_dict(), train_tokens_per_second=(23456.0,))
        for spec in specs
    ]
    table = speed_table(measured[::-1], specs[0].config, families)
    assert fitting_columns(table.columns, 80) == list(table.columns)
    family, shape = table.columns[:2]
    assert family.heading == "family" and expected in table.note
    assert len(set(family.cells)) == 2 == 1 + sum(a != b for a, b in pairwise(family.cells))
    sizes = {s.shape.label: count_parameters(s.shape).params_total for s in specs}
    for name in set(family.cells):
        own = [sizes[str(s)] for f, s in zip(family.cells, shape.cells, strict=True) if f == name]
        assert own == sorted(own)


def test_bf16_needs_a_cpu_that_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm.speed.measure.cpu_multiplies_bf16", lambda: False)
    specs, _ = shapes_of(["speed.dtype=bf16", "trainer.accelerator=cpu", "trainer.threads=1"])
    with pytest.raises(ConfigError, match=r"speed.dtype=bf16: .*\(use fp32\)"):
        prepare_device(specs[0].config)


def test_measurement_generates_what_it_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    model, passes = Transformer(SHAPE).eval(), []
    compute: Callable[..., torch.Tensor] = model.next_logits
    monkeypatch.setattr(
        model, "next_logits", lambda t, c: (passes.append(tuple(t.shape)), compute(t, c))[1]
    )
    measured = measure_inference(model, prompt_tokens=8, new_tokens=5, batch_size=2, rounds=3)
    assert passes == [(2, 8), *[(2, 1)] * 4] * 4
    assert len(measured.prefill_seconds) == len(measured.decode_seconds_per_token) == 3
    with pytest.raises(ConfigError, match="seq_len=48"):
        measure_inference(model, prompt_tokens=40, new_tokens=9)
