"""Loading of trained models and their tokenizers from run directories and Llama-format folders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from slm.data.tokenizers.hf_files import TOKENIZER_FILE, find_tokenizer_files, load_hf_tokenizer
from slm.data.tokenizers.tokenizer import HFTokenizer, Tokenizer, load_tokenizer
from slm.errors import DataError, RunError
from slm.files import read_json
from slm.formatting import count
from slm.logs import log
from slm.model.build import build_model, load_weights
from slm.model.dtypes import DTYPES
from slm.model.hf import import_llama, is_llama_folder, llama_shape
from slm.model.transformer import Transformer
from slm.model.weight_layout import prepare_for_decoding
from slm.tracking.checkpoints import WEIGHT_PREFIX, newest_checkpoint
from slm.tracking.result import RunResult
from slm.tracking.run_dir import RunDirectory

RUNS_BELOW = (
    "[!.]*/config.yaml",
    "[!.]*/[!.]*/config.yaml",
)  # of a study, and of a folder of studies
UNUSUAL_UNUSED_ROWS = 1024
"""Rows of an embedding table above its tokenizer's entries that padding to a round number does not explain."""


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
    check_is_model(path)
    # Errors of the tokenizer are found before the weights are read.
    tokenizer = load_tokenizer_from(path)
    if has_run_config(path):
        run = RunDirectory(path)
        check_vocabulary(path, tokenizer, run.spec().shape.vocab_size)
        return LoadedModel(path, load_model(path), tokenizer, run.result())
    check_vocabulary(path, tokenizer, llama_shape(path).vocab_size)
    return LoadedModel(path, load_model(path), tokenizer, None)


def load_tokenizer_from(folder: str | Path) -> Tokenizer:
    """Load the tokenizer of a run directory or of a Llama-format folder, without the model.

    The end-of-text id of a Llama-format folder is the token that the model expects before a text: `bos_token` in
    tokenizer_config.json, else `bos_token_id` in config.json, else the first common name.

    Raises:
        DataError, RunError: if a file is missing or damaged; the message names it.
    """
    path = Path(folder)
    check_is_model(path)
    if has_run_config(path):
        return load_tokenizer_of(path)
    try:
        find_tokenizer_files(path)
    except DataError:
        raise DataError(
            f"{path}: no tokenizer; add the tokenizer.json or tokenizer.model of the checkpoint (slm.load reads the "
            "model without it)"
        ) from None
    tokenizer = load_hf_tokenizer(path)
    return HFTokenizer(tokenizer, _start_token(path, tokenizer))


def check_vocabulary(folder: Path, tokenizer: Tokenizer, table_rows: int) -> None:
    """Check that the embedding table has a row for every token id; log a warning if it has far more.

    Raises:
        DataError: if the tokenizer has more entries than the table.
    """
    if tokenizer.vocab_size > table_rows:
        raise DataError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} entries, but the embedding table only "
            f"{table_rows:,} rows; use the tokenizer that the model was trained with"
        )
    if table_rows - tokenizer.vocab_size >= UNUSUAL_UNUSED_ROWS:
        log.warning(
            f"{folder}: the embedding table has {table_rows:,} rows, but the tokenizer only "
            f"{tokenizer.vocab_size:,} entries; check that it is the model's own"
        )


def load_model(folder: str | Path, dtype: str = "fp32") -> Transformer:
    """Load the model of a run directory or of a local Llama-format folder, in eval mode, ready to decode.

    The model maps tokens (B, T) to logits (B, T, V). From a run, the newest checkpoint is loaded: the final
    weights if the run is finished. In bf16 it stays on the CPU (`slm.model.weight_layout`); for a GPU load fp32 and
    move it.

    Raises:
        DataError, RunError: if a file is missing or damaged; the message names it.
    """
    path = Path(folder)
    check_is_model(path)
    model = load_run(path) if has_run_config(path) else import_llama(path)
    prepare_for_decoding(model, DTYPES[dtype])
    return model


def check_is_model(path: Path) -> None:
    """Check that a folder is a run directory or has a Llama-format checkpoint.

    Raises:
        DataError: if it is neither; the message says what to give instead.
    """
    if has_run_config(path) or is_llama_folder(path):
        return
    if path.suffix == ".gguf" and path.is_file():
        raise DataError(f"{path}: GGUF cannot be read back; export with format=hf")
    if not path.is_dir():
        raise DataError(f"{path}: {'a file; give a folder' if path.exists() else 'no such folder'}")
    runs = [config.parent for pattern in RUNS_BELOW for config in path.glob(pattern)]
    if runs:
        verb = "is" if len(runs) == 1 else "are"
        raise DataError(
            f"{path}: {count(len(runs), 'run')} {verb} below; give one of them, such as {min(runs)}"
        )
    raise DataError(
        f"{path}: neither a run directory (no config.yaml) nor a Llama-format folder (no config.json)"
    )


def has_run_config(folder: Path) -> bool:
    """Return whether a folder has the config.yaml of a run, whatever its name: a copied run can be loaded.

    `slm.run_index.scan.is_run_directory` decides what `runs` lists and may remove.
    """
    return (folder / "config.yaml").is_file()


def load_run(run: Path) -> Transformer:
    """Load the newest checkpoint of a run.

    Raises:
        DataError, RunError: if there is none, or it does not fit config.yaml.
    """
    if not has_run_config(run):
        check_is_model(run)
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
        load_weights(model, {k.removeprefix(WEIGHT_PREFIX): v for k, v in saved.items()})
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
    if not (run / TOKENIZER_FILE).is_file():
        raise RunError(
            f"{run / TOKENIZER_FILE}: no such file; copy it from the machine that trained the run, or train the run first"
        )
    return load_tokenizer(run, config.end_of_text)


def _start_token(folder: Path, hf_tokenizer: Any) -> str | None:
    """Return the name of the token before each text; None leaves the choice to the common names.

    Raises:
        DataError: if tokenizer_config.json names a token that the tokenizer does not have.
    """
    name = _read_key(folder / "tokenizer_config.json", "bos_token")
    name = name.get("content") if isinstance(name, dict) else name
    if name is not None:
        if hf_tokenizer.token_to_id(name) is None:
            raise DataError(
                f"{folder / 'tokenizer_config.json'}: bos_token={name} is not in the tokenizer; the files belong to "
                "different models"
            )
        return name
    index = _read_key(folder / "config.json", "bos_token_id")
    return hf_tokenizer.id_to_token(index) if isinstance(index, int) else None


def _read_key(path: Path, key: str) -> Any:
    """Return a value of a JSON object, or None if the file or the key is missing."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    return content.get(key) if isinstance(content, dict) else None
