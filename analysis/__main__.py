"""Entry point of `python -m analysis`: analyze finished runs and write a report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from slm.errors import DataError, SlmError, describe_os_error, nearest
from slm.help_text import HelpFormatter, examples, listing
from slm.stdout import exit_when_stdout_closes

FAMILIES = "families"
REPORTS = {
    FAMILIES: "comparison of two families",
    "lr_transfer": "optimal learning rate of each shape",
    "lr_audit": "loss penalty of the middle learning rate of the grid, per family",
    "khop": "error rate by number of hops",
    "coordinates": "growth of updates with width and depth; RUNS is the file of a coordinate check",
}
EXAMPLES = (
    "python -m analysis runs/demo --out report",
    "python -m analysis runs.csv --out report --contrast deep_thin,wide_shallow",
    "python -m analysis evaluation/models.csv --out report --metric arc_easy_bits_per_byte",
    "python -m analysis runs.csv --write-columns",
    "python -m analysis runs.csv --out report --columns tokens=D,n_flop=N,family=mix,loss_nats_per_token=loss",
    "python -m analysis --wandb ENTITY/PROJECT --out report",
    "python -m analysis runs/lr_transfer --of lr_transfer --out report",
)


def main() -> int:
    """Run the command, and return its exit code."""
    with exit_when_stdout_closes():
        parser, family_options = _build_parser()
        arguments = parser.parse_args()
        _check(parser, family_options, arguments)
        try:
            if arguments.write_columns:
                _write_columns(arguments)
            else:
                _write_report(arguments)
        except SlmError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        except BrokenPipeError:
            raise
        except OSError as error:
            print(describe_os_error(error), file=sys.stderr)
            return 1
        return 0


def _write_report(arguments: argparse.Namespace) -> None:
    if arguments.of != FAMILIES:
        from analysis.report.by_kind import write_report_of  # late: imports pandas

        write_report_of(arguments.of, arguments.runs[0], arguments.out)
        return
    from analysis.report.write import write_report
    from analysis.runs.columns import parse_pairs

    deep, wide = arguments.contrast or (arguments.deep, arguments.wide)
    write_report(
        _source(arguments),
        arguments.out,
        columns=parse_pairs(",".join(arguments.columns), "--columns tokens=D,n_flop=N"),
        constants=parse_pairs(",".join(arguments.constant), "--constant family=mine"),
        deep=deep,
        wide=wide,
        audit=arguments.audit,
        question=arguments.question,
        pool_validation_sets=arguments.pool_validation_sets,
        metric=arguments.metric,
        speed=arguments.speed,
    )


def _source(arguments: argparse.Namespace) -> str | list[Path]:
    from analysis.runs.sources import WANDB

    return arguments.runs or f"{WANDB}{arguments.wandb}"


def _write_columns(arguments: argparse.Namespace) -> None:
    """Print the columns of a source, and a guess of --columns from their names.

    Raises:
        DataError: if a required column is missing.
    """
    from analysis.runs.columns import describe_columns, missing_columns, parse_pairs
    from analysis.runs.sources import column_names

    names = column_names(_source(arguments))
    print(describe_columns(names), flush=True)
    given = parse_pairs(",".join(arguments.columns + arguments.constant), "--columns tokens=D")
    if missing := missing_columns(names, given):
        raise DataError(
            f"missing: {'; '.join(missing)}; name them with --columns, or give --constant"
        )


def _check(
    parser: argparse.ArgumentParser,
    family_options: list[argparse.Action],
    arguments: argparse.Namespace,
) -> None:
    """Exit with a message if the options do not fit each other."""
    given = vars(arguments)
    if (not arguments.runs) == (arguments.wandb is None):
        parser.error("give either RUNS or --wandb ENTITY/PROJECT")
    if arguments.out is None and not arguments.write_columns:
        parser.error("give --out DIR, the folder to write the report to")
    if arguments.contrast and (arguments.deep or arguments.wide):
        parser.error("give either --contrast, or --deep and --wide")
    if arguments.audit and arguments.metric:
        parser.error("--audit: measures the loss, so give it without --metric")
    if arguments.of == FAMILIES:
        return
    if arguments.wandb is not None:
        parser.error(f"--of {arguments.of} cannot read --wandb; give a folder of runs")
    if len(arguments.runs) > 1:
        parser.error(f"--of {arguments.of} reads one source, not {len(arguments.runs)}")
    unused = [o.option_strings[0] for o in family_options if given[o.dest] != o.default]
    if unused:
        parser.error(
            f"{', '.join(unused)}: --of {arguments.of} has no such option; only {FAMILIES} does"
        )


def _build_parser() -> tuple[argparse.ArgumentParser, list[argparse.Action]]:
    """Return the parser, and the options that only the report `families` has."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        usage="python -m analysis RUNS...|--wandb ENTITY/PROJECT --out DIR [--of REPORT] [options]",
        description="Analyze finished runs and write a report.",
        epilog=f"{listing('reports, for --of', REPORTS)}\n\n{examples(EXAMPLES)}",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    source = parser.add_argument_group("input: one of")
    source.add_argument(
        "runs",
        metavar="RUNS",
        type=Path,
        nargs="*",
        help="folder of run directories, such as runs/demo; folder of offline W&B runs; results file of a study "
        "(.jsonl); or tables with one row per run: .csv, .tsv, .json, .jsonl or .parquet, also compressed, or a folder "
        "of them",
    )
    source.add_argument("--wandb", metavar="ENTITY/PROJECT", help="read the runs of a W&B project")
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="DIR", type=Path, help="folder to write the report to")
    output.add_argument(
        "--of",
        metavar="REPORT",
        type=_report_name,
        default=FAMILIES,
        help=f"report to write, see below; default: {FAMILIES}",
    )
    return parser, _add_family_options(parser)


