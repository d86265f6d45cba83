"""Predicted memory of one training process, by component, before anything is allocated. Torch-free.

Autograd saves the following tensors for the backward pass, in bytes per token and per pass through a
block. Letters are those of slm/model/transformer.py; T is the sequence length; a is the bytes of an
element of matrix products: 4 in fp32, 2 under bf16 autocast.

    two norms            4 D + 4 each        the fp32 input and the inverse root mean square
    query, key, value    a D                 their input
    qk_norm              (H + G) (a K + 4)   same as the two norms, per head; on CUDA the input is in fp32
    attention            2 a (H + G) K       q, k, v and the attention output
      fused              4 H                 log-sum-exp of each softmax; on CUDA in fp32 or with a mask k
                                             and v are repeated for their query heads: 4 a H K
      reference          a H T               attention weights; T more for the document mask, or T^2 per
                                             block for the causal mask
      matmul             a H (T + n) / 2     attention weights, in blocks of n queries without future keys
    gate and up          a D                 their input
    MLP                  4 a F               gate, silu(gate), up and their product (gelu: 2 a F)
    dropout              2 a D               masks of both branches; on CUDA one byte per element

With activation_checkpointing autograd saves only the block's input (4 D per token), and the rest for one
block at a time. Outside the blocks it saves the input of the final norm, the dropout mask of the embedding
and the token ids; the loss (slm/model/loss.py) saves its gradients with respect to the hidden states and
the head. With document_mask and sdpa, all blocks share one additive mask of a T per token, except on CUDA
in bf16 (slm/model/documents.py). Compiled blocks save less than this.

Not counted: workspace inside kernels (except of attention over documents on CUDA, where it is large), and
fragmentation in the allocator.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from slm.architecture.loss_chunks import chunk_tokens
from slm.architecture.query_blocks import block_queries
from slm.architecture.shapes import ModelShape, ParameterCounts, count_parameters
from slm.architecture.varlen import has_varlen_shape, max_documents

FP32, BF16 = 4, 2  # bytes per element
UNFUSED_BACKENDS = {"reference", "matmul"}  # attention backends that store the attention weights
CHECKPOINT = "the checkpoint write"
FSDP_LIVE_BLOCKS = 3  # the current block, the next one's weights, the previous one's gradients


@dataclass(frozen=True)
class Execution:
    """The settings of a training run that change its memory; values as in the config."""

    precision: str = "fp32"
    attention: str = "sdpa"
    document_mask: bool = False
    dropout: float = 0.0
    activation_checkpointing: bool = False
    on_gpu: bool = False
    strategy: str = "single"
    processes: int = 1

    @property
    def element_bytes(self) -> int:
        """Bytes per element of the inputs and outputs of matrix products."""
        return BF16 if self.precision == "bf16" else FP32

    @property
    def shards(self) -> int:
        return self.processes if self.strategy == "fsdp" else 1


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted memory of one process at one moment of a training step, by component."""

    moment: str
    parameters_bytes: int
    """fp32 parameters and the RoPE table."""
    optimizer_bytes: int
    """First and second moments of Adam."""
    weight_copies_bytes: int
    """bf16 copies of the blocks' matrices, cached from the first micro-batch to the end of the step."""
    communication_bytes: int
    """Gradient buckets of ddp; parameters that fsdp has gathered from other ranks."""
    gradients_bytes: int
    """0 before the backward pass of the first micro-batch."""
    activations_bytes: int
    loss_bytes: int
    """One chunk of logits, and the gradients with respect to the head and the hidden states."""
    workspace_bytes: int
    """Temporary tensors of one block's backward pass, recomputed activations included."""

    @property
    def total_bytes(self) -> int:
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Return the bytes of each component, without the suffix `_bytes` in the names."""
        fields = asdict(self).items()
        return {k.removesuffix("_bytes"): v for k, v in fields if k.endswith("_bytes")}

    def as_dict(self) -> dict[str, int | str]:
        return {**asdict(self), "total_bytes": self.total_bytes}


def plan_memory(
    shape: ModelShape, execution: Execution, sequences: int, micro_batches: int = 1
) -> MemoryPlan:
    """Predict the peak memory of a step of `micro_batches` micro-batches of `sequences` sequences."""
    moments = plan_moments(shape, execution, sequences, micro_batches)
    return max(moments, key=lambda plan: plan.total_bytes)


def plan_moments(
    shape: ModelShape, execution: Execution, sequences: int, micro_batches: int = 1
) -> list[MemoryPlan]:
    """Predict the memory at each moment of a step that can be its peak.

    Between these moments memory is lower: each backward pass frees activations as it adds gradients.
    """
    counts, tokens = count_parameters(shape), sequences * shape.seq_len
    table, residual = FP32 * shape.vocab_size * shape.d_model, FP32 * tokens * shape.d_model
    saved = saved_activation_bytes(shape, execution, sequences)
    saved_by_block = _saved_by_block(shape, execution, sequences)
    workspace = tokens * _block_workspace(shape, execution)
    workspace += _varlen_workspace(shape, execution, sequences)
    if execution.activation_checkpointing:
        workspace, saved_by_block = workspace + saved_by_block - residual, 0
    layout = tokens * _layout_bytes(shape, execution)
    before, in_first_block, after = _gradients(shape, execution, counts, micro_batches)
    # With a tied table autograd holds the head's gradient until it adds the embedding's, beside the
    # gradient that earlier micro-batches accumulated.
    tables = 2 * table if shape.tied and micro_batches > 1 else table
    moments = [
        # gradients, activations, loss, workspace
        ("the loss computation", before, saved, _loss_bytes(shape, execution, tokens), 0),
        ("the backward pass of the loss", before, saved, 2 * (table + residual), 0),
        ("the backward pass of the last block", before, saved, table, workspace),
        (
            "the backward pass of the first block",
            in_first_block,
            saved_by_block + layout,
            0,
            workspace,
        ),
        ("the backward pass of the embedding", after, 0, tables, 0),
    ]
    if execution.strategy == "fsdp" and not execution.on_gpu:  # rank 0 gathers the whole state
        moments.append((CHECKPOINT, 0, 0, 0, 3 * FP32 * counts.params_total))
    constant = _constant_bytes(shape, execution, counts)
    return [MemoryPlan(moment, *constant, *parts) for moment, *parts in moments]


def largest_micro_batch(
    shape: ModelShape, execution: Execution, rows: int, available_bytes: float
) -> int | None:
    """Return the largest divisor of `rows` that fits into `available_bytes` as a micro-batch.

    `rows` is the number of sequences of a global batch in this process. None: one sequence does not fit.
    """
    fitting = (
        size
        for size in divisors(rows)
        if plan_memory(shape, execution, size, rows // size).total_bytes <= available_bytes
    )
    return max(fitting, default=None)


def format_bytes(n_bytes: float) -> str:
    """Format a size with three digits as `61.2 GB`, MB or KB; 1 GB is 10^9 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes / 1e3:.3g} KB"


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def saved_activation_bytes(shape: ModelShape, execution: Execution, sequences: int) -> int:
    """Count the bytes that autograd saves in a forward pass, without the loss and weight copies."""
    d, tokens = shape.d_model, sequences * shape.seq_len
    ids = 8 + _layout_bytes(shape, execution)
    dropout_mask = d * _mask_bytes(execution, FP32) if execution.dropout else 0
    # FP32 * d: the gain of the final norm times the logit multiplier.
    outside = tokens * (ids + dropout_mask + _norm_bytes(d)) + FP32 * d
    if execution.activation_checkpointing:
        return outside + shape.depth * FP32 * tokens * d
    return outside + shape.depth * _saved_by_block(shape, execution, sequences)


