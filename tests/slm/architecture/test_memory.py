"""The memory plan against the tensors that autograd saves, and against the peak memory of a step."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import Precision
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import Tensor, distributed, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slm.architecture.memory import (
    CHECKPOINT,
    Execution,
    plan_memory,
    plan_moments,
    saved_activation_bytes,
)
from slm.architecture.shapes import ModelShape
from slm.config.hydra import compose_config
from slm.data.tokens.prepare import prepare
from slm.model.documents import document_layout
from slm.model.loss import HeadLoss
from slm.model.transformer import Transformer
from slm.run.micro_batch import execution_of, micro_batch_of
from slm.run.spec import RunSpec, resolve
from slm.training.device import accelerator
from slm.training.distributed.fabric import ddp_strategy, fsdp_strategy
from slm.training.step import StepOutput, TrainingStep
from tests.conftest import ROOT, cli_env
from tests.running import run_to_end

Spec = Callable[..., RunSpec]
DEEP = ModelShape(2, 32, 4, 2, 8, 80, 101, 16)
WIDE = ModelShape(1, 64, 4, 4, 16, 170, 300, 32, layer_sharing=2)
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gelu": {"mlp": "gelu"},
    "untied": {"tied": False},
    "qk_norm": {"qk_norm": True},
}


def build_transformer(shape: ModelShape, how: Execution) -> Transformer:
    torch.manual_seed(0)
    return Transformer(
        shape,
        attention=how.attention,
        branch_multiplier=0.5,
        logit_multiplier=0.5,
        dropout=how.dropout,
        activation_checkpointing=how.activation_checkpointing,
    )


def saved_by_autograd(shape: ModelShape, how: Execution, sequences: int) -> tuple[int, int]:
    """Return the bytes that a forward pass of the module saves: activations, bf16 weight copies.

    Parameters and buffers are not counted.
    """
    model = build_transformer(shape, how)
    excluded = {
        tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())
    }
    activations: dict[int, Any] = {}
    copies: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in excluded:
            is_copy = tensor.grad_fn is not None and tensor.grad_fn.name() == "TBackward0"
            (copies if is_copy else activations)[storage._cdata] = (
                storage  # the reference keeps its address from being reused
            )
        return tensor

    tokens = torch.randint(shape.vocab_size, (sequences, shape.seq_len))
    documents = (tokens == 0).cumsum(1) if how.document_mask else None
    in_layout = 0
    if documents is not None and how.activation_checkpointing:
        # Saved by reference, not by autograd.
        dtype = torch.bfloat16 if how.precision == "bf16" else torch.float32
        layout = document_layout(documents, how.attention, dtype, shape.d_head)
        in_layout = sum(x.untyped_storage().nbytes() for x in layout if x is not None)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=how.precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        model(tokens, documents, targets=tokens)
    total, copied = (
        sum(storage.nbytes() for storage in group.values()) for group in (activations, copies)
    )
    return total + in_layout, copied


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("attention", ["sdpa", "reference", "matmul"])
def test_autograd_saves_the_predicted_bytes(attention: str, precision: str, switch: str) -> None:
    """Exact to the byte, for shapes with and without grouped queries and layer sharing."""
    switched = [replace(shape, **SWITCHES[switch]) for shape in (DEEP, WIDE)]
    for shape, sequences, documents, dropout, checkpointing in product(
        switched, (1, 3), (False, True), (0.0, 0.1), (False, True)
    ):
        how = Execution(precision, attention, documents, dropout, checkpointing)
        activations, copies = saved_by_autograd(shape, how, sequences)
        tokens, d_model = sequences * shape.seq_len, shape.d_model
        by_loss = (4 * shape.vocab_size + how.element_bytes * tokens) * d_model
        assert saved_activation_bytes(shape, how, sequences) == activations - by_loss, how
        if not checkpointing:
            assert plan_memory(shape, how, sequences).weight_copies_bytes == copies


class PeakMemory(TorchDispatchMode):
    """Records the peak of the bytes of all live tensors that operations returned."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def add(self, tensor: Tensor) -> None:
        tensor = getattr(tensor, "_local_tensor", tensor)  # the local shard of a DTensor
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = weakref.ref(storage)
            weakref.finalize(storage, self._storages.pop, key)

    @property
    def bytes(self) -> int:
        """Current bytes of all live storages; read anew each time, because fsdp resizes storages."""
        alive = (reference() for reference in list(self._storages.values()))
        return sum(storage.nbytes() for storage in alive if storage is not None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        return out


def measure_step_peak(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the peak bytes of the second step of a run, with parameters and Adam's moments."""
    original, peaks = TrainingStep.take, []

    def take(self: TrainingStep, step: int, pairs: Tensor) -> StepOutput:
        if step != 1:
            return original(self, step, pairs)
        gc.collect()
        with PeakMemory() as live:
            states = self.optimizer.state.values()
            moments = [v for state in states for v in state.values()]
            for tensor in (*self.module.parameters(), *self.module.buffers(), *moments):
                live.add(tensor)
            outputs = original(self, step, pairs)
        peaks.append(live.peak_bytes)
        return outputs

    with monkeypatch.context() as patched:
        patched.setattr(TrainingStep, "take", take)
        # Memory of bf16 is the same on a CPU that emulates it.
        patched.setattr(accelerator, "cpu_multiplies_bf16", lambda: True)
        run_to_end(spec)
    return peaks[0]


STEPS: dict[str, dict[str, Any]] = {
    "whole batch": {},
    "micro-batches": {"trainer": {"micro_batch_sequences": 2}},
    "bf16": {"trainer": {"precision": "bf16"}},
    "bf16, micro-batches": {"trainer": {"precision": "bf16", "micro_batch_sequences": 1}},
    "checkpointing": {"trainer": {"activation_checkpointing": True}},
    "checkpointing, micro-batches": {
        "trainer": {"activation_checkpointing": True, "micro_batch_sequences": 2}
    },
    "scores": {"model": {"attention": "reference"}},
    "scores, checkpointing": {
        "model": {"attention": "reference"},
        "trainer": {"activation_checkpointing": True},
    },
    "switches": {"model": {"mlp": "gelu", "qk_norm": True, "document_mask": True, "dropout": 0.1}},
    "shared layers, untied": {"model": {"layer_sharing": 2, "tied": False}},
    "wide": {"model": {"n_layers": 1, "d_model": 256, "n_heads": 8}},
    "large vocabulary": {"model": {"vocab_size": 20_000, "d_model": 64, "n_heads": 8}},
    "few tokens": {
        "model": {"d_model": 256, "n_heads": 8, "n_layers": 4},
        "trainer": {"micro_batch_sequences": 1},
    },
}


@pytest.mark.parametrize("name", STEPS)
def test_step_peak_equals_the_prediction(
    tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The prediction is at most 2% below and at most 6% above the bytes of live tensors."""
    base = {"n_layers": 4, "d_model": 64, "n_heads": 4, "n_kv_heads": 2, "seq_len": 128}
    changes = STEPS[name]
    spec = tiny_spec(
        **{**changes, "model": {**base, **changes.get("model", {})}},
        data={"val_tokens": 256},
        optimizer={"global_batch_tokens": 1024},
        budget={"tokens": 2048},
    )
    peak_bytes = measure_step_peak(spec, monkeypatch)
    how, micro_batch = execution_of(spec.config, "cpu"), micro_batch_of(spec, "cpu")
    moments = plan_moments(spec.shape, how, micro_batch.sequences, micro_batch.count)
    predicted_bytes = max(plan.total_bytes for plan in moments if plan.moment != CHECKPOINT)
    assert 0.98 < predicted_bytes / peak_bytes < 1.06


class Wrapped(nn.Module):
    """A model as the attribute that the strategies look for."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> HeadLoss:
        return self.model(tokens, targets=tokens)


@pytest.fixture
def group_of_one_process(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize(  # each pair of two settings once
    ("strategy", "precision", "micro_batches"),
    [("ddp", "fp32", 3), ("ddp", "bf16", 1), ("fsdp", "fp32", 1), ("fsdp", "bf16", 3)],
)
@pytest.mark.usefixtures("group_of_one_process")
def test_step_peak_of_ddp_and_fsdp_equals_the_prediction(
    strategy: Any, precision: str, micro_batches: int
) -> None:
    """World size 1: buckets, gathered blocks and gradients have the same size at any world size."""
    shape = ModelShape(8, 64, 4, 2, 16, 176, 512, 64)
    how = Execution(precision, strategy=strategy)
    tokens = torch.randint(512, (4 * micro_batches, 64))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with PeakMemory() as live:
        model = build_transformer(shape, how)
        fabric = Fabric(
            accelerator="cpu",
            devices=1,
            strategy=ddp_strategy() if strategy == "ddp" else fsdp_strategy(1),
            plugins=[Precision(), LightningEnvironment()],
        )
        fabric.launch()
        wrapped = fabric.setup_module(Wrapped(model))
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)

        def step() -> None:
            with autocast:
                for number in range(micro_batches):
                    micro = tokens[4 * number : 4 * number + 4]
                    is_last = number == micro_batches - 1
                    with fabric.no_backward_sync(wrapped, enabled=not is_last):
                        fabric.backward(wrapped(micro).objective)
                optimizer.step()
                optimizer.zero_grad()
            torch.clear_autocast_cache()

        step()
        gc.collect()
        live.peak_bytes = 0
        step()
    moments = plan_moments(shape, how, 4, micro_batches)
    predicted_bytes = max(plan.total_bytes for plan in moments if plan.moment != CHECKPOINT)
    assert 0.98 < predicted_bytes / live.peak_bytes < 1.05


GROWTH = """
import re, sys
from pathlib import Path
from slm.config.hydra import compose_config
from slm.run.spec import resolve
from slm.tracking.run_dir import RunDirectory
from slm.training.runner import train

def resident_bytes(which):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(which + r":\\s+(\\d+)", status)[1])

spec = resolve(compose_config(sys.argv[1:]))
run = RunDirectory.of(spec)
with run.claim(spec):
    before_bytes = resident_bytes("VmRSS")
    train(spec, run)
print(resident_bytes("VmHWM") - before_bytes)
"""
PRESET = ["model=mobilellm_125m", "trainer.compile=off", "trainer.threads=2", "tracking=disabled"]
# Two steps: moments are there from the second on. Activations are most of the first run's memory; parameters and
# moments of the second's.
RUNS = {
    "23 million, 4 x 1024": [
        *PRESET,
        "model.n_layers=12",
        "model.d_model=384",
        "model.n_heads=6",
        "model.d_ff=1024",
        "model.vocab_size=8192",
        "model.seq_len=1024",
        "optimizer.global_batch_tokens=4096",
        "budget=tokens",
        "budget.tokens=8192",
        "data.val_tokens=1024",
    ],
    "125 million, 1 x 512": [
        *PRESET,
        "model.seq_len=512",
        "optimizer.global_batch_tokens=512",
        "budget=tokens",
        "budget.tokens=1024",
        "data.val_tokens=512",
    ],
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("name", RUNS)
def test_resident_memory_grows_as_predicted(tmp_path: Path, cache_dir: Path, name: str) -> None:
    """With a malloc that returns freed memory at once; glibc's default keeps up to 50% more."""
    folders = [f"runs_dir={tmp_path / 'runs'}", f"cache_dir={cache_dir}"]
    spec = resolve(compose_config([*RUNS[name], *folders]))
    prepare(spec.config)
    child = subprocess.run(
        [sys.executable, "-c", GROWTH, *RUNS[name], *folders],
        cwd=ROOT,
        env={**cli_env(), "MALLOC_MMAP_THRESHOLD_": str(2**20)},
        capture_output=True,
        text=True,
        check=True,
    )
    plan = micro_batch_of(spec, "cpu").plan
    assert 0.85 < plan.total_bytes / int(child.stdout) < 1.15


def test_fsdp_shards_parameters_and_optimizer_only() -> None:
    shape = ModelShape(8, 64, 4, 2, 16, 176, 512, 64)
    one, shard = (plan_memory(shape, Execution(strategy="fsdp", processes=n), 1) for n in (1, 8))
    rope_table = 2 * 4 * shape.seq_len * shape.d_head
    assert shard.parameters_bytes - rope_table == (one.parameters_bytes - rope_table) // 8
    assert shard.optimizer_bytes == one.optimizer_bytes // 8
    assert shard.activations_bytes == one.activations_bytes


def test_gpu_saves_less_and_never_attention_weights() -> None:
    grouped = ModelShape(8, 64, 4, 2, 16, 176, 512, 1024)
    heads = replace(grouped, n_kv_heads=grouped.n_heads)
    bf16 = Execution("bf16", on_gpu=True)
    saved = saved_activation_bytes(grouped, bf16, 1)
    assert saved < saved_activation_bytes(grouped, Execution("bf16"), 1)
    assert saved == saved_activation_bytes(grouped, replace(bf16, document_mask=True), 1)
    # In fp32 keys and values are repeated, and all blocks share one mask.
    fp32 = replace(bf16, precision="fp32")
    assert saved_activation_bytes(grouped, fp32, 1) == saved_activation_bytes(heads, fp32, 1)
    with_mask = saved_activation_bytes(grouped, replace(fp32, document_mask=True), 1)
    mask = 4 * grouped.seq_len**2
    assert with_mask == saved_activation_bytes(grouped, fp32, 1) + mask


def test_loss_chunks_on_gpu_take_at_most_1280_mib() -> None:
    shape = ModelShape(30, 576, 9, 3, 64, 1536, 32_000, 2048)
    (plan, *_) = plan_moments(shape, Execution("bf16", on_gpu=True), 32)
    assert plan.moment == "the loss computation"
    head = shape.vocab_size * shape.d_model * (4 + 2)
    hidden = 32 * shape.seq_len * shape.d_model * 3 * 2
    # 512 MiB in fp32, twice, and half of that in bf16.
    assert 1200 * 2**20 < plan.loss_bytes - head - hidden <= 1280 * 2**20


def test_documents_on_gpu_need_workspace_for_the_largest_number_of_documents() -> None:
    shape, how = ModelShape(8, 64, 4, 2, 16, 176, 512, 1024), Execution("bf16", on_gpu=True)
    plain, masked = (
        plan_moments(shape, replace(how, document_mask=mask), 8) for mask in (False, True)
    )
    for before, after in zip(plain, masked, strict=True):
        is_backward = after.moment.endswith("block")
        # 8 x 1024 tokens hold 512 + 8 documents; 16 values per head are padded to 32.
        rows = 8 * 1024 + 128 * 520
        expected = 4 * rows * 4 * 33 if is_backward else 0
        assert after.total_bytes - before.total_bytes == expected