def _add_family_options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    group = parser.add_argument_group(f"comparison, for --of {FAMILIES} only")
    add: Any = group.add_argument
    return [
        add(
            "--columns",
            metavar="NAME=COLUMN,...",
            action="append",
            default=[],
            help="names in the table or in the W&B runs of family, tokens, loss_nats_per_token, n_flop (or params_total, "
            "params_non_embedding), ...; nested names have dots, such as config.lr",
        ),
        add(
            "--constant",
            metavar="NAME=VALUE,...",
            action="append",
            default=[],
            help="values of columns that are equal in all runs, such as family=mine",
        ),
        add(
            "--write-columns",
            action="store_true",
            help="print the columns of the input and a guess of --columns, and write no report",
        ),
        add("--deep", metavar="FAMILY", help="deep family; default: smallest d_model / n_layers"),
        add("--wide", metavar="FAMILY", help="wide family; default: largest d_model / n_layers"),
        add(
            "--contrast",
            metavar="DEEP,WIDE",
            type=_family_pair,
            help="--deep and --wide in one option",
        ),
        add(
            "--audit",
            type=Path,
            metavar="FILE",
            help="learning-rate audit: lr_audit.json of study=lr_audit, or a folder of runs over a grid of "
            "learning rates; if a family fails the audit, the verdict is audit_failed",
        ),
        add(
            "--speed",
            type=Path,
            metavar="FILE",
            help="measured speeds of the shapes, from python -m slm speed: compares the families at equal decode latency "
            "and training time too; default: speed.json in the folder RUNS, if it exists",
        ),
        add(
            "--question",
            metavar="TEXT",
            default="",
            help="research question, printed at the top of the report",
        ),
        add(
            "--metric",
            metavar="COLUMN",
            help="column to compare instead of the loss, such as arc_easy_bits_per_byte in the models.csv of "
            "`slm evaluate`; the name must end with bits_per_byte or nats_per_token",
        ),
        add(
            "--pool-validation-sets",
            action="store_true",
            help="compare runs with different validation sets; default: use only the runs with the most common "
            "validation set",
        ),
    ]


def _report_name(text: str) -> str:
    if text not in REPORTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a report; {nearest(text, REPORTS)}")
    return text


def _family_pair(text: str) -> tuple[str, str]:
    names = text.split(",")
    if len(names) != 2:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be two family names separated by a comma: DEEP,WIDE"
        )
    return names[0], names[1]


if __name__ == "__main__":
    sys.exit(main())
