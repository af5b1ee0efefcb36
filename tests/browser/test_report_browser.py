"""The report in a real browser: markup in rows stays text, no script runs, it fits, it follows the colour scheme."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

Browse = Callable[..., str]
DARK = "--blink-settings=preferredColorScheme=0"


def probe(report: Path, folder: Path, script: str) -> Path:
    """The report with a script that measures it; its policy against scripts is taken out for that."""
    text = report.read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    page = folder / "probe.html"
    page.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return page


def test_the_page_loads_and_runs_nothing(finished_run: Path, browse: Browse) -> None:
    dom = browse("--dump-dom", (finished_run / "report.html").as_uri())
    assert (
        "<title>Built-in pack on tiny: rapidun with rapidun weights, seed 42 · rapidun</title>" in dom
    )  # the script in the rows would have changed it
    assert "owned</title>" not in dom
    assert "&lt;script&gt;document.title = 'owned'; alert(1)&lt;/script&gt;" in dom
    assert "<script" not in dom
    assert "onerror=&quot;" in dom or 'onerror="document' in dom
    assert "<img" not in dom


def test_markup_stays_text_even_where_scripts_may_run(finished_run: Path, browse: Browse, tmp_path: Path) -> None:
    """Without the policy: still no element comes out of a row, so the escaping alone holds."""
    page = probe(
        finished_run / "report.html",
        tmp_path,
        "document.title += ' scripts ' + document.scripts.length + ' images ' + document.images.length",
    )
    dom = browse("--dump-dom", page.as_uri())
    assert (
        "<title>Built-in pack on tiny: rapidun with rapidun weights, seed 42 · rapidun scripts 1 images 0</title>"
        in dom
    )


def test_the_policy_stops_a_script_that_got_in(finished_run: Path, browse: Browse, tmp_path: Path) -> None:
    page = tmp_path / "planted.html"
    text = (finished_run / "report.html").read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", "<script>document.title = 'owned'</script></body>"), encoding="utf-8")
    assert "<title>Built-in pack on tiny: rapidun with rapidun weights, seed 42 · rapidun</title>" in browse(
        "--dump-dom", page.as_uri()
    )


def test_choosing_a_set_of_samples_needs_no_script(finished_run: Path, browse: Browse, tmp_path: Path) -> None:
    """12 samples of each of four sets; the first set is chosen at first, the last button shows all."""
    script = """
        const shown = () => [...document.querySelectorAll('.sample')].filter(e => e.offsetParent).length;
        const counts = [shown()];
        for (const input of document.querySelectorAll('input[name=set]')) { input.click(); counts.push(shown()); }
        document.title = 'shown ' + counts.join(' ');
    """
    dom = browse("--dump-dom", probe(finished_run / "report.html", tmp_path, script).as_uri())
    assert "<title>shown 12 12 12 12 12 48</title>" in dom


@pytest.mark.parametrize("width", [420, 1400])
@pytest.mark.parametrize("kind", ["run", "mapping", "sweep"])
def test_nothing_sticks_out_sideways(
    kind: str, width: int, finished_run: Path, mapping_run: Path, sweep_dir: Path, browse: Browse, tmp_path: Path
) -> None:
    from rapidun.cli.report import report

    if kind == "run":
        page = finished_run / "report.html"
    else:
        folder = mapping_run if kind == "mapping" else sweep_dir
        report([folder])
        page = folder / ("report.html" if kind == "mapping" else "sweep.html")
    script = "const e = document.documentElement; document.title = 'width ' + e.scrollWidth + ' of ' + e.clientWidth;"
    # a headless window is never narrower than 500 pixels, a frame is
    inner = probe(page, tmp_path, script + "parent.postMessage(document.title, '*');")
    outer = tmp_path / "outer.html"
    outer.write_text(
        "<title>none</title><script>onmessage = e => { document.title = e.data; }</script>"
        f'<iframe src="{inner.name}" style="border:0;width:{width}px;height:3000px"></iframe>'
    )
    dom = browse("--dump-dom", "--virtual-time-budget=2000", f"--window-size={width + 40},3200", outer.as_uri())
    found = re.search(r"<title>width (\d+) of (\d+)</title>", dom)
    assert found, dom[:200]
    assert (int(found[1]), int(found[2])) == (width, width)


def test_light_and_dark_follow_the_reader(finished_run: Path, browse: Browse, tmp_path: Path) -> None:
    script = "document.title = 'page ' + getComputedStyle(document.body).backgroundColor;"
    page = probe(finished_run / "report.html", tmp_path, script).as_uri()
    assert "<title>page rgb(247, 246, 243)</title>" in browse("--dump-dom", page)
    assert "<title>page rgb(21, 20, 19)</title>" in browse("--dump-dom", DARK, page)


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast(finished_run: Path, browse: Browse, tmp_path: Path, dark: bool) -> None:
    """WCAG AA: at least 4.5 between every text and the colour behind it, the plots' text too."""
    script = """
        const channel = c => { c /= 255; return c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; };
        const parse = s => (s.match(/[\\d.]+/g) || []).map(Number);
        const light = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
        const behind = e => {
            for (; e; e = e.parentElement) {
                const c = parse(getComputedStyle(e).backgroundColor);
                if (c.length && (c.length < 4 || c[3] > 0)) return c;
            }
        };
        let low = [];
        document.querySelectorAll('details').forEach(d => d.open = true);
        for (const e of document.body.querySelectorAll('*')) {
            const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
            const box = e.getBoundingClientRect();
            if (!own || !box.width || e.tagName === 'SCRIPT') continue;
            const style = getComputedStyle(e), svg = e.closest('svg');
            const front = light(parse(svg ? style.fill : style.color));
            const back = light(behind(svg ? svg.parentElement : e));
            const ratio = (Math.max(front, back) + .05) / (Math.min(front, back) + .05);
            if (ratio < 4.5) low.push(e.className + ':' + e.textContent.trim().slice(0, 20) + '=' + ratio.toFixed(2));
        }
        document.title = 'low ' + low.length + ' ' + low.slice(0, 5).join(' | ');
    """
    page = probe(finished_run / "report.html", tmp_path, script).as_uri()
    dom = browse("--dump-dom", *([DARK] if dark else []), page)
    found = re.search(r"<title>(low[^<]*)</title>", dom)
    assert found
    assert found[1].strip() == "low 0"


def test_screenshots(finished_run: Path, browse: Browse, tmp_path: Path) -> None:
    """Wide and narrow, light and dark; with RAPIDUN_SCREENSHOTS=DIR they are kept for looking at."""
    import os

    from PIL import Image

    keep = os.environ.get("RAPIDUN_SCREENSHOTS")
    for width, height in ((1400, 6000), (500, 9000)):
        corners = []
        for scheme, flags in (("light", []), ("dark", [DARK])):
            shot = tmp_path / f"report_{scheme}_{width}.png"
            page = (finished_run / "report.html").as_uri()
            browse(f"--screenshot={shot}", f"--window-size={width},{height}", *flags, page)
            with Image.open(shot) as image:
                assert image.size == (width, height)
                corners.append(image.convert("RGB").getpixel((2, 2)))
            if keep:
                shutil.copy(shot, keep)
        assert corners == [(247, 246, 243), (21, 20, 19)]