def _constant_bytes(
    shape: ModelShape, execution: Execution, counts: ParameterCounts
) -> tuple[int, int, int, int]:
    """Count the bytes of parameters, optimizer, weight copies and communication.

    They are constant throughout a step.
    """
    weights, in_blocks = FP32 * counts.params_total, counts.attention + counts.mlp
    rope_table = 2 * FP32 * shape.seq_len * shape.d_head
    copies = BF16 * in_blocks if execution.precision == "bf16" else 0
    communication = 0
    if execution.strategy == "ddp":
        communication = weights
    elif execution.strategy == "fsdp":
        gathered = FSDP_LIVE_BLOCKS * in_blocks // shape.n_layers
        communication = FP32 * (counts.params_embedding + shape.d_model + gathered)
    parameters = weights // execution.shards + rope_table
    return parameters, 2 * weights // execution.shards, copies, communication


def _gradients(
    shape: ModelShape, execution: Execution, counts: ParameterCounts, micro_batches: int
) -> tuple[int, int, int]:
    """Count the gradient bytes before the last backward pass, in its first block, and after it.

    With ddp the last two are 0: gradients are views of the buckets, which count as communication.
    """
    block = FP32 * (counts.attention + counts.mlp) // shape.n_layers
    unsharded = FP32 * counts.params_total  # fsdp shards gradients in the last micro-batch only
    before = unsharded if micro_batches > 1 else 0
    if execution.strategy == "ddp":
        return before, 0, 0
    in_first_block = unsharded if before else unsharded - block
    return before, in_first_block // execution.shards, unsharded // execution.shards


