"""Export of trained models to the formats of other programs: transformers and llama.cpp."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from slm.data.tokenizers.export import save_for_transformers
from slm.data.tokenizers.gguf import GGUFVocabulary, gguf_vocabulary
from slm.errors import ConfigError, DataError, Problem
from slm.evaluation.load import (
    LoadedModel,
    has_run_config,
    load_run,
    load_tokenizer_of,
    load_with_tokenizer,
)
from slm.evaluation.model_card import ExportedFile, model_card
from slm.files import atomic_write, write_text
from slm.model.gguf import add_model, require_gguf
from slm.model.hf import check_llama_format, export_llama, is_llama_folder
from slm.model.hf_config import CONFIG, parse_eos_ids, read_config
from slm.model.transformer import Transformer
from slm.tracking.run_dir import RunDirectory

GGUF_SUFFIX = ".gguf"
CARD = "README.md"  # the name that the Hugging Face hub shows as the model card


def export(run: Path, out: Path, *, format: str = "hf", dtype: str = "fp32") -> None:
    """Save the model, tokenizer and model card of a run in the format of transformers or llama.cpp."""
    if format == "gguf":
        export_gguf(run, out, dtype)
        card, files = out.with_suffix(".md"), [out]
    else:
        export_run(run, out, dtype)
        card, files = out / CARD, [path for path in out.iterdir() if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"exported {run} to {out}: {dtype}, {size / 1e6:,.1f} MB; model card: {card}")


def export_run(run: Path, out: Path, dtype: str = "fp32") -> None:
    """Write a run's model, tokenizer and model card to a folder that `transformers` can load.

    Raises:
        ConfigError: if `out` is the name of a GGUF file.
        DataError, RunError: if the run cannot be read, or `out` is not empty.
    """
    if out.suffix == GGUF_SUFFIX:
        rule = "format=hf writes a folder"
        raise ConfigError([Problem("out", out, rule, "add format=gguf, or give a folder")])
    if is_llama_folder(run) and not has_run_config(run):
        raise DataError(
            f"run={run}: already in the format of transformers; format=gguf accepts it, format=hf needs a run directory"
        )
    model = load_run(run)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"out={out}: the folder is not empty; choose a new one")
    tokenizer = load_tokenizer_of(run)
    loaded = LoadedModel(run, model, tokenizer, RunDirectory(run).result())
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        complete = Path(temporary) / "complete"
        export_llama(model, complete, tokenizer.eot_id, dtype)
        save_for_transformers(tokenizer, complete)
        write_text(complete / CARD, model_card(loaded, ExportedFile("hf", out.name, dtype)))
        complete.replace(out)  # allowed if `out` is an empty folder


def export_gguf(source: Path, out: Path, dtype: str = "fp32") -> None:
    """Write the model and tokenizer of a run or a Llama-format folder to a GGUF file, with a card beside it.

    The card of NAME.gguf is NAME.md.

    Raises:
        ConfigError: if the package gguf is not installed, or `out` does not end in .gguf.
        DataError, RunError: if the model cannot be read, the format does not support it, or `out` exists.
    """
    require_gguf()
    card = out.with_suffix(".md")
    if out.suffix != GGUF_SUFFIX:
        rule = "the name of a GGUF file must end in .gguf"
        raise ConfigError([Problem("out", out, rule, f"use out={out}{GGUF_SUFFIX}")])
    for path in (out, card):
        if path.exists():
            raise DataError(f"out={out}: {path.name} exists already; choose a new name")
    loaded = load_with_tokenizer(source)
    check_llama_format(loaded.model.shape)
    vocabulary = gguf_vocabulary(
        loaded.tokenizer, loaded.model.shape.vocab_size, _read_eos_id(source)
    )
    text = model_card(loaded, ExportedFile("gguf", out.name, dtype))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(loaded.model, vocabulary, out, name=loaded.name, dtype=dtype)
    write_text(card, text)


def _read_eos_id(source: Path) -> int | None:
    """Return the token that ends a text in a Llama-format folder; None for a run and if there is none."""
    if has_run_config(source):
        return None
    ids = parse_eos_ids(read_config(source / CONFIG), source / CONFIG)
    return ids[0] if ids else None


def write_gguf(
    model: Transformer, vocabulary: GGUFVocabulary, out: Path, *, name: str, dtype: str = "fp32"
) -> None:
    """Write a model and its vocabulary to a GGUF file; `name` is the display name.

    Raises:
        ConfigError: if the package gguf is not installed.
        DataError: if the model has a GELU MLP or qk_norm.
    """
    gguf = require_gguf()
    with atomic_write(out) as temporary:
        writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
        writer.add_name(name)
        add_model(writer, model, dtype)
        vocabulary.write(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
