"""report.html in headless Chromium: no script errors, no overflow, tooltips and printing work."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from analysis.report.write import report_on
from tests.full_study import full_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason="Chromium is missing; run apt-get install chromium"
    ),
]
# Script that hovers a run and prints the page, as a user does, and writes the result to the page's title.
PROBE = """<script>
const problems=[];addEventListener('error',e=>problems.push(e.message));
addEventListener('load',()=>setTimeout(()=>{
const chart=document.querySelector('#loss_against_flops .chart');
const marks=[...chart.querySelectorAll('.mark-symbol.role-mark path')],run=marks[0],box=run.getBoundingClientRect();
const at={bubbles:true,cancelable:true,clientX:box.x+2,clientY:box.y+2};
run.dispatchEvent(new PointerEvent('pointermove',at));
const wheel=new WheelEvent('wheel',{...at,deltaY:100}),zoom=new WheelEvent('wheel',{...at,deltaY:100,ctrlKey:true});
run.dispatchEvent(wheel);run.dispatchEvent(zoom);
const outside=[...document.querySelectorAll('.chart svg text')].filter(t=>{const b=t.getBoundingClientRect(),
s=t.ownerSVGElement.getBoundingClientRect();return b.left<s.left-1||b.right>s.right+1||b.top<s.top-1||
b.bottom>s.bottom+1;}).map(t=>t.textContent);
const colours=[...new Set(marks.map(m=>getComputedStyle(m).fill))].sort();
dispatchEvent(new Event('beforeprint'));
setTimeout(()=>{const tip=document.getElementById('vg-tooltip-element');
document.title=JSON.stringify({problems,outside,marks:marks.length,colours,tip:tip.textContent,
scrolls:!wheel.defaultPrevented,zooms:zoom.defaultPrevented,
wide:document.documentElement.scrollWidth-innerWidth,
closed:document.querySelectorAll('details:not([open])').length});},200);},1500));
</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    report_on(full_study(level={"deep_thin": -0.1}), out)
    return out


def chromium(*arguments: str) -> subprocess.CompletedProcess[str]:
    options = "--headless --no-sandbox --disable-gpu --hide-scrollbars --enable-logging=stderr"
    options += " --allow-file-access-from-files --virtual-time-budget=8000"
    return subprocess.run(
        [str(CHROMIUM), *options.split(), *arguments],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )


def probe_page(folder: Path, width: int) -> str:
    """Return the JSON of PROBE for a page of `width` CSS pixels, in a frame: windows have a minimum width."""
    html = (folder / "report.html").read_text()
    (folder / "probe.html").write_text(html.replace("</main>", f"</main>{PROBE}"))
    (folder / "frame.html").write_text(
        f"<iframe id=f src=probe.html style='width:{width}px;height:900px;border:0'></iframe><script>"
        "f.onload=()=>setTimeout(()=>document.title=f.contentDocument.title,3000)</script>"
    )
    done = chromium("--dump-dom", f"file://{folder / 'frame.html'}")
    assert not re.findall(r"CONSOLE.*", done.stderr)
    found = re.search(r"<title>(.*?)</title>", done.stdout, re.S)
    assert found is not None, done.stdout[-500:]
    return found[1]


@pytest.mark.parametrize("width", [1280, 400])
def test_page_has_no_errors_and_fits_the_width(folder: Path, width: int) -> None:
    result = probe_page(folder, width)
    assert '"problems":[]' in result
    assert '"outside":[]' in result  # no label extends beyond its chart
    assert '"wide":0' in result  # no horizontal scrolling, except of tables in their box
    assert '"scrolls":true,"zooms":true' in result  # the wheel zooms only with a modifier key
    assert '"colours":["rgb(0, 114, 178)","rgb(0, 158, 115)","rgb(213, 94, 0)"]' in result
    assert re.search(
        r"(balanced|deep_thin|wide_shallow)-L\d+-d\d+", result
    )  # the run id in a tooltip
    assert '"closed":1' in result  # in print, only the list of runs is folded
