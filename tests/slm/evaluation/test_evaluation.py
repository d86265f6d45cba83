"""Evaluation of text: every token is scored once, with the result of a loop over single windows."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from slm.data.tokenizers.tokenizer import ByteTokenizer
from slm.errors import ConfigError, DataError
from slm.evaluation.perplexity import Score, bits_per_byte_se, score_texts, split_windows, total
from slm.model.build import build_model
from slm.model.parametrization import Parametrization, initialize
from slm.model.transformer import Transformer
from slm.run.spec import RunSpec

pytestmark = pytest.mark.numeric

TEXTS = [("empty", ""), ("short", "Deep."), ("long", "deep and thin, wide and shallow; " * 9)]


@pytest.fixture
def model(tiny_spec: Callable[..., RunSpec]) -> Transformer:
    spec = tiny_spec()
    model = build_model(spec.config, spec.shape)
    initialize(model, Parametrization.of(spec.config.parametrization, spec.shape), 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def score_by_loop(
    model: Transformer, ids: list[int], window: int, stride: int
) -> tuple[float, int]:
    """Score with the sliding window of published perplexities: labels before `previous` are masked."""
    nats, counted, previous = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        tokens = torch.tensor([ids[begin:end]])
        labels = tokens.clone()
        labels[:, : -(end - previous)] = -100
        with torch.no_grad():
            logits = model(tokens)[:, :-1].double()
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        nats, counted = nats + float(loss), counted + int((labels[:, 1:] != -100).sum())
        previous = end
        if end == len(ids):
            break
    return nats, counted


@pytest.mark.parametrize("start_token", [True, False])
@pytest.mark.parametrize(("window", "stride"), [(32, 16), (32, 31), (8, 1), (2, 1)])
def test_batched_scores_equal_a_loop(
    model: Transformer, window: int, stride: int, start_token: bool
) -> None:
    tokenizer = ByteTokenizer("ascii")
    scores = score_texts(
        model, tokenizer, TEXTS, window=window, stride=stride, start_token=start_token
    )
    for (name, text), score in zip(TEXTS, scores, strict=True):
        ids = [tokenizer.eot_id] * start_token + tokenizer.encode_batch([text])[0].tolist()
        nats, counted = score_by_loop(model, ids, window, stride) if ids else (0.0, 0)
        assert (score.name, score.tokens) == (name, counted)
        assert score.tokens == max(0, len(ids) - 1)
        assert score.text_bytes == max(0, len(text.encode()) - (not start_token))
        assert score.nats == pytest.approx(nats, rel=1e-6)
    summed = total(scores)
    assert summed.tokens == sum(score.tokens for score in scores)
    assert summed.perplexity == pytest.approx(math.exp(summed.nats / summed.tokens))
    assert summed.bits_per_byte == pytest.approx(summed.nats / math.log(2) / summed.text_bytes)


def test_every_token_is_scored_once_with_enough_context() -> None:
    for length in (0, 1, 2, 15, 16, 17, 100):
        ids = np.arange(length)
        scored: list[int] = []
        for window in split_windows(0, ids, 16, 5):
            tail = window.tokens[len(window.tokens) - window.scored :].tolist()
            if scored:
                assert len(window.tokens) - window.scored >= min(11, length - 5)
            scored += tail
        assert scored == list(range(1, length))


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (16, 16), (16, 0), (1024, 512)])
def test_invalid_windows_are_refused(model: Transformer, window: int, stride: int) -> None:
    with pytest.raises(ConfigError, match=r"window=|stride="):
        score_texts(model, ByteTokenizer("ascii"), TEXTS, window=window, stride=stride)


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(model: Transformer) -> None:
    text = [("latin", "façade")]  # bytes above the 99 entries of the model
    with pytest.raises(DataError, match=r"returns token \d+, but the model has 99 vocabulary"):
        score_texts(model, ByteTokenizer("byte"), text, window=16, stride=8)


def test_a_text_without_a_token_to_predict_is_refused(model: Transformer) -> None:
    arguments = {"window": 16, "stride": 8}
    with pytest.raises(DataError, match="fewer than 2 tokens"):
        score_texts(model, ByteTokenizer("ascii"), [("a", "a")], start_token=False, **arguments)
    (score,) = score_texts(model, ByteTokenizer("ascii"), [("a", "a")], **arguments)
    assert score.tokens == 1  # one short window: the start token and the byte


def documents(count: int) -> list[Score]:
    """Return documents of different lengths and difficulties."""
    generator = np.random.default_rng(7)
    sizes = generator.lognormal(6, 1, count).astype(int) + 1
    rates = generator.normal(1.0, 0.2, count) + 0.1 * np.log(sizes)
    return [
        Score(str(i), int(size), int(size), float(size * rate))
        for i, (size, rate) in enumerate(zip(sizes, rates, strict=True))
    ]


def test_standard_error_is_that_of_a_bootstrap_over_documents() -> None:
    scores = documents(300)
    nats = np.array([score.nats for score in scores])
    sizes = np.array([score.text_bytes for score in scores])
    drawn = np.random.default_rng(11).integers(len(scores), size=(4000, len(scores)))
    resampled = nats[drawn].sum(1) / sizes[drawn].sum(1) / math.log(2)
    assert bits_per_byte_se(scores) == pytest.approx(resampled.std(), rel=0.1)


def test_standard_error_of_equal_sizes_is_the_usual_one() -> None:
    nats = [3.0, 5.0, 4.0, 9.0]
    scores = [Score("", 10, 10, each) for each in nats]
    bits = np.array(nats) / 10 / math.log(2)
    assert bits_per_byte_se(scores) == pytest.approx(bits.std(ddof=1) / 2)
    assert bits_per_byte_se(scores[:1]) is None
    empty = Score("", 0, 0, 0.0)
    assert bits_per_byte_se([*scores, empty]) == bits_per_byte_se(scores)
