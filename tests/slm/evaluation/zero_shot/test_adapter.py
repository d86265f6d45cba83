"""Log-likelihoods and scores are those of lm-eval with the exported checkpoint in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slm.data.tokenizers.hf_files import train_bpe
from slm.data.tokenizers.tokenizer import ByteTokenizer, HFTokenizer, Tokenizer
from slm.errors import DataError
from tests.slm.evaluation.zero_shot.models import TASK_DATA, TEXTS, lm_eval_hf, random_model

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.numeric

LOCAL_TASKS = (
    "arc_easy", "arc_challenge", "boolq", "piqa", "social_iqa", "hellaswag", "openbookqa", "winogrande",
    "lambada_openai",
)  # fmt: skip
LONG = "A long context that is truncated on the left. " * 4
PAIRS = [
    (TEXTS[0], " and wide models are shallow"),
    (TEXTS[0], " and"),
    (TEXTS[0], " or"),  # shares the forward pass of the pair before it with a byte per token less
    ("Yes or no? ", "yes"),  # the space moves to the answer
    ("Question: why?\n\n", "because"),
    ("", "no context at all"),
    (LONG, "answer"),
    (LONG, "another answer"),
    ("é", "è — ü"),
]


needs_data = pytest.mark.skipif(
    not TASK_DATA.is_dir(), reason=f"{TASK_DATA} is absent; set SLM_TEST_DATA to the test data"
)


def tokenizers() -> list[Tokenizer]:
    return [ByteTokenizer("byte"), ByteTokenizer("ascii"), HFTokenizer(train_bpe(TEXTS * 4, 300))]


def requests(kind: str, arguments: list[tuple[str, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, pair, index) for index, pair in enumerate(arguments)]


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=["byte", "ascii", "bpe"])
def test_loglikelihoods_equal_those_of_lm_eval(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from slm.evaluation.zero_shot.adapter import SlmLM

    model = random_model(tokenizer.vocab_size, 64)
    ours, theirs = SlmLM(model, tokenizer), lm_eval_hf(model, tokenizer, tmp_path)
    assert ours.prefix_token_id == theirs.prefix_token_id
    assert ours.max_length == theirs.max_length
    expected = theirs.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    found = ours.loglikelihood(requests("loglikelihood", PAIRS))
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    texts = [(LONG,), ("x",), (TEXTS[1],)]
    rolling = requests("loglikelihood_rolling", texts)
    expected_sums = theirs.loglikelihood_rolling(rolling, disable_tqdm=True)
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(expected_sums, rel=1e-6)


def test_a_greedy_continuation_is_recognised() -> None:
    from slm.evaluation.zero_shot.adapter import SlmLM

    tokenizer = ByteTokenizer("ascii")
    model = random_model(tokenizer.vocab_size, 64)
    (ids,) = tokenizer.encode_batch(["Deep or"])
    (likely,) = model(_tensor(ids.tolist()))[:, -1].argmax(-1).tolist()
    lm = SlmLM(model, tokenizer)
    pairs = [(("", ""), ids.tolist(), [token]) for token in (likely, (likely + 1) % 90)]
    assert [greedy for _, greedy in lm._loglikelihood_tokens(pairs)] == [True, False]


def test_answers_longer_than_a_window_are_scored_in_pieces() -> None:
    from slm.evaluation.zero_shot.adapter import SlmLM

    tokenizer = ByteTokenizer("byte")
    model = random_model(tokenizer.vocab_size, 16)
    ids = [token + 1 for token in range(3 + 21)]
    ((nats, _),) = SlmLM(model, tokenizer)._loglikelihood_tokens([(("", ""), ids[:3], ids[3:])])
    expected = 0.0
    for start, end in ((3, 11), (11, 19), (19, 24)):  # pieces of 8 after at most 16 tokens
        begin = max(0, end - 17)
        log_p = model(_tensor(ids[begin : end - 1])).log_softmax(-1)[0]
        expected += sum(float(log_p[at - begin - 1, ids[at]].detach()) for at in range(start, end))
    assert nats == pytest.approx(expected, rel=1e-6)


def test_answers_that_cannot_be_scored_are_named() -> None:
    from slm.evaluation.zero_shot.adapter import SlmLM

    tokenizer = ByteTokenizer("byte")
    lm = SlmLM(random_model(tokenizer.vocab_size, 16), tokenizer)
    with pytest.raises(DataError, match=r"without tokens, after 'the context'"):
        lm.loglikelihood(requests("loglikelihood", [("the context", "")]))
    with pytest.raises(DataError, match="generate text"):
        lm.generate_until([])


def test_work_is_shared_and_batched_by_length() -> None:
    from slm.evaluation.zero_shot.adapter import BATCH_TOKENS, _batches, _rows

    pairs = [(None, [1] * length, [token]) for length in range(1, 200) for token in (5, 6, 7)]
    rows = _rows(pairs, 512)
    assert [len(row.tokens) for row in rows] == list(range(199, 0, -1))
    assert all(len(row.continuations) == 3 for row in rows)
    batches = list(_batches(rows, 100))
    assert [row for batch in batches for row in batch] == rows
    assert all(len(batch) * len(batch[0].tokens) <= BATCH_TOKENS for batch in batches)
    assert len(batches) < 10
    assert len(list(_batches(rows, 10**9))) == len(rows)  # logits limit the batch


def _score_both(
    tasks: list[str], limit: int, tokenizer: Tokenizer, seq_len: int, out: Path
) -> None:
    """Compare all scores of ours with those of lm-eval's own evaluator."""
    from lm_eval.evaluator import evaluate

    from slm.evaluation.zero_shot.tasks import find_tasks, quiet, score_tasks

    model = random_model(tokenizer.vocab_size, seq_len)
    found = find_tasks(tasks, TASK_DATA)
    ours = score_tasks(model, tokenizer, found, limit=limit)
    with quiet():
        theirs = evaluate(
            lm_eval_hf(model, tokenizer, out),
            {"tasks": {task.name: task.definition for task in found}},
            limit=limit,
            bootstrap_iters=2,  # for the standard error of the perplexity, which is not compared
        )
    for score in ours:
        logged = theirs["samples"][score.task]
        assert score.examples == len(logged) == len(score.samples)
        assert score.examples >= min(limit, 100)
        for sample, expected in zip(score.samples, logged, strict=True):
            nats = [answer[0] for answer in expected["filtered_resps"]]
            assert sample["loglikelihoods"] == pytest.approx(nats, abs=1e-4)
        results = theirs["results"][score.task]
        for name in ("acc", "acc_norm"):
            assert (name in score.metrics) == (f"{name},none" in results)
            if name in score.metrics:
                assert score.metrics[name] == pytest.approx(results[f"{name},none"])
                # lm-eval's standard errors ignore common passages.
                if len({sample["cluster"] for sample in score.samples}) == score.examples:
                    theirs_se = results[f"{name}_stderr,none"]
                    assert score.metrics[f"{name}_se"] == pytest.approx(theirs_se)
        if score.task == "lambada_openai":
            assert score.metrics["perplexity"] == pytest.approx(
                results["perplexity,none"], rel=1e-4
            )


@needs_data
def test_scores_equal_those_of_lm_eval(tmp_path: Path) -> None:
    _score_both(
        ["arc_easy", "winogrande", "lambada_openai"], 8, ByteTokenizer("byte"), 256, tmp_path
    )


@needs_data
@pytest.mark.slow
def test_scores_of_all_local_tasks_equal_those_of_lm_eval(tmp_path: Path) -> None:
    # Some passages of boolq are longer than seq_len.
    texts = [path.read_text() for path in sorted(TASK_DATA.glob("[abhp]*.jsonl"))]
    _score_both(list(LOCAL_TASKS), 100, HFTokenizer(train_bpe(texts, 1000)), 320, tmp_path)


def _tensor(ids: list[int]) -> Any:
    import torch

    return torch.tensor([ids])
