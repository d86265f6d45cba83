"""Evaluation of text: every token is scored once, with the result of a loop over single windows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from slm.data.tokenizers.tokenizer import ByteTokenizer
from slm.errors import ConfigError
from slm.evaluation.cli import evaluate, evaluate_text
from slm.evaluation.export import export_run
from slm.evaluation.perplexity import score_texts, split_windows, total
from slm.model.build import build_model
from slm.model.parametrization import Parametrization, initialize
from slm.model.transformer import Transformer
from slm.run.spec import RunSpec
from slm.tracking.run_dir import RunDirectory
from slm.training.runner import train

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


def test_evaluate_command(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(100):
        words = f"Document {number}: the state of the Union is strong. "
        (tmp_path / f"{number}.txt").write_text(words * 40)
    spec = tiny_spec(
        data={"source": "text_files", "files": [f"{tmp_path}/*.txt"]},
        tokenizer={"kind": "bpe", "vocab_size": 300},
    )
    run = RunDirectory.of(spec)
    with run.claim(spec):
        train(spec, run)
    text, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_text("The state of the Union is strong. " * 20)
    lines.write_text("".join(json.dumps({"body": t}) + "\n" for t in ["First.", "Second, longer."]))
    score, summed = evaluate_text(str(text), run=run.path)
    assert (score.name, score.text_bytes) == ("a.txt", 34 * 20)
    assert 0 < summed.bits_per_byte < 9
    jsonl = evaluate_text(str(lines), run=run.path, column="body", window=16)
    assert [s.text_bytes for s in jsonl] == [6, 15, 21]

    out = tmp_path / "exported"
    export_run(run.path, out)
    (exported, _) = evaluate_text(str(text), hf=out)
    assert exported.nats == pytest.approx(score.nats, rel=1e-6)

    evaluate(run=run.path, text=str(text), documents=False, json=True)
    assert json.loads(capsys.readouterr().out)[1]["nats"] == pytest.approx(score.nats)
    evaluate(run=run.path, text=str(text), documents=True, json=False)
    assert "a.txt" in capsys.readouterr().out
