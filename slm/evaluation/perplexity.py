"""Perplexity and bits per byte of any text, per document, with every token scored once.

A document longer than the window is split into overlapping windows of `window` tokens, `stride` tokens apart.
Each window scores only the tokens that no earlier window scored, so that after the first window every token
has a context of at least window - stride tokens. This is the usual protocol of published perplexities, such
as 1024/512 on WikiText-2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slm.data.tokenizers.tokenizer import Tokenizer
from slm.data.tokens.encode import describe_loss
from slm.errors import ConfigError, DataError, Problem
from slm.evaluation.zero_shot.standard_error import clustered_mean
from slm.logs import log
from slm.model.loss import IGNORED, perplexity, token_nats
from slm.model.transformer import Transformer
from slm.summary import Summarized

BATCH_TOKENS = 16_384
MIN_TOKENS = 2  # of a document, the first of which is not scored
MIN_DOCUMENTS = 2  # for a standard error
BATCH_LOGITS = 1 << 28  # 1 GiB in fp32; binds for vocabularies above 16,384 entries


@dataclass(frozen=True, repr=False)
class Score(Summarized):
    """Sums over the scored tokens of one or several texts."""

    name: str
    tokens: int
    text_bytes: int
    nats: float
    is_lossless: bool = True
    """Whether the tokens decode to the text; if not, bits per byte are approximate."""

    def title(self) -> str:
        return (
            f"{self.name}: {self.nats_per_token:.4f} nats/token, perplexity {self.perplexity:.4g}, "
            f"{self.bits_per_byte:.4f} bits/byte over {self.tokens:,} tokens"
        )

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """Perplexity per token; comparable only between models with the same tokenizer."""
        return perplexity(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.text_bytes if self.text_bytes else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Return values for JSON; undefined ratios are None."""
        ratios = {
            key: getattr(self, key) for key in ("nats_per_token", "perplexity", "bits_per_byte")
        }
        counts = {"name": self.name, "tokens": self.tokens, "text_bytes": self.text_bytes}
        return {**counts, "nats": self.nats} | {
            key: value if math.isfinite(value) else None for key, value in ratios.items()
        }


@dataclass(frozen=True)
class Window:
    """Tokens of one document; the last `scored` of them are scored."""

    document: int
    tokens: NDArray[np.int64]
    scored: int


def total(scores: Iterable[Score]) -> Score:
    """Sum scores."""
    scores = list(scores)
    return Score(
        "all",
        sum(s.tokens for s in scores),
        sum(s.text_bytes for s in scores),
        math.fsum(s.nats for s in scores),
        all(s.is_lossless for s in scores),
    )


def bits_per_byte_se(scores: Sequence[Score]) -> float | None:
    """Return the standard error of the bits per byte of all documents together, or None for one document.

    Documents are a random sample. With y_i bits and x_i bytes of document i, R = sum(y) / sum(x) is a ratio
    estimator with Var(R) = n / (n - 1) * sum((y_i - R x_i)^2) / sum(x)^2: that of a mean weighted by bytes.

    Source: Cochran, Sampling Techniques (1977), chapter 6, without the correction for a finite population.
    """
    known = [score for score in scores if score.text_bytes]
    if len(known) < MIN_DOCUMENTS:
        return None
    _, error = clustered_mean(
        [score.bits_per_byte for score in known], weights=[score.text_bytes for score in known]
    )
    return error


