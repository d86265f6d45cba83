"""Our models as a model of lm-eval.

Tokens are split into context and continuation, truncated and prefixed as by lm-eval's class for Hugging Face
models, so that the log-likelihoods are the same. Two things make it faster: sequences that differ only in their
last token share one forward pass, and the logits are computed only where a token is scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from slm.data.tokenizers.tokenizer import HFTokenizer, Tokenizer
from slm.errors import DataError
from slm.model.loss import token_nats
from slm.model.transformer import Transformer

BATCH_TOKENS = 4096  # padded tokens in one forward pass; larger batches are slower on CPUs
BATCH_LOGITS = 2**27  # scored positions times vocabulary: 512 MB of fp32 logits
Pair = tuple[Any, list[int], list[int]]  # texts (not used), context, continuation


class SlmLM(TemplateLM):
    """A model in eval mode with its tokenizer; log-likelihoods are in nats."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer):
        super().__init__()
        self.model = model
        self.slm_tokenizer = tokenizer
        self.prefix = _default_prefix(tokenizer)

    @property
    def eot_token_id(self) -> int:
        return self.slm_tokenizer.eot_id

    @property
    def max_length(self) -> int:
        return self.model.shape.seq_len

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        (ids,) = self.slm_tokenizer.encode_batch([string])
        prefix = [] if add_special_tokens is False else self.prefix
        return [*prefix, *ids.tolist()]

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Return log p(continuation | context) of each request, and whether greedy decoding would give it."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[float]:
        """Return log p(text) of each request, in disjoint windows of seq_len tokens after one token of context."""
        pairs: list[Pair] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
            )
            pairs += [(None, *make_disjoint_window(window)) for window in windows]
            owners += [owner] * (len(pairs) - len(owners))
        totals = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(pairs), strict=True):
            totals[owner] += nats
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        raise DataError("tasks that generate text are not supported; use slm.load(...).generate")

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = True, **_: Any
    ) -> list[tuple[float, bool]]:
        totals = [0.0] * len(requests)
        all_greedy = [True] * len(requests)
        for batch in _batches(_rows(requests, self.max_length), self.model.shape.vocab_size):
            nats, is_greedy = _score(self.model, batch)
            start = 0
            for index, tokens in (one for row in batch for one in row.continuations):
                end = start + len(tokens)
                totals[index] -= float(nats[start:end].sum())
                all_greedy[index] &= bool(is_greedy[start:end].all())
                start = end
        return list(zip(totals, all_greedy, strict=True))


@dataclass(frozen=True)
class Row:
    """Input tokens of one sequence, and the continuations that are scored at its end: (request, tokens)."""

    tokens: list[int]
    continuations: list[tuple[int, list[int]]]

    @property
    def scored(self) -> int:
        return sum(len(tokens) for _, tokens in self.continuations)


def _rows(requests: Sequence[Pair], max_length: int) -> list[Row]:
    """Return the distinct input sequences, the longest first; long contexts are truncated on the left.

    Raises:
        DataError: if a continuation is empty.
    """
    rows: dict[tuple[int, ...], Row] = {}
    for index, (texts, context, continuation) in enumerate(requests):
        if not continuation:
            raise DataError(f"an answer without tokens, after {str(texts[0])[-60:]!r}")
        for before, piece in _pieces(context, continuation, max_length):
            # The last token is only predicted, so max_length + 1 tokens are used.
            tokens = (before + piece)[-(max_length + 1) :][:-1]
            rows.setdefault(tuple(tokens), Row(tokens, [])).continuations.append((index, piece))
    return sorted(rows.values(), key=lambda row: -len(row.tokens))


def _pieces(
    context: list[int], continuation: list[int], max_length: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the continuation with its context; in pieces of half a window if it is longer than a window.

    lm-eval refuses such continuations, which are common for byte tokenizers.
    """
    size = len(continuation) if len(continuation) <= max_length else max(1, max_length // 2)
    for start in range(0, len(continuation), size):
        yield context + continuation[:start], continuation[start : start + size]


def _batches(rows: Sequence[Row], vocab_size: int) -> Iterator[list[Row]]:
    """Yield rows of similar length, as many as fit into one forward pass."""
    batch: list[Row] = []
    scored = 0
    for row in rows:
        longest = len((batch or [row])[0].tokens)
        is_full = (len(batch) + 1) * longest > BATCH_TOKENS
        if batch and (is_full or (scored + row.scored) * vocab_size > BATCH_LOGITS):
            yield batch
            batch, scored = [], 0
        batch.append(row)
        scored += row.scored
    if batch:
        yield batch


@torch.inference_mode()
def _score(model: Transformer, batch: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Return the nats of all scored tokens (float64) and whether each has the largest logit, row by row."""
    device = model.embedding.weight.device
    inputs = torch.zeros(
        (len(batch), len(batch[0].tokens)), dtype=torch.int64
    )  # padded on the right
    where, targets = [], []
    for index, row in enumerate(batch):
        length = len(row.tokens)
        inputs[index, :length] = torch.tensor(row.tokens)
        for _, tokens in row.continuations:
            start = index * inputs.shape[1] + length - len(tokens)
            where.append(torch.arange(start, start + len(tokens)))
            targets += tokens
    with _head_at(model, torch.cat(where).to(device)):
        logits = model(inputs.to(device))
    expected = torch.tensor([targets], device=device)
    nats = token_nats(logits[None], expected)
    is_greedy = logits.argmax(dim=-1) == expected[0]
    return nats.double().cpu(), is_greedy.cpu()


@contextmanager
def _head_at(model: Transformer, positions: Tensor) -> Iterator[None]:
    """Let the model return the logits (n, V) at n positions of the flattened batch only."""

    def select(_: object, inputs: tuple[Tensor]) -> Tensor:
        return inputs[0].flatten(0, 1)[positions]

    handle = model.head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def _default_prefix(tokenizer: Tokenizer) -> list[int]:
    """Return the token that the tokenizer's own file puts before every text, as transformers does, or none."""
    if not isinstance(tokenizer, HFTokenizer):
        return []
    return [tokenizer.eot_id] if tokenizer.adds_start_token else []
