"""Model cards: the facts of the run, the limits of what it shows, and code that runs as printed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from slm.evaluation.export import export, export_run
from slm.evaluation.load import LoadedModel, load_run, load_tokenizer_of
from slm.evaluation.model_card import ExportedFile, model_card
from slm.run.spec import RunSpec
from slm.tracking.run_dir import RunDirectory
from tests.slm.evaluation.exports import trained_run


def metadata(card: str) -> dict[str, Any]:
    """Return the YAML between the first two lines of dashes."""
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def table(card: str) -> dict[str, str]:
    """Return all rows of the tables, by the text of their first cell."""
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", card, re.MULTILINE)
    return {name: text for name, text in rows if name != "---"}


def test_card_of_a_run(
    tiny_spec: Callable[..., RunSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("transformers")
    run = trained_run(tiny_spec)
    result = RunDirectory(run).result()
    assert result is not None
    export_run(run, tmp_path / "exported", "bf16")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert metadata(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llama", "slm", "ablation"],
    }
    shape = RunDirectory(run).spec().shape
    assert card.partition("\n# ")[2].startswith(
        f"Language model with {shape.n_layers} layers of width {shape.d_model}, "
    )
    assert "parameters, trained on 512 tokens\n" in card
    facts = table(card)
    assert facts["parameters"].startswith(
        f"{result.params_total:,}; {result.params_non_embedding:,} without"
    )
    assert facts["training tokens"].startswith("512 in 2 steps of 256;")
    assert facts["training FLOPs"].startswith(f"{result.flops:.4g}".replace("e+0", "e"))
    assert facts["validation loss"] == f"{result.val_loss_nats_per_token:.4f} nats/token"
    assert facts["validation bits per byte"] == f"{result.val_bits_per_byte:.4f}"
    assert facts["run"].startswith(f"`{result.run_id}`")
    assert facts["seed"] == "0" and facts["weights"] == "bfloat16"
    assert "peak learning rate 0.004" in facts["optimizer"]
    assert facts["data"] == "text_files: `*.md`"  # the folders of the user are not published
    assert str(tmp_path) not in card and "/docs/" not in card
    assert "One run does not answer" in card and "not an assistant" in card
    assert "Licence" not in card  # unknown for the user's own text
    assert "was not finished" not in card

    (code,) = re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "model card", "exec"), {})
    assert capsys.readouterr().out.startswith("The people")


def test_card_names_data_in_the_public_domain_and_an_unfinished_run(
    tiny_spec: Callable[..., RunSpec],
) -> None:
    run = trained_run(tiny_spec, data={}, tokenizer={}, study={"name": "one", "question": "Deep?"})
    (run / "result.json").unlink()
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "interrupted"}))
    loaded = LoadedModel(run, load_run(run), load_tokenizer_of(run), None)
    card = model_card(loaded, ExportedFile("gguf", "model.gguf", "fp32"))
    assert metadata(card) == {
        "pipeline_tag": "text-generation",
        "language": "en",
        "tags": ["llama", "gguf", "slm", "ablation"],
    }
    assert "**The run was not finished when it was exported** (status: interrupted)" in card
    assert "public domain" in card and "King James Bible" in table(card)["data"]
    assert "The study asks: Deep?" in card
    assert not {"validation loss", "training tokens", "training FLOPs"} & table(card).keys()


def test_card_of_a_llama_folder_has_no_facts_of_training(
    tiny_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    export_run(trained_run(tiny_spec), tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "model.gguf", format="gguf")
    card = (tmp_path / "model.md").read_text()
    assert card.partition("# ")[2].startswith("checkpoint\n")
    assert table(card)["blocks"] == "2"
    unknown = ("Training", "Result", "optimizer", "Licence", "assistant", "slm", "study")
    assert not [word for word in unknown if word in card]
    assert 'Llama("model.gguf", n_ctx=32' in card
