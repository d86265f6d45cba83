"""report.html in headless Chromium: no script errors, no overflow, tooltips and printing work."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

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
addEventListener('load',()=>{
const marks=[...document.querySelectorAll('.m')],run=marks[0],box=run.getBoundingClientRect();
run.dispatchEvent(new PointerEvent('pointermove',{bubbles:true,clientX:box.x,clientY:box.y}));
const tip=document.getElementById('tip');
const outside=[...document.querySelectorAll('svg text')].filter(t=>{const b=t.getBoundingClientRect(),
s=t.ownerSVGElement.getBoundingClientRect();return b.left<s.left-1||b.right>s.right+1||b.top<s.top-1||
b.bottom>s.bottom+1;}).map(t=>t.textContent);
dispatchEvent(new Event('beforeprint'));
document.title=JSON.stringify({problems,outside,marks:marks.length,shown:getComputedStyle(tip).display,
tip:tip.textContent,wide:document.documentElement.scrollWidth-innerWidth,
closed:document.querySelectorAll('details:not([open])').length});});
</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    report_on(full_study(level={"deep_thin": -0.1}), out)
    return out


def chromium(*arguments: str) -> subprocess.CompletedProcess[str]:
    options = "--headless --no-sandbox --disable-gpu --hide-scrollbars --enable-logging=stderr"
    options += " --allow-file-access-from-files --virtual-time-budget=3000"
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
        "f.onload=()=>setTimeout(()=>document.title=f.contentDocument.title,500)</script>"
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
    assert '"shown":"block"' in result
    assert re.search(
        r"(balanced|deep_thin|wide_shallow)-L\d+-d\d+", result
    )  # the run id in a tooltip
    assert '"closed":1' in result  # in print, only the list of runs is folded


def test_screenshot_has_the_colours_of_all_families(folder: Path) -> None:
    file = folder / "shot.png"
    chromium("--window-size=1280,1800", f"--screenshot={file}", f"file://{folder / 'report.html'}")
    pixels = (imread(file)[..., :3] * 255).round().astype(int)
    colours = {tuple(map(int, colour)) for colour in np.unique(pixels.reshape(-1, 3), axis=0)}
    assert len(colours) > 100
    for family in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73)):
        assert family in colours
