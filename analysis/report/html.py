"""Render report.html: one self-contained page with text, tables and inline SVG charts.

The page loads nothing from the network and uses no library. A short script shows a tooltip when a chart mark
is hovered or tapped; without the script, the browser shows the same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

from analysis.formatting import count, format_interval, power_of_ten
from analysis.plotting import BLUE, VERMILLION
from analysis.report import charts, charts_diagnostics, tables, text
from analysis.report.charts import Figure, legend
from analysis.report.study_report import StudyReport
from analysis.report.svg import FAINT, INK
from analysis.report.tables import Rows

TITLE = "Deep or wide at matched compute"
DEFAULT_QUESTION = (
    "Under matched compute, does a deeper shape beat a wider one, and does that change with scale?"
)
SIGNIFICANT_VERDICTS = (
    "depth_exponent_better",
    "width_exponent_better",
    "depth_level_better",
    "width_level_better",
)

NEGATIVE = re.compile(r"(?:^|(?<=[ \[(]))-(?=[0-9])")
PALETTE = (
    f":root{{--ink:{INK};--soft:#52606d;--line:{FAINT};--back:#fff;--tint:#f5f7f9;--accent:#0b4f7a;"
    f"--good:{BLUE};--bad:{VERMILLION}}}"
)
STYLE = (
    f"\n{PALETTE}"
    + """
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",
Roboto,"DejaVu Sans",sans-serif}
main{max-width:1160px;margin:0 auto;padding:28px 24px 60px}
.question{color:var(--soft);margin:0 0 4px}
h1{font-size:2.1rem;line-height:1.15;margin:0 0 8px;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:38px 0 4px;padding-top:14px;border-top:2px solid var(--ink)}
h3{font-size:1rem;margin:0 0 4px}
p{margin:6px 0}
.number{font-size:1.15rem;font-weight:600;margin:0 0 10px}
.explanation{color:var(--soft);max-width:80ch}
.verdict{background:var(--tint);border-left:6px solid var(--soft);padding:20px 24px 16px;margin:10px 0 16px}
.report.good{border-color:var(--good)}.report.bad{border-color:var(--bad)}
.tag{display:inline-block;font:600 .78rem/1 ui-monospace,Menlo,"DejaVu Sans Mono",monospace;padding:5px 8px;
border:1px solid currentColor;border-radius:4px;margin:0 8px 8px 0;color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(205px,1fr));gap:12px;margin:0 0 8px}
.card{min-width:0;border:1px solid var(--line);border-radius:6px;padding:12px 14px}
.card b{display:block;font-size:1.3rem;line-height:1.25}.card i{display:block;font-style:normal;
font-weight:600;white-space:nowrap}
.card span{color:var(--soft);font-size:.86rem}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,460px),1fr));gap:26px 34px;
margin:12px 0}
figure{margin:0;break-inside:avoid;min-width:0}
figure svg:not(.key){width:100%;height:auto;display:block;font-family:inherit}
svg text.over{paint-order:stroke;stroke:#fff;stroke-width:4px;stroke-linejoin:round}
figcaption{color:var(--soft);font-size:.86rem;line-height:1.4}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:.88rem;margin:0 0 2px}
.key{width:32px;height:16px;vertical-align:-3px;margin-right:5px}
.m{cursor:pointer}.m:hover>*{stroke-width:3.5}
.scroll{overflow-x:auto;margin:8px 0}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:4px 12px 4px 0;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--soft);font-weight:600;vertical-align:bottom;white-space:normal}
td.word,th.word{text-align:left}td.long{white-space:normal;min-width:150px}
details{margin:12px 0}summary{cursor:pointer;color:var(--accent);font-weight:600}
ul{padding-left:20px;margin:6px 0}li{margin:3px 0;max-width:92ch;overflow-wrap:anywhere}
#tip{position:fixed;display:none;z-index:9;max-width:320px;white-space:pre-line;pointer-events:none;
background:var(--ink);color:#fff;font-size:.82rem;line-height:1.35;padding:7px 10px;border-radius:5px;
overflow-wrap:anywhere}
@media(max-width:620px){main{padding:14px 14px 40px}h1{font-size:1.55rem}.verdict{padding:14px 16px 10px}
.number{font-size:1.02rem}.cards{grid-template-columns:1fr 1fr}.card{padding:9px 10px}.card b{font-size:1rem}
figure svg:not(.key) text{font-size:17px}}
@media print{body{font-size:9.5pt}main{max-width:none;padding:0}h1{font-size:18pt}.number{font-size:11pt}
.verdict{padding:10px 14px 4px;margin:4px 0 8px}.cards{grid-template-columns:repeat(4,1fr)}.card{padding:6px 8px}
.card b{font-size:11pt}.card i,.card span,figcaption{font-size:8pt}h2{font-size:12pt}.figures{grid-template-columns:1fr 1fr;
gap:14px 20px}.verdict,.card{break-inside:avoid}h2{break-after:avoid;margin:14px 0 2px;padding-top:8px}details.runs{display:none}
#tip{display:none!important}.scroll{overflow:visible}table{font-size:8pt}a{color:inherit}
@page{margin:14mm}}
"""
)

SCRIPT = """
const tip=document.getElementById('tip');
document.querySelectorAll('.m').forEach(m=>{const t=m.querySelector('title');m.dataset.tip=t.textContent;
m.setAttribute('aria-label',t.textContent);t.remove();});
function show(e){const m=e.target.closest&&e.target.closest('.m');if(!m){tip.style.display='none';return;}
tip.textContent=m.dataset.tip;tip.style.display='block';const w=tip.offsetWidth,h=tip.offsetHeight;
tip.style.left=Math.max(4,Math.min(e.clientX+14,innerWidth-w-6))+'px';
tip.style.top=(e.clientY+h+26>innerHeight?e.clientY-h-12:e.clientY+16)+'px';}
document.addEventListener('pointermove',show);document.addEventListener('pointerdown',show);
addEventListener('scroll',()=>tip.style.display='none');
addEventListener('beforeprint',()=>document.querySelectorAll('details:not(.runs)').forEach(d=>d.open=true));
"""


def page(report: StudyReport) -> str:
    """Return the HTML of the report."""
    sections = (_head, _loss, _exponents, _checks, _power, _limitations)
    body = "\n".join(element for section in sections for element in section(report))
    title = f"{text.headline(report)} - {TITLE}"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">\n<title>{escape(title)}</title>'
        f'\n<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>'
        f'\n<div id="tip" role="status"></div>\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
    )


def _head(report: StudyReport) -> Iterator[str]:
    verdict = report.comparison.verdict
    tone = "good" if verdict.word in SIGNIFICANT_VERDICTS else ""
    if verdict.word in ("refused", "audit_failed"):
        tone = "bad"
    yield f'<p class="question">{escape(report.question or DEFAULT_QUESTION)}</p>'
    yield f'<section class="verdict {tone}">'
    yield f"<h1>{escape(text.headline(report))}</h1>"
    yield f'<p class="number">{_minus(text.uncertainty(report))}</p>'
    yield f'<p><span class="tag">{verdict.word}</span></p>'
    if verdict.word != "refused":
        yield f'<p class="explanation">{_minus(report.comparison.verdict.sentence)}</p>'
    yield _list(text.reasons(report))
    yield "</section>"
    yield f'<div class="cards">{"".join(_cards(report))}</div>'


def _cards(report: StudyReport) -> Iterator[str]:
    found, table = report.comparison, report.table
    row = text.endpoint(report)
    if row is not None:
        value = format_interval(row["largest"], row["largest_low_holm"], row["largest_high_holm"])
        label = (
            f"loss of {found.deep} minus loss of {found.wide} at the largest FLOPs, nats per token"
        )
        yield _card(value, label)
    if found.kappa is not None:
        kappa = found.kappa
        value = f"{kappa.by_law or kappa.at_largest:.2f}"
        if kappa.interval is not None:
            value += " [{:.2f}, {:.2f}]".format(*kappa.interval)
        yield _card(
            value, f"compute multiplier: FLOPs of {found.wide} / {found.deep} at equal loss"
        )
    if found.verdict.word != "refused":
        exponents = found.exponents
        value = "refused" if exponents.refused else exponents.difference_text
        yield _card(value, f"exponent difference, status {exponents.status}")
    total_flops = power_of_ten(float(table["flops"].sum()))
    shapes = table.groupby(["family", "shape"]).ngroups
    yield _card(
        f"{_count(len(table), 'run')}, {_count(shapes, 'shape')}",
        f"{_count(len(report.families), 'family', 'families')}, "
        f"{_count(len(report.tokens_per_param), 'token budget')}, {total_flops} FLOPs",
    )


def _loss(report: StudyReport) -> Iterator[str]:
    yield "<h2>Loss difference at matched compute</h2>"
    yield _figures(charts.loss_against_flops(report), charts.differences(report))
    yield _list(text.budget_sentences(report))
    yield _table(tables.summary_rows(report))
    yield _folded("Loss difference by pair", _table(tables.pair_rows(report)))
    if report.comparison.kappa is not None or report.shape_curve is not None:
        yield "<h2>Compute multiplier and shape curve</h2>"
        if report.comparison.kappa is not None:
            found = report.comparison
            yield f"<p>{escape(text.kappa_sentence(found.kappa, found.deep, found.wide))}</p>"
        if report.shape_curve is not None and not report.shape_curve.rungs:
            yield f"<p>{escape(report.shape_curve.sentence)}</p>"
        yield _figures(charts_diagnostics.kappa(report), charts_diagnostics.shape_curve(report))


def _exponents(report: StudyReport) -> Iterator[str]:
    yield "<h2>Exponents</h2>"
    yield f"<p>{_minus(text.exponent_sentence(report))}</p>"
    exponents = report.comparison.exponents
    if not exponents.refused:
        yield _list([f"{exponents.status}: {reason}" for reason in exponents.reasons])
    yield _figures(charts.alphas(report), charts.exponent_difference(report))
    yield _table(tables.exponent_rows(report))
    yield _folded("Sensitivity to the Huber delta", _table(tables.delta_rows(report)))
    yield _figures(charts_diagnostics.isoflop(report))


def _checks(report: StudyReport) -> Iterator[str]:
    yield "<h2>Validity checks</h2>"
    yield f"<p><b>Hold-out.</b> {escape(text.hold_out_sentence(report))}</p>"
    yield f"<p><b>Learning-rate audit.</b> {escape(text.audit_sentence(report))}</p>"
    yield _figures(charts_diagnostics.residuals(report), charts_diagnostics.hold_out(report))
    yield _folded("Held-out cells", _table(tables.hold_out_rows(report)))
    yield _folded("Learning-rate audit by shape", _table(tables.audit_rows(report)))


def _power(report: StudyReport) -> Iterator[str]:
    yield "<h2>Runs and power of this design</h2>"
    yield _table(tables.family_rows(report))
    power = report.power
    if power is not None:
        yield f"<p>Power of a study with this design. Noise: {escape(text.assumed_noise_text(report))}.</p>"
        yield _list([f"Exponents: {reason}" for reason in power.refusals])
        yield _table(tables.power_rows(report))
    extensions = tables.extension_rows(report)
    if extensions:
        yield "<h2>Power of larger designs</h2>"
        yield "<p>MDE (80% power): the smallest true difference that the study detects with probability 80%.</p>"
        yield _table(extensions)
        yield _folded("Most informative additional runs per FLOP", _table(tables.next_rows(report)))


def _limitations(report: StudyReport) -> Iterator[str]:
    yield "<h2>Limitations</h2>"
    yield _list(list(text.CAVEATS))
    yield "<h2>Runs in this report</h2>"
    yield f"<p>{count(len(report.table), 'finished run')}; left out: {escape(text.dropped_text(report))}.</p>"
    yield _list([f"Note: {warning}." for warning in report.warnings])
    yield _folded(f"All {len(report.table)} runs", _table(tables.run_rows(report)), "runs")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _card(value: str, label: str) -> str:
    estimate, bracket, ends = value.partition(" [")
    interval = f"<i>{_minus(bracket[1:] + ends)}</i>" if bracket else ""
    return (
        f'<div class="card"><b>{_minus(estimate)}</b>{interval}<span>{escape(label)}</span></div>'
    )


def _figures(*figures: Figure | None) -> str:
    elements = [
        f'<figure id="{one.name}"><h3>{escape(one.title)}</h3>{legend(one.legend)}{one.svg}'
        f"<figcaption>{_minus(one.caption)}</figcaption></figure>"
        for one in figures
        if one is not None
    ]
    return f'<div class="figures">{"".join(elements)}</div>' if elements else ""


def _table(rows: Rows) -> str:
    if not rows:
        return ""
    text_columns = {key for key in rows[0] if any(_is_text(row.get(key, "")) for row in rows)}

    def cell(tag: str, key: str, content: str) -> str:
        is_long = len(content) > 32 and "[" not in content
        classes = ["word"] * (key in text_columns) + ["long"] * is_long
        attribute = f' class="{" ".join(classes)}"' if classes else ""
        return f"<{tag}{attribute}>{_minus(content)}</{tag}>"

    head = "".join(cell("th", key, key) for key in rows[0])
    body = "".join(
        f"<tr>{''.join(cell('td', key, content) for key, content in row.items())}</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _is_text(content: str) -> bool:
    return content[:1].isalpha()


def _folded(summary: str, content: str, kind: str = "") -> str:
    if not content:
        return ""
    attribute = f' class="{kind}"' if kind else ""
    return f"<details{attribute}><summary>{escape(summary)}</summary>{content}</details>"


def _list(lines: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{_minus(line)}</li>' for line in lines)}</ul>" if lines else ""


def _minus(content: str) -> str:
    """Escape text for HTML, and replace the hyphen of negative numbers by a minus sign.

    The minus sign is as wide as a plus sign, and a line does not break after it.
    """
    return NEGATIVE.sub("\N{MINUS SIGN}", escape(content))
