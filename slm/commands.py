"""The commands of `python -m slm`.

To add a command, write its function in the package that does the work, with one keyword argument for each key and
flag, and add a `Command` to `COMMANDS`. Nothing here imports that package, so help is printed at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = "python -m slm"
LIKE_TRAIN = "Takes the keys and config groups of train.py; `python train.py --help` lists them."


@dataclass(frozen=True)
class Command:
    """A command; argparse parses its arguments."""

    summary: str
    function: str
    """MODULE:NAME, imported when the command runs."""
    about: str
    examples: tuple[str, ...]
    keys: Mapping[str, Mapping[str, Any]] | None = None
    """Name -> arguments of `add_argument`; None: the command takes overrides of the configuration."""
    positional: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name of an argument without key -> arguments of `add_argument`."""
    may_be_empty: tuple[str, ...] = ()
    """Keys that accept an empty value."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """Name -> help."""
    replaced: Mapping[str, str] = field(default_factory=dict)
    """Name of a key that no longer exists -> what to write instead."""


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1")
    return int(text)


def boolean(text: str) -> bool:
    if text not in {"true", "false"}:
        raise argparse.ArgumentTypeError(f"{text!r} must be true or false")
    return text == "true"


RUN = {"metavar": "DIR", "type": Path, "help": "run directory, such as runs/demo/RUN_ID"}
JSON = {"json": "print JSON"}
RUNS_DIR = {
    "metavar": "DIR",
    "type": Path,
    "default": Path("runs"),
    "help": "folder of the studies in which names are looked up; default: %(default)s",
}
COMMANDS = {
    "describe": Command(
        "print the parameters, FLOPs and predicted memory of a shape",
        "slm.run.cli:describe",
        f"Computes the shape of a config and trains nothing. {LIKE_TRAIN}",
        (
            "python -m slm describe family=wide_shallow size=200k",
            "python -m slm describe model=mobilellm_125m trainer=gpu --json",
        ),
        flags=JSON,
    ),
    "prepare": Command(
        "tokenize a corpus and store it in cache_dir",
        "slm.data.cli:prepare",
        "train.py does this too if needed; run it first where many jobs start at once or the nodes that train have no "
        f"network. {LIKE_TRAIN} Only data, tokenizer, model.seq_len and cache_dir have an effect.",
        (
            "python -m slm prepare data=prose tokenizer=bpe",
            "python -m slm prepare data=text_files 'data.files=[corpus/*.txt]' tokenizer=byte",
        ),
        flags=JSON,
    ),
    "runs": Command(
        "list the runs of a folder by study",
        "slm.run_index.listing:list_runs",
        "Marks the run with the lowest validation loss of each study, and names what differs from the recipe of most "
        "of its runs. Columns that do not fit into the terminal are left out; --json prints all. `runs diff` compares "
        "two runs, `runs rm` removes runs.",
        (
            "python -m slm runs",
            "python -m slm runs runs/demo --sort loss",
        ),
        keys={
            "sort": {
                "choices": ("size", "loss", "tokens", "flops", "time", "state"),
                "default": "size",
                "help": "order of the runs of a study; time: last change first; state: unfinished first; default: "
                "%(default)s",
            },
        },
        positional={
            "folder": {
                "metavar": "FOLDER",
                "nargs": "*",
                "type": Path,
                "default": [Path("runs")],
                "help": "folder of studies, study or run directories; default: runs",
            }
        },
        flags=JSON,
    ),
    "runs diff": Command(
        "compare the settings, results and versions of two runs",
        "slm.run_index.compare:print_difference",
        "A run is given as its directory, or as the start of its id, of the hash at the end of its id, or of its "
        "display name.",
        (
            "python -m slm runs diff 2745eb1d 6bd31f8d",
            "python -m slm runs diff runs/demo/RUN_ID runs/single/RUN_ID",
        ),
        keys={"runs_dir": RUNS_DIR},
        positional={
            "first": {"metavar": "A", "help": "run"},
            "second": {"metavar": "B", "help": "run"},
        },
        flags=JSON,
    ),
    "runs rm": Command(
        "remove runs or studies, after a question",
        "slm.run_index.remove:remove",
        "Lists what would be removed with its disk use, then asks. Runs in use and files that slm did not write are "
        "never removed.",
        (
            "python -m slm runs rm runs/demo",
            "python -m slm runs rm 2745eb1d 6bd31f8d",
            "python -m slm runs rm --superseded --yes",
            "python -m slm runs rm runs/demo --stale days=7",
        ),
        keys={
            "runs_dir": RUNS_DIR,
            "days": {
                "metavar": "N",
                "type": positive,
                "help": "with --stale or --superseded: only runs without a change for N days",
            },
        },
        positional={
            "target": {
                "metavar": "TARGET",
                "nargs": "*",
                "help": "study folder, name of a study, or run as for `runs diff`; with --stale or --superseded: the "
                "studies to look in, by default all",
            }
        },
        flags={
            "superseded": "remove runs that rerun=true has set aside",
            "stale": "remove runs without a result that were interrupted, failed or never began",
            "yes": "do not ask",
        },
    ),
    "repeat": Command(
        "train a recorded run again and compare the losses",
        "slm.training.repeat:repeat",
        "Needs a run directory, or the results file of a study with its configurations beside it, as action=collect writes "
        "them. The run is trained alone, in one process and from its first step, also if it was a branch of a trunk. The losses are equal in all "
        "digits on the same kind of CPU with the same number of threads and version of torch.",
        (
            "python -m slm repeat runs/demo/RUN_ID",
            "python -m slm repeat results/demo.jsonl RUN_ID",
        ),
        keys={
            "runs_dir": {
                "metavar": "DIR",
                "type": Path,
                "default": Path("runs/repeated"),
                "help": "folder for the new run directory; default: %(default)s",
            },
            "cache_dir": {
                "metavar": "DIR",
                "type": Path,
                "default": Path(".cache"),
                "help": "folder of prepared data; default: %(default)s",
            },
        },
        positional={
            "source": {
                "metavar": "SOURCE",
                "type": Path,
                "help": "run directory, or results file of a study (.jsonl)",
            },
            "run": {
                "metavar": "RUN",
                "nargs": "?",
                "help": "with a results file: run id, or the start of it or of the hash at its end",
            },
        },
    ),
    "curves": Command(
        "plot the loss curves of runs to an HTML page or a picture",
        "slm.run_index.curves:write_curves",
        "The page works without a network and names the run under the pointer.",
        (
            "python -m slm curves runs/demo",
            "python -m slm curves runs/demo out=curves.png against=flops",
        ),
        keys={
            "out": {
                "metavar": "FILE",
                "type": Path,
                "help": ".html page, or .png or .svg picture of the training losses; default: FOLDER/curves.html",
            },
            "against": {
                "choices": ("tokens", "flops"),
                "default": "tokens",
                "help": "horizontal axis; default: %(default)s",
            },
        },
        positional={
            "folder": {
                "metavar": "FOLDER",
                "type": Path,
                "help": "folder of studies, study or run directory",
            }
        },
    ),
    "evaluate": Command(
        "measure models: perplexity of a text, zero-shot tasks, speed and memory",
        "slm.evaluation.cli:evaluate",
        "Several models are measured with the same settings. Each document of the text is scored in overlapping windows: "
        "each token is predicted once, and after the first window from at least window - stride tokens before it.",
        (
            "python -m slm evaluate runs/demo text='corpus/*.txt' out=evaluation",
            "python -m slm evaluate runs/demo/RUN_ID llama protocol=seed text=wiki.test.raw --speed",
            "python -m slm evaluate llama tasks=arc_easy,hellaswag limit=500 --json",
        ),
        positional={
            "models": {
                "metavar": "MODEL",
                "nargs": "+",
                "type": Path,
                "help": "run directory, folder with a Llama-format checkpoint and its tokenizer, or a folder of them such "
                "as runs/demo, which stands for its finished runs",
            }
        },
        keys={
            "text": {
                "metavar": "FILES",
                "help": ".txt, .jsonl or .parquet file, or a quoted pattern of several; wikitext2 is the raw test split "
                "of WikiText-2 from the Hugging Face hub",
            },
            "tasks": {
                "metavar": "NAMES",
                "help": "zero-shot tasks, separated by commas; needs the extra eval",
            },
            "protocol": {
                "metavar": "NAME",
                "help": "preset: seed (text=wikitext2 window=1024 stride=512 document=joined start_token=false) or "
                "mobilellm (its eight tasks); other keys override it",
            },
            "window": {
                "metavar": "TOKENS",
                "type": positive,
                "help": "length of a window in tokens; default: model.seq_len of each model",
            },
            "stride": {
                "metavar": "TOKENS",
                "type": positive,
                "help": "distance between the starts of two windows in tokens; default: half a window",
            },
            "document": {
                "metavar": "UNIT",
                "help": "unit that is scored as one document: file, paragraph or line of .txt files, article of WikiText, "
                "or joined (all rows, joined by blank lines); default: file",
            },
            "column": {
                "metavar": "NAME",
                "help": "column of .jsonl and .parquet files with the text; default: text",
            },
            "start_token": {
                "metavar": "true|false",
                "type": boolean,
                "help": "put the end-of-text (or BOS) token before each document; default: true",
            },
            "task_data": {
                "metavar": "DIR",
                "type": Path,
                "help": "folder with a file TASK.jsonl for each task, instead of the Hugging Face hub",
            },
            "limit": {
                "metavar": "N",
                "type": positive,
                "help": "number of examples per task; default: all",
            },
            "prompt_tokens": {
                "metavar": "TOKENS",
                "type": positive,
                "help": "with --speed: length of the prompt; default: 64",
            },
            "new_tokens": {
                "metavar": "TOKENS",
                "type": positive,
                "help": "with --speed: number of generated tokens; default: 128",
            },
            "rounds": {
                "metavar": "N",
                "type": positive,
                "help": "with --speed: timed repetitions; default: 3",
            },
            "dtype": {
                "metavar": "fp32|bf16",
                "help": "with --speed: type of the weights and activations; default: fp32",
            },
            "out": {
                "metavar": "DIR",
                "type": Path,
                "help": "folder to write: models.csv, results.json, samples/ and page.html with the charts",
            },
        },
        flags={
            "speed": "measure decoding and prefill speed, time to first token and peak memory",
            "documents": "print the scores of every document of the text too",
            **JSON,
        },
        replaced={"run": "write the folder without run=", "hf": "write the folder without hf="},
    ),
    "generate": Command(
        "print text that a model writes after a prompt",
        "slm.evaluation.generate:generate",
        "Takes the likeliest token at each step, or draws tokens with a temperature above 0. The text of one sample is "
        "printed while it is generated; it ends before an end-of-text token.",
        (
            "python -m slm generate run=runs/demo/RUN_ID prompt='My fellow citizens'",
            "python -m slm generate run=llama prompt=Once temperature=0.8 top_p=0.95 samples=3",
        ),
        keys={
            "run": {
                "metavar": "DIR",
                "type": Path,
                "required": True,
                "help": "run directory or Llama-format folder",
            },
            "prompt": {
                "metavar": "TEXT",
                "required": True,
                "help": "text to continue; - reads it from stdin, without its last line break; '' starts a new text",
            },
            "new_tokens": {
                "metavar": "N",
                "type": positive,
                "help": "largest number of tokens to generate; default: 128, or fewer where model.seq_len ends",
            },
            "temperature": {
                "metavar": "T",
                "type": float,
                "default": 0.0,
                "help": "0 takes the likeliest token; above 0 draws from softmax(logits / T); default: 0",
            },
            "top_k": {
                "metavar": "K",
                "type": int,
                "help": "with a temperature above 0: draw from the K likeliest tokens only; default: all",
            },
            "top_p": {
                "metavar": "P",
                "type": float,
                "help": "with a temperature above 0: draw from the likeliest tokens with a total probability of P; "
                "default: all",
            },
            "seed": {
                "metavar": "N",
                "type": int,
                "default": 0,
                "help": "seed of the draws; default: %(default)s",
            },
            "samples": {
                "metavar": "N",
                "type": positive,
                "default": 1,
                "help": "number of continuations; above 1 with a temperature above 0; default: %(default)s",
            },
        },
        may_be_empty=("prompt",),
        flags=JSON,
    ),
    "speed": Command(
        "measure how fast the shapes of a study generate and train",
        "slm.speed.cli:speed",
        "Builds every distinct shape of a study with random weights, without a study the shape of the config, and "
        f"measures it in rounds. Adds the results to speed.json in the folder of the study. {LIKE_TRAIN}",
        (
            "python -m slm speed study=micro",
            "python -m slm speed model=mobilellm_125m speed.dtype=bf16 speed.training=false",
        ),
        flags=JSON,
    ),
    "export": Command(
        "save the model and tokenizer of a run in the format of transformers or llama.cpp",
        "slm.evaluation.export:export",
        "format=hf writes a folder that transformers loads with AutoModelForCausalLM and AutoTokenizer. format=gguf "
        "writes one file for llama.cpp; it needs the extra `gguf`. A model card with the facts of the run is written "
        "with them: README.md in the folder, or NAME.md beside NAME.gguf.",
        (
            "python -m slm export run=runs/demo/RUN_ID out=exported",
            "python -m slm export run=runs/single/RUN_ID out=model.gguf format=gguf dtype=bf16",
        ),
        keys={
            "run": {
                **RUN,
                "required": True,
                "help": "run directory, such as runs/demo/RUN_ID; with format=gguf also a Llama-format folder",
            },
            "out": {
                "metavar": "PATH",
                "type": Path,
                "required": True,
                "help": "folder to write, new or empty; with format=gguf a new file NAME.gguf",
            },
            "format": {
                "choices": ("hf", "gguf"),
                "default": "hf",
                "help": "hf: folder for transformers; gguf: file for llama.cpp; default: %(default)s",
            },
            "dtype": {
                "choices": ("fp32", "fp16", "bf16"),
                "default": "fp32",
                "help": "number format of the weights; in a GGUF file norms stay fp32; default: %(default)s",
            },
        },
    ),
    "coordinates": Command(
        "run the coordinate checks of all parametrizations and write JSON",
        "slm.training.cli:coordinates",
        "Trains small models of growing width and depth for a few steps and records the size of their activations and "
        "updates.",
        (
            "python -m slm coordinates out=coordinates.json",
            "python -m analysis coordinates.json --of coordinates --out coordinates",
        ),
        keys={
            "out": {
                "metavar": "FILE",
                "type": Path,
                "required": True,
                "help": "JSON file to write",
            }
        },
    ),
}
