"""Loading of trained models from run directories and Llama-format folders, and their export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from slm.data.tokenizers.export import save_for_transformers
from slm.data.tokenizers.tokenizer import FILE_NAME, Tokenizer, load_tokenizer
from slm.errors import DataError, RunError
from slm.model.build import build_model, load_weights
from slm.model.hf import export_llama, import_llama, is_llama_folder
from slm.model.transformer import Transformer
from slm.tracking.checkpoints import newest_checkpoint
from slm.tracking.run_dir import RunDirectory

CHECKPOINT_PREFIX = "model."


def load_model(folder: str | Path) -> Transformer:
    """Load the model of a run directory or of a local Llama-format folder, in eval mode.

    The model maps tokens (B, T) to logits (B, T, V). From a run, the newest checkpoint is loaded: the final
    weights if the run is finished.

    Raises:
        DataError, RunError: if a file is missing or damaged; the message names it.
    """
    path = Path(folder)
    if (path / "config.yaml").is_file():
        return _load_run(path)
    if is_llama_folder(path):
        return import_llama(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    raise DataError(
        f"{path}: neither a run directory (no config.yaml) nor a Llama-format folder (no config.json)"
    )


def export_run(run: Path, out: Path) -> None:
    """Write a run's model and tokenizer to a folder that `transformers` can load.

    Raises:
        DataError, RunError: if the run cannot be read, or `out` is not empty.
    """
    if not (run / "config.yaml").is_file():
        raise DataError(f"run={run}: not a run directory, config.yaml is missing")
    if out.exists() and any(out.iterdir()):
        raise DataError(f"out={out}: the folder is not empty; choose a new one")
    tokenizer = load_tokenizer_of(run)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        complete = Path(temporary) / "complete"
        export_llama(_load_run(run), complete, tokenizer.eot_id)
        save_for_transformers(tokenizer, complete)
        complete.replace(out)  # allowed if `out` is an empty folder


def load_tokenizer_of(run: Path) -> Tokenizer:
    """Load the tokenizer that a run was trained with.

    Raises:
        RunError: if the run has no tokenizer file (data=khop, or not trained yet).
    """
    config = RunDirectory(run).spec().config.tokenizer
    if config.kind == "symbols":
        raise RunError(f"{run}: trained on data=khop, which has no text and no tokenizer")
    if not (run / FILE_NAME).is_file():
        raise RunError(f"{run / FILE_NAME}: no such file; train the run first")
    return load_tokenizer(run, config.end_of_text)


def _load_run(run: Path) -> Transformer:
    spec = RunDirectory(run).spec()
    found = newest_checkpoint(run / "checkpoints")
    if found is None:
        raise RunError(f"{run}: no checkpoint yet; train the run first")
    saved = torch.load(found[0], map_location="cpu", weights_only=True)["state_dict"]
    # All attention backends have the same weights, and sdpa runs on every device.
    config = replace(spec.config, model=replace(spec.config.model, attention="sdpa"))
    model = build_model(config, spec.shape)
    try:
        load_weights(model, {k.removeprefix(CHECKPOINT_PREFIX): v for k, v in saved.items()})
    except ValueError as error:
        raise RunError(
            f"{run}: the checkpoint does not fit {spec.shape.label}, the shape in config.yaml: {error}"
        ) from None
    return model.eval()
