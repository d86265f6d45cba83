"""Run training steps on a CUDA device without memory and print their operations as JSON.

Usage: python -m tests.slm.model.fake_cuda_steps LIBRARY, the compiled fake_cuda.cpp
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

ctypes.CDLL(sys.argv[1])

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from slm.model.documents import document_ids  # noqa: E402
from slm.model.loss import head_loss  # noqa: E402
from slm.model.transformer import Transformer  # noqa: E402
from tests.slm.model.fake_cuda_cases import CASES, SEQUENCES, SHAPE  # noqa: E402

NAMESPACES = ("aten", "torch_attn")
NO_KERNEL = ("empty", "new_empty", "detach", "_unsafe_view")
# Without bmm: no fused attention kernel exists here, so that sdpa uses matrix products, in fp32.
MATMULS = ("mm", "addmm", "addmm_", "_varlen_attn", "_varlen_attn_backward")


class Recorder(TorchDispatchMode):
    """Counts kernels, host synchronisations and the dtypes of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.host_copies: list[str] = []
        self.matmul_dtypes: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name, inputs, outputs = func.overloadpacket.__name__, tensors((args, kwargs)), tensors(out)
        aliases = [x.alias_info for x in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if not is_view and func.namespace in NAMESPACES and not name.startswith(NO_KERNEL):
            self.kernels[name] += 1
        if name in MATMULS:
            operands = inputs[1:3] if name.startswith("addmm") else inputs[:2]
            self.matmul_dtypes |= {str(x.dtype) for x in operands}
        if any(x.is_cuda for x in inputs) and any(not x.is_cuda for x in outputs):
            self.host_copies.append(name)
        return out

    def report(self) -> dict[str, Any]:
        return {
            "kernels": dict(self.kernels),
            "host_copies": self.host_copies,
            "matmul_dtypes": sorted(self.matmul_dtypes),
        }


class GroupedQueries(TorchFunctionMode):
    """Records the argument enable_gqa of each call of scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            self.calls.append(kwargs["enable_gqa"])
        return func(*args, **(kwargs or {}))


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def step(case: dict[str, Any]) -> dict[str, Any]:
    """Take one step: forward, loss, backward, clipping, finite check and fused AdamW."""
    shape = replace(SHAPE, **case.get("shape", {}))
    model = Transformer(shape, **case.get("model", {}))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens = torch.zeros(case.get("sequences", SEQUENCES), shape.seq_len, dtype=torch.int64)
    with Recorder() as recorder, GroupedQueries() as grouped:
        documents = document_ids(tokens, 0) if case.get("document_mask") else None
        with torch.autocast("cuda", torch.bfloat16, enabled=not case.get("fp32")):
            z_loss = case.get("z_loss", 0.0)
            sums = model(tokens, documents, targets=tokens, z_loss=z_loss)
            sums.objective.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        nn.utils.clip_grads_with_norm_(model.parameters(), 1.0, norm)
        optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        optimizer.step()
    return {
        **recorder.report(),
        "sdpa_with_grouped_queries": grouped.calls,
        "parameters": len(list(model.parameters())),
        "gradient_dtypes": [str(gradient.dtype) for gradient in gradients],
    }


def loss_kernels(chunks: int, z_loss: float, dtype: torch.dtype) -> Counter[str]:
    """Count the kernels of the head and loss for this many chunks of 4096 tokens."""
    hidden = torch.zeros(2 * chunks, 2048, SHAPE.d_model, dtype=dtype, requires_grad=True)
    weight = torch.zeros(SHAPE.vocab_size, SHAPE.d_model, requires_grad=True)
    targets = torch.zeros(2 * chunks, 2048, dtype=torch.int64)
    with Recorder() as recorder, torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        head_loss(hidden, weight, targets, z_loss)
    return recorder.kernels


def main() -> None:
    # There is no driver that could answer these.
    torch.cuda.is_available = lambda: True
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    with FakeTensorMode(), torch.device("cuda"):
        steps = {name: step(case) for name, case in CASES.items()}
        per_chunk = {
            f"{dtype}, z_loss={z_loss}": loss_kernels(3, z_loss, dtype)
            - loss_kernels(2, z_loss, dtype)
            for dtype in (torch.bfloat16, torch.float32)
            for z_loss in (0.0, 1e-4)
        }
    print(json.dumps({"steps": steps, "kernels_per_loss_chunk": per_chunk}))


if __name__ == "__main__":
    main()
