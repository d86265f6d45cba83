"""Figures for pages, files and notebooks, and the JavaScript that draws them in a page."""

from __future__ import annotations

import base64
import json
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from slm.charts.theme import PAPER, Theme, literal, theme_config

WIDTH, HEIGHT = 540, 320  # pixels, without the axes
FILE_SCALE, NOTEBOOK_SCALE = 2, 1.3  # pixels per CSS pixel; notebooks with pictures are committed
CAPTION_CHARACTERS = 92  # per line of a caption under the title
FILE_FONT = "DejaVu Sans, Liberation Sans, Arial, sans-serif"  # with superscript digits


@dataclass(frozen=True, repr=False)
class Figure:
    """A chart with its title and caption; a notebook displays it.

    Attributes:
        name: id in a page and file stem.
        chart: an Altair chart, without size if a single view or layers; panels side by side have a size.
    """

    name: str
    title: str
    caption: str
    chart: Any
    height: int = HEIGHT

    def __repr__(self) -> str:
        return f"Figure({self.name!r}: {self.title})"

    def spec(self) -> dict[str, Any]:
        """Return the Vega-Lite JSON for a page: as wide as its element, colours as CSS variables.

        Panels side by side keep their fixed width, because Vega-Lite cannot fit them to an element.
        """
        return self._spec("container")

    def file_spec(self, theme: Theme = "light", *, titled: bool = True) -> dict[str, Any]:
        """Return the Vega-Lite JSON with fixed size and literal colours, for a file or a notebook."""
        spec = literal(self._spec(WIDTH), theme)
        config = spec["config"]
        config.update(background=literal(PAPER, theme), padding=12, font=FILE_FONT)
        if titled:
            spec["title"] = {"text": self.title}
        return dict(spec)

    def save(self, path: Path, theme: Theme = "light", *, titled: bool = True) -> None:
        """Write the chart to a .png or .svg file."""
        spec = self.file_spec(theme, titled=titled)
        if path.suffix == ".svg":
            import vl_convert

            svg = vl_convert.vegalite_to_svg(spec, vl_version=_vega_lite_version())
            path.write_text(svg, encoding="utf-8")
        else:
            path.write_bytes(_png(spec, FILE_SCALE))

    def _spec(self, width: int | Literal["container"]) -> dict[str, Any]:
        spec: dict[str, Any] = self.chart.to_dict()
        spec["config"] = theme_config()
        if "concat" not in spec:
            spec.update(width=width, height=self.height)
        return spec

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Return an interactive chart, and a picture for viewers without Vega-Lite such as GitHub."""
        spec = self.file_spec()
        spec["title"]["subtitle"] = textwrap.wrap(self.caption, CAPTION_CHARACTERS)
        major = _vega_lite_version().partition(".")[0]
        return {
            f"application/vnd.vegalite.v{major}+json": spec,
            "image/png": base64.b64encode(_png(spec, NOTEBOOK_SCALE)).decode(),
            "text/plain": repr(self),
        }


def _png(spec: dict[str, Any], scale: float) -> bytes:
    import vl_convert

    return vl_convert.vegalite_to_png(spec, vl_version=_vega_lite_version(), scale=scale)


def _vega_lite_version() -> str:
    """Return the Vega-Lite version that the installed Altair writes, e.g. `6.1`."""
    import altair

    return altair.SCHEMA_VERSION.lstrip("v").rpartition(".")[0]


@cache
def page_script() -> str:
    """Return JavaScript that defines `vegaEmbed`, with Vega and Vega-Lite: 0.9 MB, no network needed.

    A page inlines it once, and draws each chart with
    `vegaEmbed(element, spec, {renderer: "svg", actions: false})`.
    """
    import vl_convert

    snippet = "window.vegaEmbed = vegaEmbed;"
    return vl_convert.javascript_bundle(snippet, vl_version=_vega_lite_version())


def script_json(value: Any) -> str:
    """Return JSON that is safe inside an HTML script element, whatever its strings contain."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
