"""The size of a validation batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from slm.model.documents import cumulative_lengths, document_ids
from slm.run.spec import RunSpec
from slm.training import batches, loop
from slm.training.batches import VAL_BATCH_TOKENS, val_batch_sequences
from tests.running import run_to_end

pytestmark = pytest.mark.numeric

Spec = Callable[..., RunSpec]
SEQ_LEN, SEPARATOR = 1024, 7


def packed(sequences: int, document_tokens: int) -> torch.Tensor:
    """Return the document ids of sequences of documents of one length, (sequences, SEQ_LEN)."""
    tokens = torch.zeros(sequences * SEQ_LEN, dtype=torch.long)
    tokens[::document_tokens] = SEPARATOR
    return document_ids(tokens.view(sequences, SEQ_LEN), SEPARATOR)


@pytest.mark.parametrize(
    ("micro_sequences", "expected", "document_tokens"),
    [(1, 1, 2), (8, 8, 16), (32, 32, 64), (64, 32, 64), (256, 32, 64)],
)
def test_validation_batch_holds_documents_that_fit_a_micro_batch(
    tiny_spec: Spec, micro_sequences: int, expected: int, document_tokens: int
) -> None:
    """Documents are so short that batches of 65,536 tokens hold too many of them, or just as many as they may."""
    spec = tiny_spec(
        model={"seq_len": SEQ_LEN, "document_mask": True},
        optimizer={"global_batch_tokens": SEQ_LEN},
    )
    cumulative_lengths(packed(micro_sequences, document_tokens))  # raises if there are too many
    sequences = val_batch_sequences(spec, "cuda", micro_sequences)
    assert sequences == expected
    cumulative_lengths(packed(sequences, document_tokens))
    whole = VAL_BATCH_TOKENS["cuda"] // SEQ_LEN
    if document_tokens < 64:
        with pytest.raises(RuntimeError, match=r"has more than \d+ documents"):
            cumulative_lengths(packed(whole, document_tokens))


def test_other_validation_batches_do_not_depend_on_the_micro_batch(tiny_spec: Spec) -> None:
    masked, plain = (tiny_spec(model={"document_mask": mask}) for mask in (True, False))
    for micro_sequences in (1, 8):
        assert val_batch_sequences(masked, "cpu", micro_sequences) == 16_384 // 32
        assert val_batch_sequences(plain, "cuda", micro_sequences) == 65_536 // 32


def test_validation_loss_does_not_depend_on_the_batch(
    tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    for sequences in (64, 3):
        monkeypatch.setitem(batches.VAL_BATCH_TOKENS, "cpu", sequences * 32)
        spec = tiny_spec(model={"document_mask": True}, study={"name": str(sequences)})
        losses.append(run_to_end(spec)[1].val_loss_nats_per_token)
    # Batches of another size round sums in another order.
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_validation_of_a_run_follows_its_micro_batch(
    tiny_spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, int]] = []

    def record(spec: RunSpec, device_type: str, micro_sequences: int) -> int:
        given.append((device_type, micro_sequences))
        return 64

    monkeypatch.setattr(loop, "val_batch_sequences", record)
    run_to_end(tiny_spec(trainer={"micro_batch_sequences": 2}))
    assert given == [("cpu", 2)]
