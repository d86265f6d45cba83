"""python -m analysis RUNS --out DIR: figures and tables, as text and as data, from finished runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from analysis.report.by_kind import Kind, write_report_of
from analysis.report.write import write_report
from analysis.runs.load import WANDB
from slm.errors import SlmError


def main() -> int:
    parser = _parser()
    arguments = parser.parse_args()
    if (arguments.runs is None) == (arguments.wandb is None):
        parser.error("name either runs or a W&B project")
    if arguments.wandb is not None and arguments.of != "families":
        parser.error(f"--of {arguments.of} reads a folder of runs")
    try:
        if arguments.of != "families":
            write_report_of(arguments.of, arguments.runs, arguments.out)
        else:
            deep, wide = arguments.contrast or (arguments.deep, arguments.wide)
            write_report(
                arguments.runs or f"{WANDB}{arguments.wandb}",
                arguments.out,
                deep=deep,
                wide=wide,
                audit=arguments.audit,
                question=arguments.question,
                pool_validation_sets=arguments.pool_validation_sets,
            )
    except SlmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"cannot use {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    parser.add_argument(
        "runs",
        type=Path,
        nargs="?",
        help="a folder of run directories, such as runs/demo, or of offline W&B runs; a study's file of "
        "results; or a .csv, .parquet or .jsonl table",
    )
    parser.add_argument(
        "--wandb", metavar="ENTITY/PROJECT", help="read the runs of a W&B project instead"
    )
    parser.add_argument("--out", type=Path, required=True, help="where the report is written")
    parser.add_argument("--deep", help="the family to call deep; default: the thinnest")
    parser.add_argument("--wide", help="the one it is compared with; default: the widest")
    parser.add_argument(
        "--contrast", metavar="DEEP,WIDE", type=_families, help="both of them in one word"
    )
    parser.add_argument(
        "--audit",
        type=Path,
        metavar="FILE",
        help="lr_audit.json of study=lr_audit, or a folder of runs over a grid of learning rates: "
        "families trained off their best rate are not compared",
    )
    parser.add_argument("--question", default="", help="what was asked, for the head of the report")
    parser.add_argument(
        "--of",
        choices=("families", *get_args(Kind)),
        default="families",
        help="what to read from them: which family is better; where each shape's best learning rate "
        "lies; whether the middle rate of the grid serves every family; how many hops each follows; or, "
        "from the file of a coordinate check instead of runs, whose updates grow",
    )
    parser.add_argument(
        "--pool-validation-sets",
        action="store_true",
        help="compare runs that were measured on different validation sets, instead of leaving out "
        "all but the commonest",
    )
    return parser


def _families(text: str) -> tuple[str, str]:
    names = text.split(",")
    if len(names) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} does not name two families, as DEEP,WIDE")
    return names[0], names[1]


if __name__ == "__main__":
    sys.exit(main())