def _saved_by_block(shape: ModelShape, execution: Execution, sequences: int) -> int:
    """Count the bytes that autograd saves for one pass through a block."""
    per_pass = 0
    if execution.precision == "bf16" and not execution.on_gpu:
        per_pass += 2 * 2 * BF16 * shape.seq_len * shape.d_head  # RoPE table, cast for q and for k
    if execution.attention == "reference" and not execution.document_mask:
        per_pass += shape.seq_len**2
    per_token = _attention_bytes(shape, execution) + _mlp_bytes(shape, execution)
    return per_pass + sequences * shape.seq_len * per_token


def _layout_bytes(shape: ModelShape, execution: Execution) -> int:
    """Count the bytes per token of the document layout that blocks keep for the backward pass."""
    if not execution.document_mask:
        return 0
    mask = execution.element_bytes * shape.seq_len if _uses_mask(shape, execution) else 0
    return mask + (8 if execution.activation_checkpointing else 0)  # and the ids


def _uses_mask(shape: ModelShape, execution: Execution) -> bool:
    """Return whether all blocks share an additive attention mask (slm/model/documents.py)."""
    is_masked_sdpa = execution.document_mask and execution.attention == "sdpa"
    return is_masked_sdpa and not _uses_varlen(shape, execution)


def _uses_varlen(shape: ModelShape, execution: Execution) -> bool:
    """Return whether attention uses kernels for documents of several lengths; assumes an A100 or newer."""
    if not (execution.document_mask and execution.on_gpu):
        return False
    is_varlen_sdpa = execution.precision == "bf16" and has_varlen_shape(shape.d_head)
    return execution.attention == "flash" or (execution.attention == "sdpa" and is_varlen_sdpa)


def _norm_bytes(width: int, input_bytes: int = FP32) -> int:
    return input_bytes * width + FP32


def _mask_bytes(execution: Execution, element_bytes: int) -> int:
    return 1 if execution.on_gpu else element_bytes


