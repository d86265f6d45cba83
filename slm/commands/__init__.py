"""Commands of `python -m slm`: their keys and options, from which help, validation and documentation are made.

To add a command:

1. Write its function in the package that does the work, with one keyword argument for each key and option.
   Declared defaults are passed to it, so its arguments need none.
2. Add a `Command` to `COMMANDS` below. `python -m slm NAME --help`, the checks of the keys, did-you-mean and
   `slm.commands.docs.all_help` follow from it. A test compares its keys with the arguments of the function.

This package imports the standard library only, so that help is printed at once.
"""

from __future__ import annotations

from pathlib import Path

from slm.commands.declare import Command, Key, Option, count_of

JSON = Option("json", "print JSON")
LIKE_TRAIN = (
    "Accepts every key and config group of train.py, as key=value, with the same defaults. "
    "`python train.py --help` lists them."
)
RUN = Key("run", "DIR", "run directory, such as runs/demo/RUN_ID", convert=Path)

DESCRIBE = Command(
    "describe",
    "print the parameters, FLOPs and predicted memory of a shape",
    function="slm.run.cli:describe",
    about=f"Computes the shape of a config and trains nothing. {LIKE_TRAIN}",
    takes_config=True,
    options=(JSON,),
    examples=(
        "python -m slm describe family=wide_shallow size=200k",
        "python -m slm describe model=mobilellm_125m trainer=gpu --json",
    ),
)
PREPARE = Command(
    "prepare",
    "tokenize a corpus and store it in cache_dir",
    function="slm.data.cli:prepare",
    about="train.py does this too if needed; run it first where many jobs start at once or the nodes that train "
    f"have no network. {LIKE_TRAIN} Only data, tokenizer, model.seq_len and cache_dir have an effect.",
    takes_config=True,
    options=(JSON,),
    examples=(
        "python -m slm prepare data=prose tokenizer=bpe",
        "python -m slm prepare data=text_files 'data.files=[corpus/*.txt]' tokenizer=byte",
    ),
)
EVALUATE = Command(
    "evaluate",
    "print the perplexity and bits per byte of a model on text files",
    function="slm.evaluation.cli:evaluate",
    about="Scores each document in overlapping windows: each token is predicted once, and after the first window from "
    "at least window - stride tokens before it.",
    keys=(
        RUN,
        Key("hf", "DIR", "Llama-format folder with its tokenizer.json", convert=Path),
        Key(
            "text",
            "FILES",
            ".txt, .jsonl or .parquet file, or a quoted pattern of several",
            required=True,
        ),
        Key(
            "window",
            "TOKENS",
            "length of a window in tokens; default: model.seq_len of the model",
            convert=count_of("tokens"),
            example="1024",
        ),
        Key(
            "stride",
            "TOKENS",
            "distance between the starts of two windows in tokens, below window; default: half a window",
            convert=count_of("tokens"),
            example="512",
        ),
        Key(
            "document",
            text="unit of .txt files that is scored as one document",
            choices=("file", "paragraph", "line"),
            default="file",
        ),
        Key("column", "NAME", "column of .jsonl and .parquet files with the text", default="text"),
        Key(
            "start_token",
            text="put the end-of-text (or BOS) token before each document",
            choices=("true", "false"),
            convert="true".__eq__,
            default="true",
        ),
    ),
    one_of=("run", "hf"),
    options=(Option("documents", "print the scores of every document too"), JSON),
    examples=(
        "python -m slm evaluate run=runs/demo/RUN_ID text='corpus/*.txt' --documents",
        "python -m slm evaluate hf=llama text=corpus.jsonl column=body window=2048 --json",
    ),
)
EXPORT = Command(
    "export",
    "save the model and tokenizer of a run in the format of transformers",
    function="slm.evaluation.cli:export",
    keys=(
        Key("run", RUN.metavar, RUN.text, convert=Path, required=True),
        Key("out", "DIR", "folder to write, new or empty", convert=Path, required=True),
    ),
    examples=("python -m slm export run=runs/demo/RUN_ID out=exported",),
)
COORDINATES = Command(
    "coordinates",
    "run the coordinate checks of all parametrizations and write JSON",
    function="slm.training.cli:coordinates",
    about="Trains small models of growing width and depth for a few steps and records the size of their activations "
    "and updates.",
    keys=(Key("out", "FILE", "JSON file to write", convert=Path, required=True),),
    examples=(
        "python -m slm coordinates out=coordinates.json",
        "python -m analysis coordinates.json --of coordinates --out coordinates",
    ),
)

COMMANDS = {command.name: command for command in (DESCRIBE, PREPARE, EVALUATE, EXPORT, COORDINATES)}
