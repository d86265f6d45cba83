"""Tasks from local files: their fields and errors, prompts of both layouts, and bits per byte of the gold answer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from slm.data.tokenizers.tokenizer import ByteTokenizer
from slm.errors import ConfigError, DataError
from slm.evaluation.zero_shot import tasks as zero_shot
from slm.evaluation.zero_shot.definitions import DEFINITIONS
from slm.evaluation.zero_shot.tasks import Task, find_tasks, score_tasks
from tests.slm.evaluation.zero_shot.models import random_model

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.numeric

CHOICES = {"text": ["thin", "wide shape"], "label": ["A", "B"]}
EXAMPLES: dict[str, list[dict[str, Any]]] = {  # the layouts of one example: as on the hub, and as in other files
    "arc_easy": [{"question": "Which?", "choices": CHOICES, "answerKey": "B"}],
    "openbookqa": [{"question_stem": "A deep model is", "choices": CHOICES, "answerKey": "A"}],
    "boolq": [
        {"passage": "Deep is thin.", "question": "is deep wide", "label": 0},
        {"passage": "Deep is thin.", "question": "is deep wide", "answer": False},
    ],
    "piqa": [{"goal": "Train", "sol1": "Use data.", "sol2": "Use none.", "label": 0}],
    "social_iqa": [
        {"context": "Ann trains.", "question": "Why?", "answerA": "for fun", "answerB": "no", "answerC": "so",
         "label": "1"},
    ],
    "hellaswag": [
        {"activity_label": "Training", "ctx_a": "A model runs.", "ctx_b": "it", "endings": ["ends.", "stops soon."],
         "label": "1", "source_id": "video~1"},
        {"activity_label": "Training", "ctx": "A model runs. It", "endings": ["ends.", "stops soon."], "label": "1"},
    ],
    "winogrande": [
        {"sentence": "The net beat the tree because the _ was deep.", "option1": "net", "option2": "tree",
         "answer": "1"},
    ],
    "lambada_openai": [
        {"text": "Deep models are thin"},
        {"context": "Deep models are", "continuation": "thin"},
    ],
    "wikitext": [{"page": " = Depth = \n \n A deep model has many layers . \n"}],
}  # fmt: skip
GOLD = {  # context that the model sees, and the scored gold answer
    "arc_easy": ("Question: Which?\nAnswer:", " wide shape"),
    "openbookqa": ("A deep model is", " thin"),
    "boolq": ("Deep is thin.\nQuestion: is deep wide?\nAnswer:", " no"),
    "piqa": ("Question: Train\nAnswer:", " Use data."),
    "social_iqa": ("Q: Ann trains. Why?\nA:", " for fun"),
    "hellaswag": ("Training: A model runs. It", " stops soon."),
    "winogrande": ("The net beat the tree because the net", " was deep."),
    "lambada_openai": ("Deep models are", " thin"),
}


def write(folder: Path, name: str, *rows: object) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


@pytest.mark.parametrize("name", GOLD)
def test_bits_per_byte_of_the_gold_answer(name: str, tmp_path: Path) -> None:
    """A literal computation, token by token; both layouts of an example give the same score."""
    tokenizer = ByteTokenizer("byte")
    model = random_model(tokenizer.vocab_size, 128)
    context, answer = GOLD[name]
    ids = torch.tensor([list((context + answer).encode())])
    log_p = model(ids).log_softmax(-1)[0]
    start, end = len(context.encode()), ids.shape[1]
    nats = -sum(float(log_p[at - 1, ids[0, at]].detach()) for at in range(start, end))
    for number, row in enumerate(EXAMPLES[name]):
        folder = tmp_path / str(number)
        write(folder, name, row)
        (score,) = score_tasks(model, tokenizer, find_tasks([name], folder))
        assert score.bits_per_byte == pytest.approx(
            nats / math.log(2) / len(answer.encode()), rel=1e-5
        )
        assert (score.examples, score.bits_per_byte_se) == (1, None)
        choices = {"social_iqa": 3, "lambada_openai": None}.get(name, 2)
        assert score.chance == (None if choices is None else pytest.approx(1 / choices))
        json.dumps([dict(sample) for sample in score.samples], allow_nan=False)


def test_standard_errors_are_clustered_over_common_passages(tmp_path: Path) -> None:
    rows = [
        {"passage": passage, "question": f"is {word} wide", "label": label}
        for passage in ("Deep is thin.", "Wide is flat.")
        for word, label in (("deep", 0), ("thin", 1), ("flat", 0))
    ]
    write(tmp_path, "boolq", *rows)
    tokenizer = ByteTokenizer("byte")
    model = random_model(tokenizer.vocab_size, 128)
    (score,) = score_tasks(model, tokenizer, find_tasks(["boolq"], tmp_path))
    bits = [sample["bits_per_byte"] for sample in score.samples]
    sums = [sum(bits[start : start + 3]) / 3 for start in (0, 3)]
    # Of two clusters of equal size: half the distance between their means.
    assert score.bits_per_byte_se == pytest.approx(abs(sums[0] - sums[1]) / 2)
    right = [sample["acc"] for sample in score.samples]
    assert score.metrics["acc_se"] == pytest.approx(abs(sum(right[:3]) - sum(right[3:])) / 6)


def test_wikitext_from_a_text_file_equals_its_pages(tmp_path: Path) -> None:
    pages = [
        " = Deep = \n \n = = Thin = = \n Many layers . \n",
        " = Wide = \n Few layers , all wide . \n",
    ]
    write(tmp_path / "a", "wikitext", *({"page": page} for page in pages))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "wikitext.txt").write_text("".join(pages))
    tokenizer = ByteTokenizer("ascii")
    model = random_model(tokenizer.vocab_size, 32)
    scores = [
        score_tasks(model, tokenizer, find_tasks(["wikitext"], tmp_path / each))[0] for each in "ab"
    ]
    assert scores[0] == scores[1]
    (score, _) = scores
    nats = -sum(sample["loglikelihoods"][0] for sample in score.samples)
    text_bytes = sum(len(page.encode()) for page in pages)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / text_bytes)
    assert score.metrics["byte_perplexity"] == pytest.approx(2**score.bits_per_byte)
    assert score.metrics["word_perplexity"] > score.metrics["byte_perplexity"]
    assert score.chance is None


def test_examples_with_one_passage_are_one_cluster(tmp_path: Path) -> None:
    row = EXAMPLES["boolq"][0]
    write(tmp_path, "boolq", row, {**row, "question": "is deep thin"}, {**row, "passage": "Other."})
    (task,) = find_tasks(["boolq"], tmp_path)
    tokenizer = ByteTokenizer("byte")
    (score,) = score_tasks(random_model(tokenizer.vocab_size, 64), tokenizer, [task])
    clusters = [sample["cluster"] for sample in score.samples]
    assert clusters[0] == clusters[1] != clusters[2]
    (limited,) = score_tasks(random_model(tokenizer.vocab_size, 64), tokenizer, [task], limit=2)
    for one, same in zip(limited.samples, score.samples, strict=False):  # batches differ: last bits
        assert one["example"] == same["example"] and one["cluster"] == same["cluster"]
        assert one["loglikelihoods"] == pytest.approx(same["loglikelihoods"], rel=1e-5)
    assert len(limited.samples) == 2


def test_unknown_tasks_are_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_tasks(["arc_esay", "piqa", "piqa"], tmp_path)
    assert "tasks=arc_esay: unknown task (did you mean arc_easy?)" in str(caught.value)
    assert "tasks=piqa: given twice" in str(caught.value)


def test_missing_files_are_named_with_those_that_exist(tmp_path: Path) -> None:
    write(tmp_path, "siqa", EXAMPLES["social_iqa"][0])
    with pytest.raises(ConfigError) as caught:
        find_tasks(["piqa", "lambada"], tmp_path)
    message = str(caught.value)
    assert (
        f"task_data={tmp_path}/piqa.jsonl: no such file, needed for tasks=piqa (the folder has siqa.jsonl)"
        in message
    )
    assert "lambada_openai.jsonl" in message
    (task,) = find_tasks(["siqa"], tmp_path)
    assert (task.name, task.examples) == ("social_iqa", 1)
    with pytest.raises(ConfigError, match="no such folder"):
        find_tasks(["piqa"], tmp_path / "absent")


ARC, PIQA = EXAMPLES["arc_easy"][0], EXAMPLES["piqa"][0]
DAMAGED = {
    "not JSON": ("arc_easy", '{"question": ', "invalid JSON"),
    "no object": ("arc_easy", "[1]", "must be a JSON object"),
    "other name": ("arc_easy", {**ARC, "answerKey": ..., "answer_key": "B"}, "answerKey is missing; did you mean answer_key"),
    "unknown label": ("arc_easy", {**ARC, "answerKey": "C"}, "answerKey='C' must be one of A, B"),
    "labels": ("arc_easy", {**ARC, "choices": {"text": ["a", "b"], "label": ["A"]}}, "has 2 texts but 1 labels"),
    "no choices": ("arc_easy", {**ARC, "choices": []}, "must be an object"),
    "empty text": ("piqa", {**PIQA, "sol2": " "}, "sol2=' ' must be text that is not empty"),
    "label type": ("piqa", {**PIQA, "label": "0"}, "label='0' must be one of 0, 1"),
    "no label": ("piqa", {**PIQA, "label": -1}, "label=-1 must be one of 0, 1"),
    "no blank": ("winogrande", {**EXAMPLES["winogrande"][0], "sentence": "No blank."}, "with one blank _"),
    "ending": ("hellaswag", {**EXAMPLES["hellaswag"][1], "label": "2"}, "label='2' must be 0 to 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_lines_are_named(case: str, tmp_path: Path) -> None:
    name, row, message = DAMAGED[case]
    if isinstance(row, dict):
        row = {key: value for key, value in row.items() if value is not ...}
    path = write(tmp_path, name, EXAMPLES[name][-1], "", row)
    with pytest.raises(DataError) as caught:
        find_tasks([name], tmp_path)
    assert f"{path}:3: " in str(caught.value)  # the empty line is skipped but counted
    assert message in str(caught.value)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "arc_easy.jsonl"
    for content, message in (
        (b"", "contains no examples"),
        (b"\xff\xfe", "cannot be read as UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            find_tasks(["arc_easy"], tmp_path)


@pytest.mark.slow
def test_without_network_the_message_names_task_data() -> None:
    with pytest.raises(DataError, match=r"give task_data=DIR, a folder with arc_easy\.jsonl"):
        find_tasks(["arc_easy"], None)


def test_without_lm_eval_the_message_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(zero_shot, "find_spec", lambda name: None)
    write(tmp_path, "piqa", PIQA)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[eval\]'"):
        find_tasks(["piqa"], tmp_path)


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, rows in EXAMPLES.items():
        write(tmp_path, name, rows[-1])
    tokenizer = ByteTokenizer("byte")
    found = find_tasks(list(EXAMPLES), tmp_path)
    score_tasks(random_model(tokenizer.vocab_size, 64), tokenizer, found)
    shown = capfd.readouterr()
    assert shown.out + shown.err == ""


def test_lm_eval_defines_every_task() -> None:
    """The folder of each definition exists in the installed version, and has the task."""
    from lm_eval.tasks import TaskManager

    for name, definition in DEFINITIONS.items():
        folder = zero_shot._lm_eval_folder(definition)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        assert name in manager.all_subtasks


def test_a_task_counts_its_examples(tmp_path: Path) -> None:
    path = write(tmp_path, "piqa", PIQA, PIQA)
    (task,) = find_tasks(["piqa"], tmp_path)
    assert isinstance(task, Task)
    assert (task.examples, task.source) == (2, str(path))