def _attention_bytes(shape: ModelShape, execution: Execution) -> int:
    """Count the bytes per token that the attention branch saves, from its norm to its dropout."""
    a, d, heads, groups = execution.element_bytes, shape.d_model, shape.n_heads, shape.n_kv_heads
    q, kv, seq_len = heads * shape.d_head, groups * shape.d_head, shape.seq_len
    saved = _norm_bytes(d) + a * d
    if shape.qk_norm:
        saved += (heads + groups) * _norm_bytes(shape.d_head, FP32 if execution.on_gpu else a)
        if not execution.on_gpu or execution.precision == "fp32":
            saved += a * kv  # the norms save views of q and k, which keep the memory of v too
    if execution.attention == "reference":
        saved += 2 * a * (q + kv) + a * heads * seq_len
        saved += seq_len if execution.document_mask else 0
    elif execution.attention == "matmul":
        saved += 2 * a * (q + kv) + a * heads * _matmul_weights(seq_len) // seq_len
    else:
        saved += 2 * a * (q + (q if _repeats_groups(shape, execution) else kv)) + FP32 * heads
    return saved + (d * _mask_bytes(execution, a) if execution.dropout else 0)


def _matmul_weights(seq_len: int) -> int:
    """Count the attention weights per head that slm/model/attention_matmul.py saves.

    Queries are processed in blocks; each block has the keys up to its last query.
    """
    size = block_queries(seq_len)
    ends = [min(start + size, seq_len) for start in range(0, seq_len, size)]
    return sum((end - start) * end for start, end in zip([0, *ends], ends, strict=False))


def _repeats_groups(shape: ModelShape, execution: Execution) -> bool:
    """Return whether k and v are repeated for their query heads (slm/model/attention.py)."""
    is_gpu_sdpa = execution.on_gpu and execution.attention == "sdpa"
    return is_gpu_sdpa and (execution.precision == "fp32" or _uses_mask(shape, execution))


def _mlp_bytes(shape: ModelShape, execution: Execution) -> int:
    """Count the bytes per token that the MLP branch saves, from its norm to its dropout."""
    a, d, is_gated = execution.element_bytes, shape.d_model, shape.mlp == "swiglu"
    inner = (4 if is_gated else 2) * a * shape.d_ff
    return (
        _norm_bytes(d) + a * d + inner + (d * _mask_bytes(execution, a) if execution.dropout else 0)
    )


def _block_workspace(shape: ModelShape, execution: Execution) -> int:
    """Count the temporary bytes per token of a block's backward pass, beside its saved activations.

    The larger of the MLP's gradients and the gradients around the attention weights.
    """
    a = execution.element_bytes
    mlp = 2 * a * shape.d_ff + FP32 * shape.d_model
    if execution.attention not in UNFUSED_BACKENDS:
        return mlp
    # Scores, masked scores and weights exist together, while no activations of the MLP exist.
    return max(mlp, 2 * a * shape.n_heads * shape.seq_len - _mlp_bytes(shape, execution))


def _varlen_workspace(shape: ModelShape, execution: Execution, sequences: int) -> int:
    """Count the bytes in which FlashAttention 2 adds the gradient of q, over documents.

    It reserves 128 rows for each document that the layout can hold.
    """
    if not _uses_varlen(shape, execution):
        return 0
    rows = sequences * shape.seq_len + 128 * max_documents(sequences, shape.seq_len)
    return FP32 * rows * shape.n_heads * (math.ceil(shape.d_head / 32) * 32 + 1)


def _loss_bytes(shape: ModelShape, execution: Execution, tokens: int) -> int:
    """Count the peak bytes of the loss computation, which processes its logits in chunks."""
    a, d, vocab_size = execution.element_bytes, shape.d_model, shape.vocab_size
    chunk_size = chunk_tokens(vocab_size, tokens, on_gpu=execution.on_gpu)
    logits, is_bf16 = min(tokens, chunk_size) * vocab_size, a == BF16
    # Logits, in bf16 their fp32 copy, and log-probabilities. Compiled GPU code needs less.
    chunk = logits * (a + (FP32 if is_bf16 else 0) + FP32)
    if is_bf16 and not execution.on_gpu:
        # The logits' gradient, and its product with the hidden states before it is added.
        chunk = max(chunk, BF16 * logits + BF16 * vocab_size * d)
    head = vocab_size * d * (FP32 + (BF16 if is_bf16 else 0))  # gradient and bf16 copy
    return chunk + head + tokens * d * 3 * a  # hidden states, their copy and gradient
