"""Render report.html: one page with text, tables and interactive charts that loads nothing from the network.

The templates are in `templates/`: report.html.j2, macros.html.j2 (sections, tables, figures, cards), report.css and
report.js. The content is from `sections` and `text`, the charts from `analysis.charts`.
"""

from __future__ import annotations

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from analysis.charts import report_figures
from analysis.report import text
from analysis.report.sections import sections
from analysis.report.study_report import StudyReport
from analysis.report.tables import BEST
from slm.charts import css_variables, page_script, script_json
from slm.summary import Rows

TITLE = "Deep or wide at matched compute"
DEFAULT_QUESTION = (
    "Under matched compute, does a deeper shape beat a wider one, and does that change with scale?"
)
NEGATIVE = re.compile(r"(?:^|(?<=[ \[(]))-(?=[0-9])")
LONG = 26  # characters of a cell that is wrapped


def page(report: StudyReport) -> str:
    """Return the HTML of the report."""
    environment = _environment()
    return environment.get_template("report.html.j2").render(
        report=report,
        text=text,
        sections=sections(report),
        charts={figure.name: figure for figure in report_figures(report)},
        title=TITLE,
        question=DEFAULT_QUESTION,
        tone=_tone(report.comparison.verdict.word),
        colours=Markup(css_variables()),
        library=_script(page_script()),
    )


def _environment() -> Environment:
    """Return the templates' environment; it escapes all text and prints minus signs."""
    loader = PackageLoader("analysis.report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        finalize=_minus,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )

    def source(name: str) -> Markup:
        return Markup(loader.get_source(environment, name)[0])

    environment.globals.update(
        source=source,
        script_json=lambda value: Markup(script_json(value)),
        text_columns=_text_columns,
        cell_class=_cell_class,
    )
    return environment


def _script(code: str) -> Markup:
    """Return JavaScript for a script element, which must not contain its end tag."""
    return Markup(code.replace("</script", "<\\/script"))


def _tone(word: str) -> str:
    if word in ("refused", "audit_failed"):
        return "bad"
    return "good" if word.endswith("_better") else ""


def _text_columns(rows: Rows) -> set[str]:
    """Return the columns that have words, which are aligned to the left."""
    return {key for key in rows[0] if any(row.get(key, "")[:1].isalpha() for row in rows)}


def _cell_class(is_text: bool, content: str) -> str | None:
    is_long = len(content) > LONG and "[" not in content
    is_best = content.startswith(BEST)
    return " ".join(["word"] * is_text + ["long"] * is_long + ["best"] * is_best) or None


def _minus(content: Any) -> Any:
    """Replace the hyphen of negative numbers by a minus sign.

    The minus sign is as wide as a plus sign, and a line does not break after it.
    """
    if not isinstance(content, str) or isinstance(content, Markup):
        return content
    return Markup(NEGATIVE.sub("\N{MINUS SIGN}", str(escape(content))))
