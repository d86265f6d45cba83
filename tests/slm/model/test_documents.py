"""The layout of documents: start positions against a plain loop, attention per document against a mask."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from slm.architecture import varlen
from slm.architecture.varlen import max_documents
from slm.model.attention import attend
from slm.model.documents import cumulative_lengths, document_ids, document_layout

pytestmark = pytest.mark.numeric

SEPARATOR = 7
# Separators at the start, at the end, next to each other, and none: every row starts a document.
TOKENS = torch.tensor(
    [[7, 1, 2, 7, 7, 3, 4, 7], [1, 2, 3, 4, 5, 6, 1, 2], [0, 7, 0, 0, 0, 0, 0, 0]]
)


def starts_by_loop(ids: Tensor) -> list[int]:
    rows, seq_len = ids.shape
    return [
        row * seq_len + t
        for row in range(rows)
        for t in range(seq_len)
        if t == 0 or ids[row, t] != ids[row, t - 1]
    ]


def test_cumulative_lengths_are_the_starts_padded_with_the_total() -> None:
    ids = document_ids(TOKENS, SEPARATOR)
    lengths = cumulative_lengths(ids)
    starts = starts_by_loop(ids)
    assert starts == [0, 3, 4, 7, 8, 16, 17]
    assert lengths.dtype == torch.int32 and len(lengths) == max_documents(*ids.shape) + 1
    assert lengths.tolist() == starts + [24] * (len(lengths) - len(starts))


def test_a_batch_of_separators_only_fits() -> None:
    """Up to MIN_DOCUMENTS tokens every token can be a document."""
    ids = document_ids(torch.full((3, 8), SEPARATOR), SEPARATOR)
    assert cumulative_lengths(ids).tolist() == list(range(25))


def test_more_documents_than_the_limit_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "MIN_DOCUMENTS", 3)
    ids = document_ids(TOKENS, SEPARATOR)
    assert max_documents(*ids.shape) == 6
    with pytest.raises(RuntimeError, match=r"3 x 8 tokens has more than 6 documents; set model\."):
        cumulative_lengths(ids)
    without_last = ids.clone()
    without_last[0, 7] = without_last[0, 6]
    assert cumulative_lengths(without_last).tolist() == [0, 3, 4, 8, 16, 17, 24]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_attention_within_the_lengths_equals_attention_with_the_mask(dtype: torch.dtype) -> None:
    """On GPUs kernels read the lengths; here each document is computed alone."""
    ids = document_ids(TOKENS, SEPARATOR)
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, heads, 8, 4, dtype=dtype) for heads in (4, 2, 2))
    layout = document_layout(ids, "sdpa", dtype, 4)
    assert layout.cu_seqlens is None and layout.mask is not None
    assert layout.mask.dtype == dtype and layout.mask.shape == (3, 1, 8, 8)
    masked = attend(q, k, v, "sdpa", layout).transpose(1, 2).flatten(0, 1)
    lengths = cumulative_lengths(ids).tolist()
    for start, end in pairwise(lengths):
        if start == end:
            break
        row, first, last = start // 8, start % 8, (end - 1) % 8 + 1
        alone = attend(*(x[row : row + 1, :, first:last] for x in (q, k, v)))
        expected = alone.transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(masked[start:end], expected, rtol=1e-5, atol=1e-6)
    assert end == start == 24


@pytest.mark.parametrize("backend", ["matmul", "reference"])
def test_these_backends_need_the_ids_only(backend: str) -> None:
    ids = document_ids(TOKENS, SEPARATOR)
    assert document_layout(ids, backend, torch.float32, 4) == (ids, None, None)
