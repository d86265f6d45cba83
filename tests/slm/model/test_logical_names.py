"""Fused projections and padded tables: same computation, same initial weights, same files."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import AdamW

import slm
from slm.architecture.shapes import ModelShape
from slm.config.schema import Config, OptimizerConfig, ParametrizationConfig, ParametrizationKind
from slm.model.attention import attend
from slm.model.build import build_model, load_weights
from slm.model.generate import generate
from slm.model.hf import export_llama
from slm.model.logical_names import (
    logical_names,
    optimizer_to_logical,
    optimizer_to_physical,
    to_logical,
    to_physical,
)
from slm.model.parametrization import Parametrization, initialize
from slm.model.transformer import Attention, SwiGLU, Transformer, apply_rope
from slm.tracking.run_dir import RunDirectory
from slm.training.optimizer import build_optimizer
from slm.training.version_1 import name_optimizer_state
from tests.conftest import ROOT
from tests.running import assert_equal

pytestmark = pytest.mark.numeric

SHAPE = ModelShape(2, 48, 6, 2, 8, 100, 61, 20)
SWITCHES: list[dict[str, Any]] = [
    {},
    {"n_kv_heads": 6, "tied": False},
    {"n_kv_heads": 1, "qk_norm": True},
    {"mlp": "gelu", "layer_sharing": 2},
]
RUNS = ROOT / "tests" / "data" / "runs_v1"
CHECKPOINTS = sorted(RUNS.glob("single/*/checkpoints/*.ckpt")) + sorted(
    RUNS.glob("smoke/.trunks/*/*.ckpt")
)


def rules_of(shape: ModelShape, kind: ParametrizationKind = "completep") -> Parametrization:
    return Parametrization.of(ParametrizationConfig(kind=kind, base_width=16), shape)


def initial_model(shape: ModelShape, pad_vocab_to: int = 1, seed: int = 0) -> Transformer:
    model = Transformer(
        shape,
        branch_multiplier=0.5,
        logit_multiplier=rules_of(shape).logit_multiplier,
        pad_vocab_to=pad_vocab_to,
    )
    initialize(model, rules_of(shape), seed)
    return model


def random_tokens(shape: ModelShape) -> Tensor:
    return torch.randint(shape.vocab_size, (3, shape.seq_len), generator=torch.manual_seed(1))


def gradients(model: Transformer, z_loss: float = 0.1) -> dict[str, Tensor]:
    """Return the gradients of the loss by logical name."""
    model.zero_grad()
    tokens = random_tokens(model.shape)
    model(tokens, targets=tokens.roll(-1), z_loss=z_loss).objective.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return to_logical(found, model.shape)


# Fused projections


class PlainAttention(nn.Module):
    """Attention with a matrix each for query, key and value."""

    def __init__(self, fused: Attention, shape: ModelShape):
        super().__init__()
        self.fused, self.d_head = fused, shape.d_head
        sizes = [n * shape.d_head for n in (shape.n_heads, shape.n_kv_heads, shape.n_kv_heads)]
        starts = (0, sizes[0], sizes[0] + sizes[1])
        weight = fused.qkv.weight.detach()
        self.projections = nn.ParameterList(
            weight[start : start + size].clone() for start, size in zip(starts, sizes, strict=True)
        )

    def forward(self, x: Tensor, cos_sin: Tensor, documents: Any) -> Tensor:
        q, k, v = (
            rearrange(F.linear(x, w), "b t (h k) -> b h t k", k=self.d_head)
            for w in self.projections
        )
        q = apply_rope(self.fused.query_norm(q), cos_sin)
        k = apply_rope(self.fused.key_norm(k), cos_sin)
        return self.fused.output(rearrange(attend(q, k, v), "b h t k -> b t (h k)"))


class PlainSwiGLU(nn.Module):
    """SwiGLU with a matrix each for gate and up."""

    def __init__(self, fused: SwiGLU):
        super().__init__()
        gate, up = fused.gate_up.weight.detach().split(fused.down.in_features)
        self.gate, self.up = nn.Parameter(gate.clone()), nn.Parameter(up.clone())
        self.down = fused.down

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(F.linear(x, self.gate)) * F.linear(x, self.up))


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_fused_projections_equal_separate_ones(switch: dict[str, Any]) -> None:
    shape = replace(SHAPE, **switch)
    model, plain = initial_model(shape), initial_model(shape)
    for block in plain.blocks:
        block.attention = PlainAttention(block.attention, shape)
        if shape.mlp == "swiglu":
            block.mlp = PlainSwiGLU(block.mlp)
    tokens = random_tokens(shape)
    losses = [m(tokens, targets=tokens.roll(-1)).nats.item() for m in (model, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    ours = gradients(model)
    plain(tokens, targets=tokens.roll(-1), z_loss=0.1).objective.backward()
    for number, block in enumerate(plain.blocks):
        matrices = dict(zip(("query", "key", "value"), block.attention.projections, strict=True))
        theirs = {f"attention.{name}": matrix for name, matrix in matrices.items()}
        theirs["mlp.up"] = block.mlp.up.weight if shape.mlp == "gelu" else block.mlp.up
        theirs["attention.output"] = block.attention.fused.output.weight
        if shape.mlp == "swiglu":
            theirs["mlp.gate"] = block.mlp.gate
        for name, parameter in theirs.items():
            assert parameter.grad is not None
            found, largest = ours[f"blocks.{number}.{name}.weight"], parameter.grad.abs().max()
            assert (found - parameter.grad).abs().max() <= 1e-5 * largest, name
    # The gradient of the embedding passes through all other tensors.
    expected = plain.embedding.weight.grad
    assert expected is not None
    assert (ours["embedding.weight"] - expected).abs().max() <= 1e-5 * expected.abs().max()


# Initialisation


def logical_tensors_in_order_of_drawing(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    d, heads = shape.d_model, shape.n_heads * shape.d_head
    groups = shape.n_kv_heads * shape.d_head
    yield "embedding.weight", (shape.vocab_size, d)
    for layer in range(shape.n_layers):
        block = f"blocks.{layer}"
        yield f"{block}.attention_norm.weight", (d,)
        yield f"{block}.attention.query.weight", (heads, d)
        yield f"{block}.attention.key.weight", (groups, d)
        yield f"{block}.attention.value.weight", (groups, d)
        yield f"{block}.attention.output.weight", (d, heads)
        if shape.qk_norm:
            yield f"{block}.attention.query_norm.weight", (shape.d_head,)
            yield f"{block}.attention.key_norm.weight", (shape.d_head,)
        yield f"{block}.mlp_norm.weight", (d,)
        if shape.mlp == "swiglu":
            yield f"{block}.mlp.gate.weight", (shape.d_ff, d)
        yield f"{block}.mlp.up.weight", (shape.d_ff, d)
        yield f"{block}.mlp.down.weight", (d, shape.d_ff)
    yield "norm.weight", (d,)
    if not shape.tied:
        yield "head.weight", (shape.vocab_size, d)


@pytest.mark.parametrize("pad_vocab_to", [1, 64])
@pytest.mark.parametrize("switch", [*SWITCHES, {"d_ff": 3}], ids=str)
def test_initial_weights_are_those_of_separate_tensors(
    switch: dict[str, Any], pad_vocab_to: int
) -> None:
    """Version 1 drew each logical tensor by itself; the run ids of its runs depend on the result."""
    shape = replace(SHAPE, **switch)
    model = initial_model(shape, pad_vocab_to, seed=7)
    logical = to_logical(dict(model.named_parameters()), shape)
    generator, names = torch.Generator().manual_seed(7), []
    for name, size in logical_tensors_in_order_of_drawing(shape):
        expected = torch.ones(size)
        std = rules_of(shape).rule(name, expected).initial_std
        if std is not None:
            nn.init.normal_(expected, std=std, generator=generator)
        assert torch.equal(logical[name], expected), name
        names.append(name)
    assert list(logical) == names


@pytest.mark.parametrize("kind", get_args(ParametrizationKind))
@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_fused_parameters_have_the_rule_of_their_logical_tensors(
    switch: dict[str, Any], kind: ParametrizationKind
) -> None:
    shape = replace(SHAPE, **switch)
    rules = rules_of(shape, kind)
    for name, parameter in Transformer(shape).named_parameters():
        for logical, tensor in to_logical({name: parameter}, shape).items():
            assert rules.rule(logical, tensor) == rules.rule(name, parameter)


# State dicts


@pytest.mark.parametrize("pad_vocab_to", [1, 64])
@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_model_state_converts_to_logical_tensors_and_back(
    switch: dict[str, Any], pad_vocab_to: int
) -> None:
    shape = replace(SHAPE, **switch)
    model = initial_model(shape, pad_vocab_to)
    saved = to_logical(get_model_state_dict(model), shape)
    expected = dict(logical_tensors_in_order_of_drawing(shape))
    expected["head.weight"] = (61, 48)  # a tied head is saved under both names
    assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == expected
    physical = to_physical(saved, shape, model.padded_vocab_size)
    assert_equal(physical, dict(model.state_dict()))
    other = initial_model(shape, pad_vocab_to, seed=1)
    load_weights(other, saved)
    assert_equal(dict(other.state_dict()), dict(model.state_dict()))
    for name, parameter in model.named_parameters():
        assert logical_names(name, shape) == list(to_logical({name: parameter}, shape))


def test_weights_are_independent_of_the_padding() -> None:
    saved = to_logical(initial_model(SHAPE, pad_vocab_to=64).state_dict(), SHAPE)
    plain, tokens = initial_model(SHAPE, seed=1).eval(), random_tokens(SHAPE)
    load_weights(plain, saved)
    with torch.no_grad():
        assert torch.equal(plain(tokens), initial_model(SHAPE).eval()(tokens))


def test_error_names_the_tensor_that_does_not_fit() -> None:
    model = initial_model(SHAPE)
    saved = to_logical(model.state_dict(), SHAPE)
    key, gate = "blocks.1.attention.key.weight", "blocks.0.mlp.gate.weight"
    without = {name: tensor for name, tensor in saved.items() if name != key}
    too_short = {**saved, gate: saved[gate][:-1]}
    for state, message in (
        (without, f"{key} is missing"),
        (too_short, rf"{gate} has shape \(99, 48\) instead of \(100, 48\)"),
        (dict(model.state_dict()), "blocks.0.attention.query.weight is missing"),
        ({**saved, "extra": torch.ones(1)}, "extra is unexpected"),
    ):
        with pytest.raises(ValueError, match=message):
            load_weights(model, state)
    with pytest.raises(ValueError, match=f"{key} is missing"):
        to_physical(without, SHAPE)
    with pytest.raises(ValueError, match=f"{gate} has 99 rows instead of 100"):
        to_physical(too_short, SHAPE)


def trained(shape: ModelShape, pad_vocab_to: int, steps: int = 2) -> tuple[Transformer, AdamW]:
    model = initial_model(shape, pad_vocab_to)
    config = OptimizerConfig(lr=1e-2, weight_decay=0.1)
    optimizer = build_optimizer(model, config, rules_of(shape))
    for _ in range(steps):
        gradients(model)
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("pad_vocab_to", [1, 64])
@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_optimizer_state_converts_to_logical_tensors_and_back(
    switch: dict[str, Any], pad_vocab_to: int
) -> None:
    shape = replace(SHAPE, **switch)
    model, optimizer = trained(shape, pad_vocab_to)
    physical = get_optimizer_state_dict(model, optimizer)
    saved = optimizer_to_logical(physical, shape)
    expected = dict(logical_tensors_in_order_of_drawing(shape))
    for key in ("exp_avg", "exp_avg_sq"):
        assert {n: tuple(entry[key].shape) for n, entry in saved["state"].items()} == expected
    assert sorted(n for group in saved["param_groups"] for n in group["params"]) == sorted(expected)
    query, key = (saved["state"][f"blocks.0.attention.{name}.weight"] for name in ("query", "key"))
    fused = physical["state"]["blocks.0.attention.qkv.weight"]  # type: ignore[index, call-overload]
    rows = shape.n_heads * shape.d_head
    assert torch.equal(query["exp_avg"], fused["exp_avg"][:rows])
    assert torch.equal(
        key["exp_avg_sq"], fused["exp_avg_sq"][rows : rows + shape.n_kv_heads * shape.d_head]
    )
    assert query["step"] == key["step"] == 2
    assert query["step"].data_ptr() != key["step"].data_ptr(), "an update must not count twice"

    assert_equal(optimizer_to_physical(saved, shape, model.padded_vocab_size), dict(physical))
    other, continued = trained(shape, pad_vocab_to, steps=0)
    load_weights(other, to_logical(model.state_dict(), shape))
    restored = optimizer_to_physical(saved, shape, other.padded_vocab_size)
    set_optimizer_state_dict(
        other, continued, deepcopy(restored)
    )  # or both update the same tensors
    for net, optim in ((model, optimizer), (other, continued)):
        gradients(net)
        optim.step()
    assert_equal(dict(other.state_dict()), dict(model.state_dict()))


def test_error_names_the_missing_optimizer_state() -> None:
    model, optimizer = trained(SHAPE, 1)
    saved = optimizer_to_logical(get_optimizer_state_dict(model, optimizer), SHAPE)
    del saved["state"]["blocks.1.mlp.up.weight"]
    with pytest.raises(
        ValueError, match=r"optimizer state of blocks\.1\.mlp\.up\.weight is missing"
    ):
        optimizer_to_physical(saved, SHAPE)


# Checkpoints of version 1


def module_of(tensors: dict[str, Tensor]) -> nn.Module:
    """Build the module tree of version 1: one parameter for each logical tensor."""
    root = nn.Module()
    for name, tensor in tensors.items():
        module, *_, (*path, last) = root, name.split(".")
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(tensor.clone()))
    return root


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_optimizer_state_of_version_1_continues_in_the_fused_model(path: Path) -> None:
    saved = torch.load(path, weights_only=True)
    run = next(
        RUNS.glob("single/*-s1-*")
    )  # the trunk has the shape and parametrization of the runs
    spec = RunDirectory(run).spec()
    rules = Parametrization.of(spec.config.parametrization, spec.shape)
    weights = {name.removeprefix("model."): tensor for name, tensor in saved["state_dict"].items()}
    model = build_model(spec.config, spec.shape)
    load_weights(model, weights)
    del weights["head.weight"]  # tied: not a parameter of its own
    old = module_of(weights)
    optimizers = [build_optimizer(m, spec.config.optimizer, rules) for m in (old, model)]
    optimizers[0].load_state_dict(saved["optimizer_states"][0])

    named = name_optimizer_state(saved["optimizer_states"][0], spec.shape, rules)
    name_of = {parameter: name for name, parameter in old.named_parameters()}
    assert len(named["state"]) == len(name_of) == 56
    for parameter, entry in optimizers[0].state.items():
        assert_equal(entry, named["state"][name_of[parameter]])
    for group, theirs in zip(named["param_groups"], optimizers[0].param_groups, strict=True):
        assert group["params"] == [name_of[parameter] for parameter in theirs["params"]]
        assert {**group, "params": []} == {**theirs, "params": []}

    physical = optimizer_to_physical(named, spec.shape, model.padded_vocab_size)
    set_optimizer_state_dict(model, optimizers[1], deepcopy(physical))
    generator = torch.manual_seed(0)
    drawn = {name: torch.randn(p.shape, generator=generator) for name, p in old.named_parameters()}
    for name, parameter in old.named_parameters():
        parameter.grad = drawn[name]
    fused_gradients = to_physical(drawn, spec.shape)
    for name, parameter in model.named_parameters():
        parameter.grad = fused_gradients[name]
    for optimizer in optimizers:
        optimizer.step()
    after = to_logical(dict(model.named_parameters()), spec.shape)
    for name, parameter in old.named_parameters():
        # The same elementwise update; vectorised code may round the last elements differently.
        torch.testing.assert_close(after[name], parameter, rtol=1e-6, atol=1e-8)
        assert not torch.equal(after[name], weights[name])


def test_optimizer_state_of_another_model_is_refused() -> None:
    state = torch.load(CHECKPOINTS[0], weights_only=True)["optimizer_states"][0]
    shape = RunDirectory(CHECKPOINTS[0].parent.parent).spec().shape
    for change, message in (
        ({"n_layers": 5}, "other parameters than L5-d32"),
        ({"d_ff": 80}, r"blocks.0.mlp.gate.weight has shape \(84, 32\) instead of \(80, 32\)"),
    ):
        other = replace(shape, **change)
        with pytest.raises(ValueError, match=message):
            name_optimizer_state(state, other, rules_of(other))


# Padded tables


@pytest.mark.parametrize("tied", [True, False])
def test_padding_changes_neither_logits_nor_loss_nor_gradients(tied: bool) -> None:
    shape = replace(SHAPE, tied=tied)
    plain, padded = initial_model(shape), initial_model(shape, pad_vocab_to=64)
    assert (plain.padded_vocab_size, padded.padded_vocab_size) == (61, 64)
    assert len(padded.head.weight) == len(padded.embedding.weight) == 64
    tokens = random_tokens(shape)
    with torch.no_grad():
        # Rounding: a matmul with another number of columns may add in another order.
        torch.testing.assert_close(padded(tokens), plain(tokens), rtol=1e-5, atol=1e-6)
    for z_loss in (0.0, 0.1):
        ours, theirs = (m(tokens, targets=tokens.roll(-1), z_loss=z_loss) for m in (padded, plain))
        for one, other in zip(ours, theirs, strict=True):
            assert one.item() == pytest.approx(other.item(), rel=1e-6)
    found, expected = gradients(padded), gradients(plain)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


@pytest.mark.parametrize("tied", [True, False])
def test_padding_rows_stay_zero_in_training(tied: bool) -> None:
    model, optimizer = trained(replace(SHAPE, tied=tied), 64, steps=3)
    for table in {model.embedding.weight, model.head.weight}:
        assert table.grad is not None
        for tensor in (table, table.grad, *optimizer.state[table].values()):
            if tensor.ndim > 0:
                assert torch.equal(tensor[61:], torch.zeros(3, 48)) and tensor[:61].any()


def test_padded_model_generates_and_exports_real_tokens_only(tmp_path: Path) -> None:
    model = initial_model(SHAPE, pad_vocab_to=64).eval()
    prompt = random_tokens(SHAPE)[:, :4]
    # At this temperature all tokens are nearly equally likely.
    drawn = generate(model, prompt, 16, temperature=100.0, seed=0)
    assert drawn.max() < 61
    export_llama(model, tmp_path)
    loaded = slm.load(tmp_path)
    assert isinstance(loaded, Transformer)
    assert loaded.padded_vocab_size == 61
    with torch.no_grad():
        logits = model(random_tokens(SHAPE))
        assert logits.shape == (3, 20, 61)
        torch.testing.assert_close(loaded(random_tokens(SHAPE)), logits, rtol=1e-4, atol=1e-5)


def test_build_model_pads_on_request_only() -> None:
    assert build_model(Config(), SHAPE).padded_vocab_size == 61
    assert build_model(Config(), SHAPE, pad_vocab_to=64).padded_vocab_size == 64
    even = replace(SHAPE, vocab_size=128)
    assert build_model(Config(), even, pad_vocab_to=64).padded_vocab_size == 128
