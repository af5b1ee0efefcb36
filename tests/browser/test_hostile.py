"""Hostile text in every place that a report takes from files: nothing of it runs, even without the page's policy."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rapidun.report.run.page import write_run_report

pytestmark = pytest.mark.browser

Browse = Callable[..., str]
OWN = "document.title='owned'"
HOSTILE = [
    f"</script><script>{OWN}</script>",
    f"<img src=x onerror={OWN}>",
    f"javascript:{OWN}",
    f"\"'><svg onload={OWN}>",
    f"]]>--></style></title></textarea></pre><body onload={OWN}>",
    f"<a href=javascript:{OWN} autofocus onfocus={OWN}>x</a>",
    f"{{{{ {OWN} }}}}{{% raw %}}${{{OWN}}}",
]
# what a page would have of elements that came out of a text, and this script
COUNTS = """
    const all = [...document.querySelectorAll('*')];
    const handlers = all.filter(e => [...e.attributes].some(a => a.name.startsWith('on'))).length;
    const links = [...document.links].filter(a => !a.getAttribute('href').startsWith('#')).length;
    document.title += ` handlers ${handlers} images ${document.images.length} scripts ${document.scripts.length} links `
        + links;
"""
# a name, a family, rows' ids, answers, a warning, an error, a key of the configuration
PLACES = ("builtin", "A_surface", "f000", "clean-0", "mapping: 12 of", "amber", "rapidun")
FILES = ("*.json", "*.jsonl", "*.txt", "*.yaml")


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_nothing_runs(finished_run: Path, browse: Browse, tmp_path: Path, number: int) -> None:
    evil = HOSTILE[number]
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    written = 0
    for file in (path for pattern in FILES for path in run.rglob(pattern)):
        text = file.read_text(encoding="utf-8")
        put = json.dumps(evil)[1:-1] if file.suffix.startswith(".json") else evil
        # values, and keys such as asr_seen.A_surface; not the words that say what a file is
        new = re.sub("|".join(map(re.escape, PLACES)), lambda found, put=put: found[0] + put, text)
        written += new != text
        file.write_text(new, encoding="utf-8")
    assert written > 5
    report = write_run_report(run)
    text = report.read_text(encoding="utf-8")
    assert text.count("owned") > 10  # it is there, as text
    page = tmp_path / "page.html"
    # the policy alone would stop it: here the escaping has to
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    page.write_text(bare.replace("</body>", f"<script>{COUNTS}</script></body>"), encoding="utf-8")
    dom = browse("--dump-dom", "--virtual-time-budget=2000", page.as_uri())
    title = re.search(r"<title>([^<]*)</title>", dom)
    assert title and "· rapidun" in title[1], dom[:300]
    assert title[1].endswith(" handlers 0 images 0 scripts 1 links 0")
