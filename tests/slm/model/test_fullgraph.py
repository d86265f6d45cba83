"""torch.compile captures a block, and the whole model without its loss, as one graph with each switch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from slm.architecture.shapes import ModelShape
from slm.model.documents import Documents, cumulative_lengths, document_layout
from slm.model.transformer import Block, Transformer, precompute_rope

SHAPE = ModelShape(1, 32, 4, 2, 8, 48, 61, 16)
IDS = torch.tensor([[0] * 5 + [1] * 11, [0] * 15 + [1]])
SWITCHES: dict[str, dict[str, Any]] = {
    "default": {},
    "fp32": {"bf16": False},
    "document_mask": {"documents": True},
    "fp32, document_mask": {"documents": True, "bf16": False},
    "matmul": {"attention": "matmul"},
    "matmul, document_mask": {"attention": "matmul", "documents": True},
    "reference": {"attention": "reference"},
    "reference, document_mask": {"attention": "reference", "documents": True},
    "qk_norm": {"shape": {"qk_norm": True}},
    "gelu": {"shape": {"mlp": "gelu"}},
    "one query head per key head": {"shape": {"n_kv_heads": 4}},
    "dropout": {"dropout": 0.5},
}
FAST = ("default", "document_mask", "matmul")  # each takes two to five seconds


@pytest.fixture(autouse=True)
def _reset_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build_block(attention: str = "sdpa", dropout: float = 0.0, **shape: Any) -> Block:
    torch.manual_seed(0)
    return Block(replace(SHAPE, **shape), 1e-5, attention, 0.5, dropout)


def block_inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(2, SHAPE.seq_len, SHAPE.d_model, requires_grad=True)
    return x, precompute_rope(SHAPE.seq_len, SHAPE.d_head, 10_000.0)


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SWITCHES],
)
def test_block_is_one_graph_that_computes_the_same(name: str) -> None:
    switch = SWITCHES[name]
    attention, is_bf16 = switch.get("attention", "sdpa"), switch.get("bf16", True)
    block = build_block(attention, switch.get("dropout", 0.0), **switch.get("shape", {}))
    x, cos_sin = block_inputs()
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    documents = None
    if switch.get("documents"):
        documents = document_layout(IDS, attention, dtype, SHAPE.d_head)
    results = []
    for function in (block, torch.compile(block, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            output = function(x, cos_sin, documents)
        gradients = torch.autograd.grad(output.sum(), [x, *block.parameters()])
        results.append([output, *gradients])
    tolerance = 5e-2 if is_bf16 else 1e-5
    if not switch.get("dropout"):  # compiled functions draw other random numbers
        for expected, actual in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


class Traced(Exception):
    """Raised instead of running a graph for which this machine has no kernels."""


def capture(function: Any, *inputs: Any) -> set[str]:
    """Return the names of the operations in the graph of a function, which is not run."""
    operations: set[str] = set()

    def backend(graph: fx.GraphModule, example: list[Tensor]) -> Any:
        operations.update(str(node.target) for node in graph.graph.nodes)

        def run(*args: Any) -> Any:
            raise Traced

        return run

    with pytest.raises(Traced), torch.autocast("cpu", torch.bfloat16):
        torch.compile(function, backend=backend, fullgraph=True)(*inputs)
    return operations


def test_block_with_documents_on_gpus_is_one_graph() -> None:
    documents = Documents(IDS, cu_seqlens=cumulative_lengths(IDS))
    operations = capture(build_block(), *block_inputs(), documents)
    assert any("varlen_attn" in operation for operation in operations)


def test_document_layout_is_one_graph_without_host_copies() -> None:
    operations = capture(cumulative_lengths, IDS)
    assert any("searchsorted" in operation for operation in operations)


@pytest.mark.slow
@pytest.mark.parametrize("documents", [None, IDS])
def test_model_is_one_graph(documents: Tensor | None) -> None:
    torch.manual_seed(0)
    model = Transformer(replace(SHAPE, n_layers=2, layer_sharing=2))
    tokens = torch.randint(SHAPE.vocab_size, IDS.shape)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens, documents), model(tokens, documents))
