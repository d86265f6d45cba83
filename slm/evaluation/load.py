"""A trained model from a run directory or a checkpoint folder, and its way out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from slm.data.tokenizers.export import save_for_transformers
from slm.data.tokenizers.tokenizer import FILE_NAME, Tokenizer, load_tokenizer
from slm.errors import DataError, RunError
from slm.model.build import build_model
from slm.model.hf import export_llama, import_llama, is_llama_folder
from slm.model.transformer import Transformer
from slm.tracking.checkpoints import newest_checkpoint
from slm.tracking.run_dir import RunDirectory

LIGHTNING_PREFIX = "model."


def load_model(folder: str | Path) -> Transformer:
    """The model of a run directory or of a local Llama-format checkpoint, in eval mode.

    tokens (B, T) -> logits (B, T, V). Of a run it is the newest checkpoint: the final weights once
    the run has finished.

    Raises:
        DataError, RunError: naming what is absent or damaged.
    """
    path = Path(folder)
    if (path / "config.yaml").is_file():
        return _load_run(path)
    if is_llama_folder(path):
        return import_llama(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    raise DataError(f"{path}: neither a run (config.yaml) nor a checkpoint (config.json)")


def export_run(run: Path, out: Path) -> None:
    """Write a run's model and tokenizer to a folder that `transformers` opens.

    Raises:
        DataError, RunError: also if `out` holds something already.
    """
    if not (run / "config.yaml").is_file():
        raise DataError(f"run={run}: not a run directory, it has no config.yaml")
    if out.exists() and any(out.iterdir()):
        raise DataError(f"out={out}: not empty; name a new folder")
    tokenizer = load_tokenizer_of(run)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as unfinished:
        whole = Path(unfinished) / "whole"
        export_llama(_load_run(run), whole, tokenizer.eot_id)
        save_for_transformers(tokenizer, whole)
        whole.replace(out)  # an empty folder gives way


def load_tokenizer_of(run: Path) -> Tokenizer:
    """The tokenizer that a run was trained with.

    Raises:
        RunError: if the run has none yet.
    """
    config = RunDirectory(run).spec().config.tokenizer
    if config.kind == "symbols":
        raise RunError(f"{run}: trained on data=khop, which is not text and has no tokenizer")
    if not (run / FILE_NAME).is_file():
        raise RunError(f"{run / FILE_NAME}: missing; train the run first")
    return load_tokenizer(run, config.end_of_text)


def _load_run(run: Path) -> Transformer:
    spec = RunDirectory(run).spec()
    found = newest_checkpoint(run / "checkpoints")
    if found is None:
        raise RunError(f"{run}: no checkpoint yet; train it first")
    saved = torch.load(found[0], map_location="cpu", weights_only=True)["state_dict"]
    # Backends share their weights, and sdpa runs wherever the model is taken.
    anywhere = replace(spec.config, model=replace(spec.config.model, attention="sdpa"))
    model = build_model(anywhere, spec.shape)
    try:
        model.load_state_dict({k.removeprefix(LIGHTNING_PREFIX): v for k, v in saved.items()})
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise RunError(
            f"{run}: its weights do not fit {spec.shape.label}, the shape of its config: {reason}"
        ) from None
    return model.eval()
