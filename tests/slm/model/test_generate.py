"""Generation: against transformers, against full passes, in batches, with static shapes, and sampling."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from slm.architecture.shapes import ModelShape
from slm.errors import ConfigError, DataError
from slm.model import weight_layout
from slm.model.generate import Decoder, Sampling, generate_batch, stream
from slm.model.hf import export_llama
from slm.model.transformer import Transformer
from slm.model.weight_layout import has_packed_products, prepare_for_decoding

pytestmark = pytest.mark.numeric

SHAPE = ModelShape(3, 48, 6, 2, 8, 100, 61, 40)
SWITCHES: list[dict[str, Any]] = [
    {},
    {"n_kv_heads": 6},
    {"tied": False},
    {"mlp": "gelu"},
    {"qk_norm": True, "n_kv_heads": 1},
    {"layer_sharing": 2},
]


def build(shape: ModelShape = SHAPE, scale: float = 0.3, **settings: Any) -> Transformer:
    """Build a model with normal weights of this standard deviation."""
    model = Transformer(shape, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * drawn if "norm" in name else scale * drawn)
    return model.eval()


def prompts(lengths: list[int], vocab_size: int = 61) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(vocab_size, (length,), generator=generator) for length in lengths]


def greedy_by_full_passes(model: Transformer, prompt: Tensor, new_tokens: int) -> Tensor:
    tokens = prompt[None]
    with torch.no_grad():
        for _ in range(new_tokens):
            likeliest = model(tokens)[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, likeliest], dim=1)
    return tokens[0]


def test_greedy_tokens_equal_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = build(replace(SHAPE, seq_len=256), scale=0.15)
    export_llama(model, tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    theirs.generation_config.pad_token_id = 0
    model = model.double()
    for prompt in prompts([1, 5, 17, 40, 56]):
        ours = model.generate(prompt[None], 200)
        with torch.no_grad():
            everything = torch.ones(1, len(prompt), dtype=torch.int64)
            expected = theirs.generate(
                prompt[None], attention_mask=everything, max_new_tokens=200, do_sample=False
            )
            logits = theirs(expected).logits
            error = float((model(expected) - logits).abs().max())
        first, second = logits[0, len(prompt) - 1 : -1].topk(2, dim=-1).values.unbind(-1)
        # Both have parts in fp32 (RoPE, norms): so small an error cannot exchange the likeliest tokens.
        assert 4 * error < float((first - second).min()) and error < 1e-4
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_batch_of_unequal_prompts_equals_full_passes_of_each(switch: dict[str, Any]) -> None:
    model = build(replace(SHAPE, **switch), branch_multiplier=0.5, logit_multiplier=2.0).double()
    batch = prompts([9, 1, 4, 9])
    rows = generate_batch(model, batch, 20)
    for prompt, row in zip(batch, rows, strict=True):
        assert torch.equal(torch.cat([prompt, row]), greedy_by_full_passes(model, prompt, 20))


@pytest.mark.parametrize("padding", [None, [0, 3]], ids=["equal", "padded"])
@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_static_steps_equal_dynamic_steps(
    switch: dict[str, Any], padding: list[int] | None
) -> None:
    model = build(replace(SHAPE, **switch))
    batch = torch.stack(prompts([7, 7]))
    counts = None if padding is None else torch.tensor(padding)
    decoders = [Decoder(model, 2, 20, static=static) for static in (False, True)]
    for _ in range(2):  # the second time, memory is reused
        logits = [decoder.prefill(batch, counts) for decoder in decoders]
        for _ in range(13):
            # Differs by rounding: sums over the capacity, most of it masked, in another order.
            torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
            tokens = logits[0].argmax(-1)
            logits = [decoder.step(tokens) for decoder in decoders]
    with pytest.raises(ValueError, match="exceed the capacity"):
        for _ in range(8):
            decoders[1].step(tokens)


def test_bf16_weights_generate_with_the_logits_of_a_full_pass() -> None:
    model = build().to(torch.bfloat16)
    batch = torch.stack(prompts([9, 9]))
    decoder = Decoder(model, 2, 20)
    with torch.no_grad():
        logits = decoder.prefill(batch[:, :6])
        for position in range(6, 9):
            expected = model(batch[:, :position])[:, -1]
            assert logits.dtype == torch.bfloat16
            spread = float(expected.float().std())
            torch.testing.assert_close(logits, expected, rtol=0, atol=0.1 * spread)
            logits = decoder.step(batch[:, position])


def test_a_decoder_refuses_another_batch_size() -> None:
    with pytest.raises(ValueError, match="3 prompts, but the decoder was built with batch_size=2"):
        Decoder(build(), 2, 20).prefill(torch.stack(prompts([4, 4, 4])))


def literal_filter(logits: list[float], sampling: Sampling) -> list[float]:
    """Return the probabilities of the tokens, from the definitions, one token at a time."""
    scaled = [value / sampling.temperature for value in logits]
    order = sorted(range(len(scaled)), key=lambda token: -scaled[token])
    kept = order[: sampling.top_k] if sampling.top_k else order
    total = sum(math.exp(scaled[token]) for token in kept)
    nucleus, mass = [], 0.0
    for token in kept:
        nucleus.append(token)
        mass += math.exp(scaled[token]) / total
        if sampling.top_p is not None and mass >= sampling.top_p:
            break
    total = sum(math.exp(scaled[token]) for token in nucleus)
    return [math.exp(scaled[t]) / total if t in nucleus else 0.0 for t in range(len(scaled))]


@pytest.mark.parametrize("top_k", [None, 1, 5, 60, 200])
@pytest.mark.parametrize("top_p", [None, 0.01, 0.5, 0.9, 1.0])
def test_filters_equal_their_definitions(top_k: int | None, top_p: float | None) -> None:
    sampling = Sampling(temperature=0.7, top_k=top_k, top_p=top_p)
    logits = torch.randn(4, 61, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours = sampling.filter(logits).softmax(-1).numpy()
    expected = [literal_filter(row, sampling) for row in logits.tolist()]
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_draws_depend_on_the_seed_only_and_follow_the_probabilities() -> None:
    model, prompt = build(), torch.stack(prompts([5] * 2))
    drawn = [model.generate(prompt, 20, temperature=2.0, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(
        model.generate(prompt, 9, temperature=2.0, top_k=1), model.generate(prompt, 9)
    )
    sampling = Sampling(temperature=1.5, top_k=4)
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).expand(20_000, 5)
    tokens = sampling.choose(logits, torch.Generator().manual_seed(0))
    shares = torch.bincount(tokens, minlength=5) / len(tokens)
    expected = torch.tensor(literal_filter([0.0, 1.0, 2.0, 3.0, 4.0], sampling))
    assert shares[0] == 0
    # Five standard errors of a share are below 0.018.
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.018)


def test_rows_end_at_stop_tokens() -> None:
    model = build()
    batch = prompts([6, 6, 6])
    free = generate_batch(model, batch, 12)
    stop = {int(free[0][3]), int(free[1][7])}
    expected = []
    for row in free:
        ends = [i for i, token in enumerate(row.tolist()) if token in stop]
        expected.append(row[: ends[0]] if ends else row)
    assert len(expected[0]) <= 3
    stopped = generate_batch(model, batch, 12, stop=stop)
    assert all(torch.equal(a, b) for a, b in zip(stopped, expected, strict=True))
    one = model.generate(batch[0][None], 12, stop=stop)
    assert one.shape[1] == 6 + len(expected[0]) + 1 and int(one[0, -1]) in stop
    both = model.generate(torch.stack(batch), 12, stop=stop)
    tail = both[0, 6 + len(expected[0]) :]
    assert set(tail.tolist()) == {int(tail[0])}


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"temperature": -1.0}, ["temperature=-1.0", "greedy"]),
        ({"temperature": math.nan}, ["temperature=nan"]),
        ({"top_p": 0.0, "top_k": 0}, ["top_p=0.0", "top_k=0"]),
        ({"top_p": 1.5}, ["top_p=1.5", "at most 1"]),
        ({"new_tokens": 0}, ["new_tokens=0", "at least 1"]),
        ({"new_tokens": 36}, ["seq_len=40", "use new_tokens=35 or fewer"]),
        ({"tokens": torch.tensor([[61]])}, ["prompt=61", "0 to 60"]),
        ({"tokens": torch.tensor([1, 2])}, ["(batch, tokens)"]),
        ({"seed": -1}, ["seed=-1"]),
        ({"seed": 10**20}, ["below 2^63"]),
    ],
    ids=lambda value: str(value) if isinstance(value, list) else "",
)
def test_invalid_values_are_reported_before_anything_is_computed(
    changes: dict[str, Any], messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    monkeypatch.setattr(model, "next_logits", lambda *_: pytest.fail("computed"))
    request = {"tokens": torch.zeros(1, 5, dtype=torch.int64), "new_tokens": 3, **changes}
    with pytest.raises(ConfigError) as raised:
        model.generate(**request)
    assert all(message in str(raised.value) for message in messages)


def test_damaged_weights_are_one_message() -> None:
    model = build()
    with torch.no_grad():
        model.blocks[0].mlp.down.weight[0] = math.nan
    with pytest.raises(DataError, match="not finite: its weights are damaged"):
        model.generate(torch.zeros(1, 3, dtype=torch.int64), 2)


def test_tokens_are_yielded_one_step_at_a_time() -> None:
    model, prompt = build(), torch.stack(prompts([5, 5]))
    steps = list(stream(model, prompt, 6))
    assert torch.equal(torch.stack(steps, 1), model.generate(prompt, 6)[:, 5:])


@pytest.mark.parametrize("tied", [True, False])
def test_weights_by_column_change_neither_values_nor_names(tied: bool) -> None:
    model, same = (build(replace(SHAPE, tied=tied)) for _ in range(2))
    prepare_for_decoding(same)
    assert (same.head.weight is same.embedding.weight) == tied
    before, after = model.state_dict(), same.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    gate_up, down = same.blocks[0].mlp.gate_up.weight, same.blocks[0].mlp.down.weight
    assert gate_up.stride(0) == 1 and down.is_contiguous()
    batch = torch.stack(prompts([20, 20]))
    with torch.no_grad():
        torch.testing.assert_close(same(batch), model(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_packed_weights_give_the_same_logits(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where torch has no such products: then the weights are stored by column."""
    plain, packed, other = (build(replace(SHAPE, tied=tied)) for _ in range(3))
    plain.to(torch.bfloat16)
    prepare_for_decoding(packed, torch.bfloat16)
    assert has_packed_products() == (not hasattr(packed.blocks[0].mlp.down, "weight"))
    monkeypatch.setattr(weight_layout, "has_packed_products", lambda: False)
    prepare_for_decoding(other, torch.bfloat16)
    assert other.blocks[0].mlp.gate_up.weight.stride(0) == 1
    batch = torch.stack(prompts([20, 20]))
    with torch.no_grad():
        expected = plain(batch)
        for model in (packed, other):
            assert model(batch).dtype == torch.bfloat16
            error = (model(batch) - expected).abs().max()
            assert error <= 0.05 * expected.abs().max()
            assert model.generate(batch, 5).shape == (2, 25)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("padding", [None, [0, 3]], ids=["equal", "padded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_recorded_steps_equal_dynamic_steps_on_a_gpu(
    dtype: torch.dtype, padding: list[int] | None
) -> None:
    model = build().to("cuda", dtype)
    batch = torch.stack(prompts([7, 7])).cuda()
    counts = None if padding is None else torch.tensor(padding)
    decoders = [Decoder(model, 2, 20, static=static) for static in (False, None)]
    tolerance = 1e-3 if dtype is torch.float32 else 0.5
    for _ in range(2):  # the second time, the recorded graph is reused
        logits = [decoder.prefill(batch, counts) for decoder in decoders]
        for _ in range(13):
            torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=tolerance)
            tokens = logits[0].argmax(-1)
            logits = [decoder.step(tokens) for decoder in decoders]
