"""The command `evaluate`: several models, protocols, files, errors before and during the computation."""

from __future__ import annotations

import csv
import json
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from analysis import load_runs
from slm.config.load import load_config
from slm.errors import ConfigError, DataError, RunError, SlmError
from slm.evaluation.evaluate import _errors_of_model, evaluate_models
from slm.evaluation.export import export_run
from slm.evaluation.figures import evaluation_figures
from slm.evaluation.load import load_tokenizer_of
from slm.evaluation.outputs import remove_earlier, write_page, write_tables
from slm.evaluation.protocols import PROTOCOLS, resolve_settings
from slm.evaluation.result import Evaluation, ModelScores, perplexity_gains
from slm.evaluation.run_table import csv_rows
from slm.evaluation.tables import tables
from slm.evaluation.texts import WIKITEXT2, WIKITEXT2_CONFIG, join_rows, read_texts
from slm.evaluation.zero_shot.score import TaskScore
from slm.model.build import build_model
from slm.model.hf import export_llama
from slm.model.parametrization import Parametrization, initialize
from slm.run.spec import resolve
from slm.tracking.run_dir import RunDirectory
from slm.training.runner import train
from tests.conftest import TINY, merged
from tests.in_process import ROOT, run_here

pytestmark = pytest.mark.numeric

SHAPES: dict[str, dict[str, Any]] = {
    "small": {"n_layers": 1},
    "deep": {"n_layers": 3},
    "wide": {"n_layers": 1, "d_model": 48},
}
# As the files of WikiText: a title, rows of one space between paragraphs.
TEXT = " = Congress = \n \n The state of the Union is strong . \n \n = Treaty = \n \n Deep and thin . \n"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """Three finished runs of one study, with a trained BPE."""
    folder = tmp_path_factory.mktemp("evaluate")
    for number in range(60):
        words = f"Document {number}: the state of the Union is strong, deep and thin. "
        (folder / f"{number}.txt").write_text(words * 40)
    runs = [
        ("deep_thin", SHAPES["small"]),
        ("deep_thin", SHAPES["deep"]),
        ("wide_shallow", SHAPES["wide"]),
    ]
    for family, shape in runs:
        changes = {
            "family": {"name": family},
            "model": shape,
            "data": {"source": "text_files", "files": [f"{folder}/*.txt"]},
            "tokenizer": {"kind": "bpe", "vocab_size": 300},
            "study": {"name": "three"},
            "runs_dir": str(folder / "runs"),
            "cache_dir": str(cache_dir),
        }
        spec = resolve(load_config(merged(TINY, changes)))
        run = RunDirectory.of(spec)
        with run.claim(spec):
            train(spec, run)
    return folder / "runs" / "three"


