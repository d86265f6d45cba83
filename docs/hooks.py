"""MkDocs hooks: pages and tables that are generated from the code, so that they cannot become outdated.

- `<!-- configuration keys -->` becomes one table per section of `slm.config.schema`.
- `<!-- configuration groups -->` becomes one table per folder of `conf/`.
- `<!-- launcher keys -->` becomes one table per dataclass `...Settings` in hydra_plugins/slm_study.
- `<!-- help: PROGRAM -->` becomes the output of `python PROGRAM --help`; `slm.*` stands for every command of
  `python -m slm`.
- CHANGELOG.md and analysis/examples become pages and files of the site.

Links of the pages point to files in the repository, so that they also work on the pages of a git host.
"""

from __future__ import annotations

import ast
import html
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
PLUGINS = ROOT / "hydra_plugins" / "slm_study"
EXAMPLES = ROOT / "analysis" / "examples"
EXAMPLE_SUFFIXES = {".md", ".png", ".svg", ".json", ".jsonl", ".csv"}
# Targets of links in docs/ and analysis/examples, and where the site has them.
MOVED = {
    "](../CHANGELOG.md": "](changelog.md",
    "](../../CHANGELOG.md": "](../changelog.md",
    "](../analysis/examples/": "](examples/",
    "](../../docs/": "](../",
}
HELP = re.compile(r"<!-- help: (.+?) -->")
KEYS_IN_HELP = re.compile(
    r"\nkeys; set one with.*", re.IGNORECASE | re.DOTALL
)  # all keys of train.py


def on_files(files: Files, config: Any) -> Files:
    """Add CHANGELOG.md and the example reports to the site."""
    changelog = ROOT / "CHANGELOG.md"
    files.append(File.generated(config, "changelog.md", abs_src_path=str(changelog)))
    for path in sorted(EXAMPLES.rglob("*")):
        if path.suffix in EXAMPLE_SUFFIXES:
            target = Path("examples") / path.relative_to(EXAMPLES)
            files.append(File.generated(config, target.as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the generated parts of a page, and let its links point to pages of the site."""
    for old, new in MOVED.items():
        markdown = markdown.replace(old, new)
    markdown = markdown.replace("<!-- configuration keys -->", "\n".join(_key_tables()))
    markdown = markdown.replace("<!-- configuration groups -->", "\n".join(_group_tables()))
    markdown = markdown.replace("<!-- launcher keys -->", "\n".join(_launcher_tables()))
    return HELP.sub(lambda match: "\n".join(_help_sections(match[1])), markdown)


def _key_tables() -> Iterator[str]:
    from slm.config.schema import field_descriptions

    section = None
    for key, default, text in field_descriptions():
        prefix = key.rpartition(".")[0]
        if prefix != section:
            section = prefix
            yield f"\n### {prefix or 'Top level'}\n\n| key | default | meaning |\n| --- | --- | --- |"
        description = " ".join(text.split()).replace("|", "\\|")
        yield f"| `{key}` | `{_default(default)}` | {html.escape(description, quote=False)} |"


def _default(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value) or "''"


def _group_tables() -> Iterator[str]:
    folders = sorted(folder for folder in CONF.rglob("*") if folder.is_dir())
    for folder in folders:
        options = sorted(folder.glob("*.yaml"))
        if options:
            group = folder.relative_to(CONF).as_posix()
            yield f"\n### {group}\n\n| option | content |\n| --- | --- |"
            yield from (f"| `{group}={path.stem}` | {_comment(path)} |" for path in options)


def _launcher_tables() -> Iterator[str]:
    for path in sorted(PLUGINS.glob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Settings"):
                yield f"\n### {node.name.removesuffix('Settings').lower()}\n\n{ast.get_docstring(node)}\n"
                yield "| key | default | meaning |\n| --- | --- | --- |"
                yield from _field_rows(node.body)


def _field_rows(statements: Sequence[ast.stmt]) -> Iterator[str]:
    """Yield a row per field of a dataclass; a string under a field is its meaning."""
    for statement, following in pairwise([*statements, ast.Pass()]):
        if isinstance(statement, ast.AnnAssign) and not ast.unparse(statement.target).startswith(
            "_"
        ):
            value = "" if statement.value is None else _plain_source(statement.value)
            text = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = html.escape(" ".join(str(following.value.value).split()), quote=False)
            yield f"| `{ast.unparse(statement.target)}` | `{value}` | {text} |"


def _plain_source(value: ast.expr) -> str:
    """Return the source of a default as YAML shows it: `II("a.b")` is `${a.b}`, a factory its content."""
    source = ast.unparse(value)
    source = re.sub(r"^field\(default_factory=lambda: (.*)\)$", r"\1", source)
    source = re.sub(r"II\('([\w.]+)'\)", r"${\1}", source)
    return (
        re.sub(r"\bNone\b", "null", source)
        .strip("'")
        .replace("True", "true")
        .replace("False", "false")
    )


def _comment(path: Path) -> str:
    """Return the comment at the top of a YAML file, or its first lines if there is none."""
    lines = [line for line in path.read_text("utf-8").splitlines() if "@package" not in line]
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    text = " ".join(comment) or "; ".join(f"`{line}`" for line in lines if line.strip())
    return html.escape(text, quote=False).replace("|", "\\|")


def _help_sections(program: str) -> Iterator[str]:
    """Yield a heading and the help text for each program that the marker stands for."""
    programs: Iterable[str] = [program]
    if program == "slm.*":
        from slm.commands import COMMANDS

        programs = [f"-m slm {name}" for name in COMMANDS]
    for one in programs:
        text = KEYS_IN_HELP.sub("", help_text(one)).strip()
        yield f"## python {one}\n\n```{{ .text .help }}\n{text}\n```\n"


def help_text(program: str) -> str:
    """Return what `python PROGRAM --help` prints, at a width of 100 characters."""
    command = [sys.executable, *program.split(), "--help"]
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    finished = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return finished.stdout
