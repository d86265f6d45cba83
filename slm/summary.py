"""Readable output of result objects: `print(result)` shows a short summary, a notebook a table."""

from __future__ import annotations

from collections.abc import Iterator

MAX_LINES = 12  # of a printed result
Rows = list[dict[str, str]]
TABLE = """<p>{{ title }}</p>
{% if rows -%}
<table><thead><tr>{% for key in rows[0] %}<th>{{ key }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr>{% for cell in row.values() %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
{%- endif %}"""


class Readable:
    """Base class of result dataclasses, which are declared with `repr=False`.

    A subclass defines `title` and `details`, and `rows` if it has a table of its own.
    """

    def title(self) -> str:
        """Return one line: what the result is, its sample size, its main estimate or its status."""
        raise NotImplementedError

    def details(self) -> Iterator[tuple[str, str]]:
        """Yield a name and a text per line of the summary, the most important first."""
        yield from ()

    def rows(self) -> Rows:
        """Return the rows of the table that a notebook shows; by default the details."""
        return [{"quantity": name, "value": text} for name, text in self.details()]

    def _lines(self) -> list[str]:
        return [self.title(), *(f"  {name}: {text}" for name, text in self.details())]

    def __repr__(self) -> str:
        lines = self._lines()
        if len(lines) > MAX_LINES:
            hidden = len(lines) - MAX_LINES + 1
            lines = [*lines[: MAX_LINES - 1], f"  ... {hidden} more lines in .summary()"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return the table for a notebook; names are escaped."""
        from jinja2 import Environment

        template = Environment(autoescape=True).from_string(TABLE)
        return template.render(title=self.title(), rows=self.rows())


class Summarized(Readable):
    """A readable result with a `summary()` of any length."""

    def summary(self) -> str:
        """Return the title and all details, one per line."""
        return "\n".join(self._lines())