@pytest.fixture(scope="module")
def exported(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The deepest run, exported; the folder has its name."""
    deep = next(path for path in study.iterdir() if "L3" in path.name)
    folder = tmp_path_factory.mktemp("export") / "exported"
    export_run(deep, folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "wiki.txt"
    path.write_text(TEXT * 8)
    return path


def transformers_perplexity(folder: Path, text: str, window: int, stride: int) -> float:
    """The loop of the perplexity guide of transformers; the first token of the text is not scored."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    nats, counted, previous = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + window, ids.shape[1])
        inputs = ids[:, begin:end]
        labels = inputs.clone()
        labels[:, : -(end - previous)] = -100
        with torch.no_grad():
            logits = model(inputs).logits[:, :-1].double()
        nats += float(F.cross_entropy(logits[0], labels[0, 1:], reduction="sum"))
        counted += int((labels[:, 1:] != -100).sum())
        previous = end
        if end == ids.shape[1]:
            break
    return math.exp(nats / counted)


@pytest.mark.parametrize("kind", ["trained", "random"])
def test_seed_protocol_equals_transformers(
    kind: str, study: Path, exported: Path, text: Path, tmp_path: Path
) -> None:
    folder = exported
    if kind == "random":
        run = next(study.iterdir())
        spec = RunDirectory(run).spec()
        model = build_model(spec.config, spec.shape).eval()
        initialize(model, Parametrization.of(spec.config.parametrization, spec.shape), 3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        folder = shutil.copytree(exported, tmp_path / "random")
        export_llama(model, folder, load_tokenizer_of(run).eot_id)
    found = evaluate_models(folder, protocol="seed", text=str(text), window=24)
    (scores,) = found.models
    assert scores.text is not None
    rows = [line if line.strip() else "" for line in text.read_text().splitlines(keepends=True)]
    expected = transformers_perplexity(folder, "\n\n".join(rows), 24, 12)
    assert scores.text.all.perplexity == pytest.approx(expected, rel=1e-4)
    assert (scores.text.window, scores.text.stride) == (24, 12)
    assert scores.text.bits_per_byte_se is None and scores.text.is_lossless


def test_table_of_three_runs_and_a_checkpoint_that_was_exported_and_imported(
    study: Path, exported: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["", "-m", "slm", "evaluate", str(study), str(exported), f"text={text}"]
    done = run_here([*command, "document=article", f"out={out}"])
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(out / "models.csv").set_index("name")
    assert len(table) == 4 and done.stdout.count("deep_thin L3-d32") >= 1
    twin = next(name for name in table.index if "L3" in name)
    for column in ("perplexity", "bits_per_byte", "bits_per_byte_se", "text_tokens", "text_bytes"):
        assert table.loc["exported", column] == pytest.approx(table.loc[twin, column], rel=1e-5)
    same = ["params_total", "params_non_embedding", "shape", "window", "stride", "text_fingerprint"]
    assert table.loc["exported", same].tolist() == table.loc[twin, same].tolist()

    results = json.loads((out / "results.json").read_text())
    assert [model["name"] for model in results["models"]] == table.index.tolist()
    assert results["settings"]["document"] == "article" and not results["failures"]
    assert results["date"] and results["slm_version"] and results["comparisons"] == []
    rows = (out / "samples" / "exported" / "documents.jsonl").read_text().splitlines()
    assert len(rows) == results["models"][0]["text"]["documents"] == 16
    page = (out / "page.html").read_text()
    assert f"Text: {text}, 16 documents (document=article), window/stride 32/16 tokens" in page
    assert 'id="pareto_params"' in page and "http://" not in page.partition("<script>")[0]
    assert (out / "pareto_params.png").read_bytes().startswith(b"\x89PNG")


def test_models_csv_is_a_table_of_runs_for_the_analysis(
    study: Path, exported: Path, text: Path, tmp_path: Path
) -> None:
    evaluate_models([study, exported], text=str(text), out=tmp_path / "out")
    from_csv = load_runs(tmp_path / "out" / "models.csv")
    from_runs = load_runs(study).table
    assert dict(from_csv.dropped) == {"not finished (checkpoint)": 1}
    order = ["run_id"]
    ours, theirs = (t.sort_values(order, ignore_index=True) for t in (from_csv.table, from_runs))
    # In a folder of runs bits_per_byte is of the validation set; unusual_spikes is of the table.
    shared = [name for name in theirs if name not in ("bits_per_byte", "unusual_spikes")]
    known = [name for name in shared if theirs[name].notna().any()]
    missing = set(known) - set(ours) - {"val_errors"}
    assert not missing, missing
    pd.testing.assert_frame_equal(
        ours[[n for n in known if n in ours]],
        theirs[[n for n in known if n in ours]],
        check_dtype=False,
        rtol=1e-12,
    )
    assert ours["val_bits_per_byte"].tolist() == pytest.approx(theirs["bits_per_byte"].tolist())


def test_failure_of_one_model_keeps_the_results_of_the_others(
    study: Path, exported: Path, text: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(exported, tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    out = tmp_path / "out"
    command = ["", "-m", "slm", "evaluate", str(damaged), str(exported), f"text={text}"]
    done = run_here([*command, f"out={out}"])
    assert done.returncode == 1
    assert f"FAILED {damaged}" in " ".join(done.stdout.split()) and "1 of 2 models" in done.stderr
    with (out / "models.csv").open() as lines:
        assert [row["name"] for row in csv.DictReader(lines)] == ["exported"]
    failures = json.loads((out / "results.json").read_text())["failures"]
    assert [each["name"] for each in failures] == ["damaged"] and (out / "page.html").exists()


def task_score(task: str, accuracy: float) -> TaskScore:
    return TaskScore(
        task=task,
        examples=500,
        bits_per_byte=accuracy + 1,
        bits_per_byte_se=0.02,
        metrics={"acc": accuracy, "acc_se": 0.02, "acc_norm": accuracy, "acc_norm_se": 0.01},
        chance=0.25,
        samples=[
            {
                "example": i,
                "cluster": str(i),
                "gold": 0,
                "bytes": 9,
                "acc": float(i < 5),
                "bits_per_byte": accuracy,
            }
            for i in range(10)
        ],
    )


def test_fingerprints_differ_if_other_examples_or_texts_were_scored(
    exported: Path, text: Path
) -> None:
    score = task_score("arc_easy", 0.3)
    other = replace(score, samples=score.samples[:9])
    assert len({score.fingerprint, other.fingerprint, replace(score, task="piqa").fingerprint}) == 3
    rows = []
    for changes in ({}, {}, {"window": 16}, {"document": "line"}, {"start_token": False}):
        arguments: dict[str, Any] = {"text": str(text), **changes}
        rows += csv_rows(evaluate_models(exported, **arguments).models)
    found = [row["text_fingerprint"] for row in rows]
    assert found[0] == found[1] and len(set(found)) == 4


def with_tasks(evaluation: Evaluation) -> Evaluation:
    tasks = (task_score("arc_easy", 0.3), task_score("piqa", 0.5))
    return replace(evaluation, models=tuple(replace(m, tasks=tasks) for m in evaluation.models))


def test_task_scores_become_columns_charts_and_samples(
    exported: Path, text: Path, tmp_path: Path
) -> None:
    evaluation = with_tasks(evaluate_models(exported, text=str(text)))
    (row,) = csv_rows(evaluation.models)
    found = {name: row[name] for name in row if name.startswith("arc_easy")}
    assert found == {
        "arc_easy_bits_per_byte": 1.3,
        "arc_easy_bits_per_byte_se": 0.02,
        "arc_easy_acc": 0.3,
        "arc_easy_acc_se": 0.02,
        "arc_easy_acc_norm": 0.3,
        "arc_easy_acc_norm_se": 0.01,
        "arc_easy_examples": 500,
        "arc_easy_fingerprint": task_score("arc_easy", 0.9).fingerprint,
    }
    names = [figure.name for figure in evaluation_figures(evaluation)]
    assert names == ["pareto_params", "tasks_bits_per_byte", "tasks_acc"]
    write_tables(evaluation, tmp_path)
    write_page(evaluation, tmp_path)
    samples = tmp_path / "samples" / "exported" / "piqa.jsonl"
    assert json.loads(samples.read_text().splitlines()[3])["example"] == 3
    assert "arc_easy" in (tmp_path / "page.html").read_text()


def test_page_and_json_compare_the_models_on_tasks(
    exported: Path, text: Path, tmp_path: Path
) -> None:
    (scores,) = with_tasks(evaluate_models(exported, text=str(text))).models
    better = replace(scores, tasks=(task_score("arc_easy", 0.2), task_score("piqa", 0.5)))
    model = replace(scores.model, label="better", name="better")
    evaluation = with_tasks(evaluate_models(exported, text=str(text)))
    evaluation = replace(evaluation, models=(scores, replace(better, model=model)))
    saved = json.loads(json.dumps(evaluation.as_dict(), allow_nan=False))["comparisons"]
    assert {(row["model"], row["task"]) for row in saved} == {
        ("better", "arc_easy"),
        ("better", "piqa"),
    }
    assert saved[0]["metric"] == "bits_per_byte"
    assert saved[0]["difference"] == pytest.approx(-0.1) and len(saved[0]["interval_95"]) == 2
    write_page(evaluation, tmp_path)
    words = (tmp_path / "page.html").read_text()
    assert "Scores of each model minus those of exported" in words
    (bits, _) = evaluation.models[0].tasks
    infinite = replace(scores, tasks=(replace(bits, metrics={"perplexity": math.inf}),))
    json.dumps(replace(evaluation, models=(infinite,)).as_dict(), allow_nan=False)


def test_files_of_an_earlier_evaluation_are_removed_and_no_others(
    exported: Path,
    text: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    evaluation = with_tasks(evaluate_models(exported, text=str(text)))
    write_tables(evaluation, out)
    write_page(evaluation, out)
    stale = ["tasks_acc.png", "samples/exported/piqa.jsonl"]
    kept = [out / "notes.txt", out / "tasks.png", out / "samples" / "exported" / "mine.jsonl"]
    for path in kept:
        path.write_text("mine")
    assert all((out / name).exists() for name in stale)
    monkeypatch.setattr(logging.getLogger("slm"), "propagate", True)  # for caplog
    with caplog.at_level("INFO", "slm"):
        evaluate_models(exported, text=str(text), out=out)
    assert f"replaces the evaluation in {out}" in caplog.text
    assert not any((out / name).exists() for name in stale)
    assert all(path.read_text() == "mine" for path in kept) and (out / "page.html").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "results.json").write_text('{"models": 3}')
    (foreign / "models.csv").write_text("mine")
    assert not remove_earlier(foreign) and (foreign / "models.csv").exists()


@pytest.mark.slow
def test_speed_is_measured_in_a_process_of_its_own(exported: Path) -> None:
    found = evaluate_models(exported, speed=True, prompt_tokens=40, new_tokens=6, rounds=2)
    (table,) = tables(found)[1:]
    assert "seq_len=32 is shorter" in table.note
    speed = found.models[0].speed
    assert speed is not None and speed.decode_tokens_per_second > 0
    assert (speed.prompt_tokens, speed.new_tokens, speed.dtype) == (40, 6, "fp32")
    assert len(speed.prefill_seconds) == 2
    weights = 4 * found.models[0].params_total
    assert speed.peak_memory_bytes is not None and speed.peak_memory_bytes >= weights


# Unrounded results of the seed: parameters and perplexity.
SEED = {
    "MobileLLM-125M": (124_635_456, 11.961319),
    "MobileLLM-350M": (345_355_200, 8.976614),
    "MobileLLM-600M": (603_188_352, 7.984185),
    "MobileLLM-1B": (1_005_461_760, 7.171037),
}


def test_gain_per_100m_parameters_is_that_of_the_seed(exported: Path, text: Path) -> None:
    (scores,) = evaluate_models(exported, text=str(text)).models

    class Published(ModelScores):
        @property
        def params_total(self) -> int:
            return SEED[self.model.label][0]

    assert scores.text is not None
    models = []
    for label, (_, perplexity) in SEED.items():
        whole = scores.text.all
        document = replace(whole, nats=whole.tokens * math.log(perplexity))
        text_score = replace(scores.text, documents=(document,))
        models.append(Published(model=replace(scores.model, label=label), text=text_score))
    gains = perplexity_gains(models[::-1])  # in any order
    assert [round(gain.per_100m, 2) for gain in gains] == [1.35, 0.38, 0.20]
    assert [round(gain.perplexity_gain, 2) for gain in gains] == [2.98, 0.99, 0.81]
    other = replace(models[1].text.documents[0], tokens=whole.tokens + 1)  # type: ignore[union-attr]
    models[1] = replace(models[1], text=replace(scores.text, documents=(other,)))
    gains = perplexity_gains(models)  # another tokenizer is no neighbour
    assert next((gain.smaller, gain.larger) for gain in gains) == (
        "MobileLLM-125M",
        "MobileLLM-600M",
    )


def test_explicit_keys_override_a_protocol() -> None:
    settings = resolve_settings("seed", {})
    assert settings.window_of(2048) == 1024 and settings.stride_of(2048) == 512
    assert not settings.start_token and settings.document == "joined" and not settings.changes
    settings = resolve_settings("seed", {"window": 256, "start_token": False, "text": "a.txt"})
    assert (settings.window, settings.stride) == (256, 128)
    assert settings.changes == (
        f"text=a.txt instead of {WIKITEXT2}",
        "window=256 instead of 1024",
        "stride=128 instead of 512",
    )
    assert resolve_settings("mobilellm", {}).tasks == PROTOCOLS["mobilellm"]["tasks"]
    assert resolve_settings("mobilellm", {"tasks": ("piqa",)}).tasks == ("piqa",)


def test_rows_are_joined_as_those_of_the_hub(text: Path) -> None:
    """The rows of the hub's WikiText end with a line feed, and a row of spaces is empty."""
    ((name, joined),) = read_texts(str(text), document="joined", column="text")
    assert name == "wiki.txt"
    assert joined.startswith(" = Congress = \n\n\n\n\n The state")
    assert join_rows([" = A = \n", "", " b\n"]) == " = A = \n\n\n\n\n b\n"
    paragraphs = read_texts(str(text), document="paragraph", column="text")
    assert len(paragraphs) == 3 * 8 + 1 and paragraphs[2][1].strip() == "= Treaty ="
    articles = read_texts(str(text), document="article", column="text")
    assert len(articles) == 16 and "".join(words for _, words in articles) == text.read_text()


def test_wikitext2_of_the_protocol_is_that_of_the_training_data() -> None:
    import yaml

    saved = yaml.safe_load((ROOT / "conf/data/wikitext2.yaml").read_text())
    for key in ("repo", "subset", "revision"):
        assert getattr(WIKITEXT2_CONFIG, key) == saved[key]


def unfinished(study: Path, tmp_path: Path) -> Path:
    run = shutil.copytree(next(study.iterdir()), tmp_path / "unfinished")
    shutil.rmtree(run / "checkpoints")
    return run


BAD: list[tuple[dict[str, Any], type[SlmError], str]] = [
    ({}, ConfigError, "nothing to measure .*give text=FILES"),
    ({"models": [], "speed": True}, ConfigError, "no models"),
    ({"models": "nowhere", "speed": True}, DataError, "nowhere: no such folder"),
    ({"models": ["a.txt"], "speed": True}, DataError, "a file; give the folder of a model"),
    ({"models": "a.gguf", "speed": True}, DataError, "a.gguf: GGUF files cannot be read back; .*format=hf"),
    ({"models": ["empty"], "speed": True}, DataError, "empty: no model"),
    ({"models": ["nowhere", "empty"], "speed": True}, DataError, "2 models cannot be evaluated"),
    ({"text": "missing.txt"}, DataError, "text=missing.txt: matches no file"),
    ({"text": "blank.txt"}, DataError, "the files contain no text"),
    ({"text": WIKITEXT2}, DataError, "use a copy of the file with text=wiki.test.raw"),
    ({"text": "a.txt", "window": 64}, ConfigError, "window=64: exceeds the models' seq_len, 32 .window=32 fits all"),
    ({"protocol": "seed", "text": "a.txt"}, ConfigError, "window=1024: exceeds"),
    ({"text": "a.txt", "stride": 40}, ConfigError, "stride=40: must be less than the window, which is 32"),
    ({"text": "a.txt", "window": 16, "stride": 16}, ConfigError, "stride=16: must be less than window=16"),
    ({"speed": True, "new_tokens": 1}, ConfigError, "new_tokens=1: must be at least 2"),
    ({"speed": True, "dtype": "fp16"}, ConfigError, "dtype=fp16: must be fp32 or bf16"),
    ({"protocol": "sed"}, ConfigError, "unknown protocol .did you mean seed"),
    ({"text": "a.txt", "document": "articles"}, ConfigError, "did you mean article"),
    ({"text": "a.txt", "out": "a.txt"}, ConfigError, "out=a.txt: is a file"),
    ({"text": "a.txt", "out": "a.txt/b"}, ConfigError, "is a file, or below one"),
]  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=lambda case: str(case[0]))
def test_bad_input_is_one_error_before_anything_is_computed(
    case: tuple[dict[str, Any], type[SlmError], str],
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments, kind, message = case
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("The state of the Union is strong.")
    Path("blank.txt").write_text(" \n\n")
    Path("a.gguf").write_bytes(b"GGUF")
    Path("empty").mkdir()
    shutil.copytree(exported, "exported")
    Path("exported/model.safetensors").unlink()  # never read: the error comes first
    with pytest.raises(kind, match=message):
        evaluate_models(**{"models": "exported", **arguments})


def test_runs_without_checkpoint_or_text_are_refused(
    study: Path, text: Path, tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    run = unfinished(study, tmp_path)
    with pytest.raises(DataError, match="no checkpoint yet; train the run first"):
        evaluate_models(run, text=str(text))
    (study_copy := tmp_path / "study").mkdir()
    (run / "status.json").write_text('{"state": "failed"}')
    run.rename(study_copy / "run")
    with pytest.raises(DataError, match="none of 1 run has finished"):
        evaluate_models(study_copy, text=str(text))


def test_two_models_with_one_name_are_distinguished(
    exported: Path, text: Path, tmp_path: Path
) -> None:
    for parent in ("a", "b"):
        shutil.copytree(exported, tmp_path / parent / "model")
    found = evaluate_models(
        [tmp_path / "a" / "model", tmp_path / "b", tmp_path / "a"], text=str(text)
    )
    assert [scores.model.name for scores in found.models] == ["a-model", "b-model"]


def test_damaged_weights_are_a_failure_of_the_model(
    exported: Path, text: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(exported, tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    (failure,) = evaluate_models([damaged], text=str(text)).failures
    assert "not finite: its weights are damaged" in failure.reason


def test_a_failed_allocation_is_a_failure_of_the_model() -> None:
    """On a CPU torch raises a plain RuntimeError; others are errors of the code."""
    with pytest.raises(RunError, match=r"stopped by the system: .*memory"), _errors_of_model():
        torch.empty(1 << 50)
    with pytest.raises(RuntimeError, match="shape"), _errors_of_model():
        torch.empty(4).view(3)


def test_runs_are_no_folder_for_results(study: Path, text: Path) -> None:
    run = next(path for path in study.iterdir() if (path / "config.yaml").is_file())
    for out in (study, run):
        with pytest.raises(ConfigError, match=r"out=.*is a run directory, or contains some"):
            evaluate_models([run], text=str(text), out=out)