def score_texts(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Iterable[tuple[str, str]],
    *,
    window: int,
    stride: int,
    start_token: bool = True,
) -> list[Score]:
    """Score each (name, text) pair on its own.

    With `start_token`, the end-of-text token is put before the text, so that every byte is predicted. Without
    it, the first token is not scored, as in most published results.

    Raises:
        ConfigError: unless 1 <= stride < window <= model.seq_len.
        DataError: if the tokenizer has more entries than the model, or no token can be scored, or the losses are not finite.
    """
    _check_windows(window, stride, model.shape.seq_len)
    names: list[str] = []
    sizes, documents = [], []
    lossy: dict[int, str] = {}  # index of the text -> its loss
    for name, original in texts:
        text = tokenizer.normal_form(original)  # bytes are counted there
        (ids,) = tokenizer.encode_batch([text])
        if loss := describe_loss(tokenizer, text, ids):
            lossy[len(names)] = f"{name}: {loss}"
        start = np.array([tokenizer.eot_id] if start_token else [], dtype=np.int64)
        unscored_bytes = 0 if start_token else tokenizer.count_bytes(ids[:1])
        names.append(name)
        sizes.append(len(text.encode()) - unscored_bytes)
        documents.append(np.concatenate([start, ids]).astype(np.int64))
    if lossy:
        log.warning(
            f"the tokenizer changes {len(lossy)} of {len(names)} texts; bits/byte counts the bytes before this change, "
            f"in the normal form of the tokenizer; first {next(iter(lossy.values()))}"
        )
    _check_tokens(documents, model.shape.vocab_size)
    nats = np.zeros(len(documents))
    tokens = np.zeros(len(documents), dtype=np.int64)
    windows = (w for i, ids in enumerate(documents) for w in split_windows(i, ids, window, stride))
    logits_per_window = window * model.shape.vocab_size
    batch_windows = max(1, min(BATCH_TOKENS // window, BATCH_LOGITS // logits_per_window))
    while batch := list(islice(windows, batch_windows)):
        indices = [w.document for w in batch]
        np.add.at(nats, indices, _sum_nats(model, batch))
        np.add.at(tokens, indices, [w.scored for w in batch])
    if not np.isfinite(nats).all():
        raise DataError("the losses of the model are not finite: its weights are damaged")
    return [
        Score(name, int(n), size, float(total_nats), index not in lossy)
        for index, (name, n, size, total_nats) in enumerate(
            zip(names, tokens, sizes, nats, strict=True)
        )
    ]


def split_windows(
    document: int, ids: NDArray[np.int64], window: int, stride: int
) -> Iterator[Window]:
    """Yield windows that together score every token of `ids` but the first, once."""
    scored_end = 1
    for begin in range(0, max(len(ids) - 1, 0), stride):
        end = min(begin + window, len(ids))
        yield Window(document, ids[begin:end], end - scored_end)
        scored_end = end
        if end == len(ids):
            return


@torch.inference_mode()
def _sum_nats(model: Transformer, batch: list[Window]) -> NDArray[np.float64]:
    """Sum the loss over the scored tokens of each window, in nats."""
    width = max(len(w.tokens) for w in batch) - 1
    inputs = torch.zeros((len(batch), width), dtype=torch.int64)  # padded on the right
    targets = torch.full_like(inputs, IGNORED)
    for row, window in enumerate(batch):
        tokens = torch.from_numpy(window.tokens)
        n_inputs = len(tokens) - 1
        inputs[row, :n_inputs] = tokens[:-1]
        targets[row, n_inputs - window.scored : n_inputs] = tokens[len(tokens) - window.scored :]
    device = next(model.parameters()).device
    logits: Tensor = model(inputs.to(device))
    nats = token_nats(logits, targets.to(device)).view(len(batch), width)
    return nats.double().sum(1).cpu().numpy()


def _check_tokens(documents: Sequence[NDArray[np.int64]], vocab_size: int) -> None:
    largest = max((int(ids.max()) for ids in documents if len(ids)), default=0)
    if largest >= vocab_size:
        raise DataError(
            f"the tokenizer returns token {largest}, but the model has {vocab_size:,} vocabulary entries; use the "
            "tokenizer that the model was trained with"
        )
    if all(len(ids) < MIN_TOKENS for ids in documents):
        raise DataError(
            "the text has fewer than 2 tokens, so no token can be predicted; give a longer text"
        )


def _check_windows(window: int, stride: int, seq_len: int) -> None:
    problems = []
    if not 2 <= window <= seq_len:
        rule = f"must be 2 to {seq_len:,} tokens, the model's seq_len"
        problems.append(
            Problem("window", window, rule, f"use {min(max(window, 2), seq_len)}, the nearest")
        )
    elif not 1 <= stride < window:
        rule = f"must be at least 1 and less than window={window}"
        fix = f"for example {max(1, window // 2)}, or {window - 1} for the smallest overlap"
        problems.append(Problem("stride", stride, rule, fix))
    if problems:
        raise ConfigError(problems)
