"""Predicted memory of one training process, part by part, before anything is allocated. Torch-free.

For the backward pass autograd keeps, of each token in each block that it passes, in bytes (letters as in
slm/model/transformer.py, T for positions; a is 4 in fp32 and 2 under bf16 autocast):

    two norms                  4 D + 4 each     their input, which is fp32, and the inverse root mean square
    query, key, value          a D              their input
    qk_norm                    (H + G) (a K + 4)   as above, over heads; on CUDA its input in fp32
    attention                  2 a (H + G) K    q, k, v and the mixed values
      fused                    4 H              the log of each softmax's sum
                               a T              with document_mask: the mask as numbers to add (not of flash)
      reference                a H T            the weights; T for the documents' mask, T^2 a block for the causal one
      matmul                   a H (T + n) / 2  the weights, in blocks of n queries that see the past alone
      fallback                 4 H (T + 3 K)    on CUDA torch's sdpa has no fused kernel for grouped queries in fp32
                                                or with a mask, and keeps weights, q, k and v in fp32, for all heads
    gate and up                a D              their input
    MLP                        4 a F            gate, its silu, up, their product (gelu: 2 a F)
    dropout                    2 a D            masks of both branches; on CUDA a byte an element

With activation_checkpointing it keeps 4 D, the block's input, and the rest of one block at a time. Outside of
blocks it keeps the final norm, the embedding's dropout and the ids; the loss (slm/model/loss.py) keeps its
gradients by the hidden states and by the table. Blocks that are compiled keep less than this.

Memory that only a kernel uses inside is not counted, nor what an allocator loses between tensors.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from slm.architecture.shapes import ModelShape, ParameterCounts, count_parameters

FP32, BF16 = 4, 2  # bytes of a number
CHUNK_LOGITS, MIN_CHUNK_TOKENS = 2**22, 256  # of slm/model/loss.py, whose own need torch
MIN_BLOCK_QUERIES, MAX_BLOCKS = 64, 16  # of slm/model/attention_matmul.py
WRITTEN_OUT = {"reference", "matmul"}  # attention backends whose weights are tensors
CHECKPOINT = "a checkpoint"
BLOCKS_IN_TRANSIT = 3  # of FSDP: the one at work, the next one's weights, the last one's gradients


@dataclass(frozen=True)
class Execution:
    """How a shape is trained, as far as memory depends on it; values as in the config."""

    precision: str = "fp32"
    attention: str = "sdpa"
    document_mask: bool = False
    dropout: float = 0.0
    activation_checkpointing: bool = False
    on_gpu: bool = False
    strategy: str = "single"
    processes: int = 1

    @property
    def number_bytes(self) -> int:
        """Of what matrix products read and write."""
        return BF16 if self.precision == "bf16" else FP32

    @property
    def shards(self) -> int:
        return self.processes if self.strategy == "fsdp" else 1


@dataclass(frozen=True)
class MemoryPlan:
    """What one process holds in one moment of a step, that in which it holds most unless said otherwise."""

    moment: str
    parameters_bytes: int
    """fp32, and the table of rotary turns."""
    optimizer_bytes: int
    """Two moments of each parameter."""
    weight_copies_bytes: int
    """The blocks' matrices in bf16, kept from the first micro-batch to the end of the step."""
    communication_bytes: int
    """ddp's buckets of gradients; what fsdp has put together of other processes' shards."""
    gradients_bytes: int
    """None in the first micro-batch before its backward pass."""
    activations_bytes: int
    loss_bytes: int
    """A chunk of logits, and gradients by the table and by the hidden states."""
    workspace_bytes: int
    """What a block needs for its own backward pass; with activation_checkpointing all that it keeps."""

    @property
    def total_bytes(self) -> int:
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Bytes by part, without the unit in their names."""
        fields = asdict(self).items()
        return {k.removesuffix("_bytes"): v for k, v in fields if k.endswith("_bytes")}

    def as_dict(self) -> dict[str, int | str]:
        return {**asdict(self), "total_bytes": self.total_bytes}


def plan_memory(
    shape: ModelShape, how: Execution, sequences: int, micro_batches: int = 1
) -> MemoryPlan:
    """For micro-batches of `sequences`, so many of them in a step of this process."""
    moments = plan_moments(shape, how, sequences, micro_batches)
    return max(moments, key=lambda plan: plan.total_bytes)


def plan_moments(
    shape: ModelShape, how: Execution, sequences: int, micro_batches: int = 1
) -> list[MemoryPlan]:
    """The moments of which one needs most: in between, activations go as gradients come."""
    counts, tokens = count_parameters(shape), sequences * shape.seq_len
    table, stream = FP32 * shape.vocab_size * shape.d_model, FP32 * tokens * shape.d_model
    kept, by_block = kept_activations(shape, how, sequences), _kept_by_block(shape, how, sequences)
    work = tokens * _block_workspace(shape, how)
    if how.activation_checkpointing:
        work, by_block = work + by_block - stream, 0
    earlier, nearly_all, complete = _gradients(shape, how, counts, micro_batches)
    # A tied table's gradient by the head waits for that by the embedding, apart from earlier ones.
    tables = 2 * table if shape.tied and micro_batches > 1 else table
    moments = [
        # gradients, activations, loss, workspace
        ("the loss", earlier, kept, _loss_bytes(shape, how, tokens), 0),
        ("the loss's backward pass", earlier, kept, 2 * (table + stream), 0),
        ("the last block's backward pass", earlier, kept, table, work),
        ("the first block's backward pass", nearly_all, by_block, 0, work),
        ("the embedding's backward pass", complete, 0, tables, 0),
    ]
    if not how.on_gpu:  # the file is put together in the memory of the host
        moments.append((CHECKPOINT, 0, 0, 0, 3 * FP32 * counts.params_total))
    fixed = _fixed(shape, how, counts)
    return [MemoryPlan(moment, *fixed, *parts) for moment, *parts in moments]


def largest_micro_batch(
    shape: ModelShape, how: Execution, rows: int, available_bytes: float
) -> int | None:
    """The largest divisor of a process's `rows` of a global batch that fits; None if one row does not."""
    fitting = (
        size
        for size in divisors(rows)
        if plan_memory(shape, how, size, rows // size).total_bytes <= available_bytes
    )
    return max(fitting, default=None)


def in_units(n_bytes: float) -> str:
    """`61.2 GB`, and smaller ones in MB or KB; a GB is 10^9 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes / 1e3:.3g} KB"


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def kept_activations(shape: ModelShape, how: Execution, sequences: int) -> int:
    """Bytes that autograd keeps of a forward pass, those of the loss and copies of weights aside."""
    d, tokens = shape.d_model, sequences * shape.seq_len
    ids = 16 if how.activation_checkpointing and how.document_mask else 8
    dropped = d * _mask_bytes(how, FP32) if how.dropout else 0
    # The last norm's gain is kept times the multiplier of logits.
    outside = tokens * (ids + dropped + _norm_bytes(d)) + FP32 * d
    if how.activation_checkpointing:
        return outside + shape.depth * FP32 * tokens * d
    return outside + shape.depth * _kept_by_block(shape, how, sequences)


def _fixed(shape: ModelShape, how: Execution, counts: ParameterCounts) -> tuple[int, int, int, int]:
    """Parameters, optimizer, copies of weights, communication: the same all through a step."""
    weights, in_blocks = FP32 * counts.params_total, counts.attention + counts.mlp
    turns = 2 * FP32 * shape.seq_len * shape.d_head
    copies = BF16 * in_blocks if how.precision == "bf16" else 0
    communication = 0
    if how.strategy == "ddp":
        communication = weights
    elif how.strategy == "fsdp":
        in_transit = BLOCKS_IN_TRANSIT * in_blocks // shape.n_layers
        communication = FP32 * (counts.params_embedding + shape.d_model + in_transit)
    return weights // how.shards + turns, 2 * weights // how.shards, copies, communication


def _gradients(
    shape: ModelShape, how: Execution, counts: ParameterCounts, micro_batches: int
) -> tuple[int, int, int]:
    """Before the last backward pass, in its first block, and after it; ddp has the last two in buckets."""
    block = FP32 * (counts.attention + counts.mlp) // shape.n_layers
    whole = FP32 * counts.params_total  # fsdp too cuts them in the last micro-batch alone
    earlier = whole if micro_batches > 1 else 0
    if how.strategy == "ddp":
        return earlier, 0, 0
    return earlier, (whole if earlier else whole - block) // how.shards, whole // how.shards


def _kept_by_block(shape: ModelShape, how: Execution, sequences: int) -> int:
    """Bytes that one block keeps."""
    once = 0
    if how.precision == "bf16" and not how.on_gpu:
        once += 2 * 2 * BF16 * shape.seq_len * shape.d_head  # turns, cast for q and for k
    if how.attention == "reference" and not how.document_mask:
        once += shape.seq_len**2
    per_token = _attention_bytes(shape, how) + _mlp_bytes(shape, how)
    return once + sequences * shape.seq_len * per_token


def _norm_bytes(width: int, input_bytes: int = FP32) -> int:
    return input_bytes * width + FP32


def _mask_bytes(how: Execution, number_bytes: int) -> int:
    return 1 if how.on_gpu else number_bytes


def _attention_bytes(shape: ModelShape, how: Execution) -> int:
    """Of a token, from the norm to the branch's dropout."""
    a, d, heads, groups = how.number_bytes, shape.d_model, shape.n_heads, shape.n_kv_heads
    q, kv, positions = heads * shape.d_head, groups * shape.d_head, shape.seq_len
    kept = _norm_bytes(d) + a * d
    if shape.qk_norm:
        kept += (heads + groups) * _norm_bytes(shape.d_head, FP32 if how.on_gpu else a)
    if how.attention == "reference":
        kept += 2 * a * (q + kv) + a * heads * positions
        kept += positions if how.document_mask else 0
    elif how.attention == "matmul":
        kept += 2 * a * (q + kv) + a * heads * _weights_kept(positions) // positions
    elif _falls_back(shape, how):
        kept += FP32 * (heads * positions + 3 * q) + a * q
    else:
        kept += 2 * a * (q + kv) + FP32 * heads
        kept += a * positions if how.document_mask and how.attention == "sdpa" else 0
    return kept + (d * _mask_bytes(how, a) if how.dropout else 0)


def _weights_kept(positions: int) -> int:
    """Of a head: in blocks of queries (slm/model/attention_matmul.py), each with the keys up to its end."""
    size = max(MIN_BLOCK_QUERIES, math.ceil(positions / MAX_BLOCKS))
    ends = [min(start + size, positions) for start in range(0, positions, size)]
    return sum((end - start) * end for start, end in zip([0, *ends], ends, strict=False))


def _falls_back(shape: ModelShape, how: Execution) -> bool:
    """Documented of torch 2.13: of CUDA's fused kernels flash alone takes grouped queries."""
    grouped = shape.n_kv_heads != shape.n_heads
    without_flash = how.precision == "fp32" or how.document_mask
    return how.on_gpu and how.attention == "sdpa" and grouped and without_flash


def _mlp_bytes(shape: ModelShape, how: Execution) -> int:
    a, d, gated = how.number_bytes, shape.d_model, shape.mlp == "swiglu"
    inner = (4 if gated else 2) * a * shape.d_ff
    return _norm_bytes(d) + a * d + inner + (d * _mask_bytes(how, a) if how.dropout else 0)


def _block_workspace(shape: ModelShape, how: Execution) -> int:
    """Of a token, beside what the block keeps: gradients in the MLP, or around the attention weights."""
    a = how.number_bytes
    mlp = 2 * a * shape.d_ff + FP32 * shape.d_model
    if how.attention not in WRITTEN_OUT and not _falls_back(shape, how):
        return mlp
    # Scores, masked scores and weights are there at once, when the MLP keeps nothing yet or any more.
    return max(mlp, 2 * a * shape.n_heads * shape.seq_len - _mlp_bytes(shape, how))


def _loss_bytes(shape: ModelShape, how: Execution, tokens: int) -> int:
    """At most, while the loss goes through its chunks."""
    a, d, vocab_size = how.number_bytes, shape.d_model, shape.vocab_size
    most_tokens = max(MIN_CHUNK_TOKENS, CHUNK_LOGITS // vocab_size)
    logits = min(tokens, most_tokens) * vocab_size
    is_bf16, goes_on = a == BF16, tokens > most_tokens
    # Logits, in bf16 a copy in fp32, log-probabilities, and the last chunk's gradient.
    chunk = logits * (a + (FP32 if is_bf16 else 0) + FP32 + (a if goes_on else 0))
    if is_bf16:  # logits and their gradient while its product with the hidden states is added
        chunk = max(chunk, 2 * BF16 * logits + BF16 * vocab_size * d)
    table = vocab_size * d * (FP32 + (BF16 if is_bf16 else 0))  # its gradient and its copy
    return chunk + table + tokens * d * 3 * a  # hidden states, their copy and gradient
