"""python -m slm COMMAND: describe shapes, prepare data, evaluate and export trained models.

describe [key=value ...] [--json]    print the parameters, FLOPs and memory of a shape; keys as for train.py
prepare [key=value ...] [--json]     tokenize a corpus (data=... tokenizer=...); keys as for train.py
evaluate run=DIR text=FILES          print perplexity and bits per byte of .txt, .jsonl or .parquet files
    hf=DIR                           instead of run=: a Llama-format folder with its tokenizer.json
    window=1024                      length of a window in tokens (default: seq_len of the model)
    stride=512                       distance between the starts of two windows in tokens (default: half a window)
    document=file|paragraph|line     unit of .txt files that is scored as one document (default: file)
    column=text                      column with the text in .jsonl and .parquet files
    start_token=true|false           put the end-of-text (or BOS) token before each document (default: true)
    --documents                      print the scores of every document too
    --json                           print JSON
export run=DIR out=DIR               save the model and tokenizer of a run in the format of transformers
coordinates out=FILE                 run the coordinate checks of all parametrizations, write JSON
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from slm.errors import ConfigError, Problem, nearest


def describe(arguments: Sequence[str]) -> None:
    from slm.architecture.describe import describe as describe_shape
    from slm.architecture.describe import print_description
    from slm.config.hydra import compose_config
    from slm.run.micro_batch import micro_batch_of, planned_accelerator
    from slm.run.spec import resolve

    config = compose_config([a for a in arguments if a != "--json"])
    spec = resolve(config)
    micro_batch = micro_batch_of(spec, planned_accelerator(config))
    if "--json" in arguments:
        memory = micro_batch.as_dict()
        description = {"family": config.family.name, **describe_shape(spec.shape), "memory": memory}
        print(json.dumps(description, indent=2))
    else:
        print_description(
            config.family.name, describe_shape(spec.shape), micro_batch.plan, micro_batch.summary
        )


def prepare(arguments: Sequence[str]) -> None:
    from slm.config.hydra import compose_config
    from slm.data.tokens.prepare import prepare as prepare_data
    from slm.data.tokens.summary import print_data_summary, summarize_data

    config = compose_config([a for a in arguments if a != "--json"])
    if config.data.source == "khop":
        print("data=khop is generated during training: nothing to prepare")
        return
    data = prepare_data(config, _print_to_stderr, progress=True)
    if "--json" in arguments:
        print(json.dumps(summarize_data(data), indent=2))
    else:
        print_data_summary(data)


def evaluate(arguments: Sequence[str]) -> None:
    flags = {"--documents", "--json"}
    given = _parse_settings(
        [a for a in arguments if a not in flags],
        needed=("text",),
        optional=("run", "hf", "window", "stride", "document", "column", "start_token"),
    )
    from slm.evaluation.cli import evaluate_text, print_scores

    scores = evaluate_text(given)
    if "--json" in arguments:
        print(json.dumps([score.as_dict() for score in scores], indent=2))
    else:
        print_scores(scores, documents="--documents" in arguments)


def export(arguments: Sequence[str]) -> None:
    given = _parse_settings(arguments, needed=("run", "out"))
    from slm.evaluation.load import export_run

    export_run(Path(given["run"]), Path(given["out"]))
    print(f"exported {given['run']} to {given['out']}")


def coordinates(arguments: Sequence[str]) -> None:
    out = Path(_parse_settings(arguments, needed=("out",))["out"])
    from slm.training.coordinate_check import write_coordinates

    write_coordinates(out)
    print(f"wrote {out}; to plot it, run: python -m analysis {out} --of coordinates --out DIR")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "describe": describe,
    "prepare": prepare,
    "evaluate": evaluate,
    "export": export,
    "coordinates": coordinates,
}


def _print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def _parse_settings(
    arguments: Sequence[str], *, needed: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, str]:
    """Return the key=value arguments as a dict.

    Raises:
        ConfigError: listing unknown keys, keys without a value, and missing keys.
    """
    keys = (*needed, *optional)
    given = {}
    problems = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        near = get_close_matches(key, keys, n=1)
        if key in keys and value:
            given[key] = value
        elif key in keys:
            problems.append(Problem(key, value, "has no value", f"set {key}=VALUE"))
        else:
            fix = f"did you mean {near[0]}?" if near else f"keys: {', '.join(keys)}"
            problems.append(Problem(key, value, "unknown key", fix))
    problems += [
        Problem(key, None, "is needed", f"add {key}=PATH")
        for key in needed
        if key not in given and key not in {p.key for p in problems}
    ]
    if problems:
        raise ConfigError(problems)
    return given


def main() -> NoReturn:
    command, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if {command, *arguments} & {"--help", "-h"} or command == "help":
        print(__doc__)
        sys.exit(0)
    if command not in COMMANDS:
        fix = nearest(command, COMMANDS)
        print(f"python -m slm {command}: unknown command; {fix}", file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    from slm.cli import run_and_exit

    run_and_exit(lambda: COMMANDS[command](arguments))


if __name__ == "__main__":
    main()
