"""Loading of trained models and their tokenizers from run directories and Llama-format folders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from slm.data.tokenizers.hf_files import load_hf_tokenizer
from slm.data.tokenizers.tokenizer import FILE_NAME, HFTokenizer, Tokenizer, load_tokenizer
from slm.errors import DataError, RunError
from slm.files import read_json
from slm.model.build import build_model, load_weights
from slm.model.hf import import_llama, is_llama_folder
from slm.model.transformer import Transformer
from slm.model.weight_layout import store_weights_by_column
from slm.tracking.checkpoints import newest_checkpoint
from slm.tracking.result import RunResult
from slm.tracking.run_dir import RunDirectory

CHECKPOINT_PREFIX = "model."


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on the CPU, with its tokenizer."""

    folder: Path
    model: Transformer
    tokenizer: Tokenizer
    result: RunResult | None
    """Result of the run; None for a Llama-format folder and for an unfinished run."""

    @property
    def name(self) -> str:
        return self.folder.name


def load_with_tokenizer(folder: str | Path) -> LoadedModel:
    """Load a model and its tokenizer from a run directory or a Llama-format folder.

    Raises:
        DataError, RunError: if a file is missing or damaged, or the tokenizer does not fit the model.
    """
    path = Path(folder)
    model = load_model(path)
    if is_run_directory(path):
        tokenizer = load_tokenizer_of(path)
        return LoadedModel(path, model, tokenizer, RunDirectory(path).result())
    tokenizer = HFTokenizer(load_hf_tokenizer(path), _read_bos_token(path))
    return LoadedModel(path, model, tokenizer, None)


def load_model(folder: str | Path) -> Transformer:
    """Load the model of a run directory or of a local Llama-format folder, in eval mode, ready to decode.

    The model maps tokens (B, T) to logits (B, T, V). From a run, the newest checkpoint is loaded: the final
    weights if the run is finished.

    Raises:
        DataError, RunError: if a file is missing or damaged; the message names it.
    """
    path = Path(folder)
    if is_run_directory(path) or is_llama_folder(path):
        model = load_run(path) if is_run_directory(path) else import_llama(path)
        store_weights_by_column(model)
        return model
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    raise DataError(
        f"{path}: neither a run directory (no config.yaml) nor a Llama-format folder (no config.json)"
    )


def is_run_directory(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def load_run(run: Path) -> Transformer:
    """Load the newest checkpoint of a run.

    Raises:
        DataError, RunError: if there is none, or it does not fit config.yaml.
    """
    if not is_run_directory(run):
        raise DataError(f"run={run}: not a run directory, config.yaml is missing")
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


def _read_bos_token(folder: Path) -> str | None:
    """Read the bos_token of tokenizer_config.json; None leaves the choice to the tokenizer's defaults."""
    try:
        token = read_json(folder / "tokenizer_config.json").get("bos_token")
    except (OSError, ValueError):
        return None
    return token.get("content") if isinstance(token, dict) else token
