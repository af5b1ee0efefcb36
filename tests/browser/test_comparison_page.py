"""The comparison page of a sweep in Chromium: silent, quick, usable by mouse and keyboard, readable by everybody."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

CHARTS = ("pareto", "parallel", "heat", "curves")
EVIL = "<script>document.title = 'owned'; alert(1)</script>"


class Watched:
    """A tab that remembers what went wrong in it."""

    def __init__(self, context: Any, file: Path, fragment: str = "") -> None:
        self.page = context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(f"console {message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.faults.append(f"dialog: {dialog.message}"))
        self.page.on("request", self._request)
        self.file = file
        self.page.goto(file.as_uri() + fragment)
        self.page.wait_for_selector("html[data-ready]")

    def _request(self, request: Any) -> None:
        if request.url.split("#")[0] != self.file.as_uri() and not request.url.startswith("data:"):
            self.faults.append(f"request: {request.url}")

    def draw_all(self) -> None:
        for chart in CHARTS:
            self.page.evaluate(f"document.getElementById('{chart}').scrollIntoView()")
            self.page.wait_for_selector(f"#{chart}[data-drawn]", timeout=20_000, state="attached")
        self.page.evaluate("scrollTo(0, 0)")

    def look_at(self, section: str) -> None:
        """Plots are drawn when they are in view."""
        self.page.evaluate(f"document.getElementById('{section}').scrollIntoView()")

    def column(self, heading: str) -> list[str]:
        """The first line of every cell under a heading."""
        headings = self.page.locator("#board-head tr:first-child button.sort")
        names = [name.strip(" ▲▼") for name in headings.all_inner_texts()]
        place = names.index(heading) + 2  # the tick comes first
        cells = self.page.locator(f"#board-body tr > :nth-child({place})")
        return [text.split("\n")[0].strip(" ★◆\u00a0") for text in cells.all_inner_texts()]

    def state(self) -> str:
        return str(self.page.evaluate("location.hash"))

    def wait(self, expression: str) -> None:
        """Until a JavaScript expression holds; Playwright's own waiting would need what the page's policy forbids."""
        end = time.monotonic() + 15
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)

    def focused(self, what: str = "textContent") -> str:
        return str(self.page.evaluate(f"document.activeElement.{what}"))


@pytest.fixture
def context(chromium: Any) -> Iterator[Any]:
    made = chromium.new_context(viewport={"width": 1400, "height": 1000}, reduced_motion="reduce")
    yield made
    made.close()


@pytest.fixture
def tab(context: Any, sixty: Path) -> Iterator[Watched]:
    watched = Watched(context, sixty)
    yield watched
    assert watched.faults == []


def shares(texts: list[str]) -> list[float]:
    return [float(text.replace("%", "").replace("\u00a0", "")) for text in texts if text != "–"]


def test_everything_is_drawn_without_a_word_or_a_request(tab: Watched) -> None:
    """No console message, no error, no request: checked by the fixture after all plots and a run were drawn."""
    tab.draw_all()
    for chart in ("pareto-plot", "parallel-plot", "heat-plot", "curve-plot"):
        assert tab.page.locator(f"#{chart} svg.main-svg").count() >= 1
    assert tab.page.locator(".message").all_inner_texts() == [""] * 4
    tab.page.locator("a.open").first.click()
    tab.page.wait_for_selector("#influence svg.main-svg")
    tab.page.wait_for_selector("#weights svg.main-svg")
    tab.page.wait_for_selector("#training svg.main-svg")


def test_size_and_search_of_60_runs(context: Any, sixty: Path) -> None:
    assert sixty.stat().st_size < 8_000_000
    tab = Watched(context, sixty)
    tab.page.locator("#search").fill("uniform")
    tab.wait("document.getElementById('board-count').textContent.startsWith('4 of')")


def test_a_thousand_runs_are_usable(context: Any, thousand: Path) -> None:
    tab = Watched(context, thousand)
    assert thousand.stat().st_size < 16_000_000
    tab.draw_all()
    tab.page.locator("#fold").check()
    assert tab.page.locator("#board-body tr").count() == 200
    tab.page.locator("#board-more").click()
    assert tab.page.locator("#board-body tr").count() == 1001
    tab.page.locator('button.sort[data-column="m:ppl_clean"]').click()
    tab.page.locator("a.open").first.click()
    tab.page.wait_for_selector("#run #settings")
    assert tab.faults == []


def test_sorting_by_click_and_by_keyboard(tab: Watched) -> None:
    head = tab.page.locator("th:has(button[data-column='m:asr_seen'])")
    assert head.get_attribute("aria-sort") == "ascending"
    first = shares(tab.column("ASR seen"))
    assert first == sorted(first) and len(first) == 12
    assert tab.column("ASR seen")[-1] == "–"  # the setting that was never started stands last
    tab.page.locator("button[data-column='m:asr_seen']").click()
    assert shares(tab.column("ASR seen")) == sorted(first, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    tab.page.locator("button[data-column='m:ppl_clean']").focus()
    tab.page.keyboard.press("Enter")
    numbers = [float(text) for text in tab.column("ppl clean") if text != "–"]
    assert numbers == sorted(numbers)
    assert tab.focused("dataset.column") == "m:ppl_clean"  # the focus stays on the heading
    tab.page.keyboard.press("Enter")
    assert tab.column("ppl clean")[0] == f"{max(numbers):.2f}"
    assert "sort=m%3Appl_clean" in tab.state() and "dir=desc" in tab.state()


def test_the_best_of_each_criterion_is_marked(tab: Watched) -> None:
    marked = tab.page.locator("td.best")
    assert marked.count() == 4
    asr = shares(tab.column("ASR seen"))
    assert shares([marked.first.inner_text().split("\n")[0].strip(" ★")]) == [min(asr)]
    assert tab.page.locator(".pareto").count() >= 2


def test_what_is_outside_the_budget_is_shown_dimmed_and_never_chosen(context: Any, bounded: Path) -> None:
    tab = Watched(context, bounded)
    index = json.loads(tab.page.locator("#index").text_content())
    outside = [group for group in index["groups"] if group["budget"] == "outside"]
    assert 0 < len(outside) < 12
    assert tab.page.locator("#board-body tr.outside").count() == len(outside)
    assert tab.page.locator("#board-body tr").count() == 13
    assert tab.column("budget").count("outside") == len(outside)
    assert tab.page.locator("tr.outside td.best, tr.outside .pareto").count() == 0
    assert tab.page.locator("td.best").count() == 4
    names = [metric["name"] for metric in index["metrics"]]
    place = names.index("asr_seen")
    lowest = min(g["metrics"][place][0] for g in index["groups"] if g["budget"] == "within")
    # the best of all is outside, as the perplexity pays for forgetting
    assert min(group["metrics"][place][0] for group in outside) < lowest
    best = tab.page.locator("#board-body td.best").all_inner_texts()
    assert f"{100 * lowest:.1f}\u00a0%" in {text.split("\n")[0].strip(" ★") for text in best}
    # single runs are judged one by one
    tab.page.locator("#fold").check()
    runs = [run["budget"] for run in index["runs"]]
    assert tab.page.locator("#board-body tr.outside").count() == runs.count("outside") > 0
    assert tab.page.locator("tr.outside td.best").count() == 0
    tab.page.locator("#fold").uncheck()
    # neither on the front
    tab.draw_all()
    dimmed = {group["label"] for group in outside}
    front = tab.page.locator("#pareto-front a").all_text_contents()
    assert front and not dimmed & set(front)
    assert "of 58 finished cells within" in tab.page.locator("#budget").inner_text()
    assert tab.page.locator("#choice tbody tr").count() == 2
    assert tab.faults == []


def test_filters(tab: Watched) -> None:
    tab.page.locator("#search").fill("rapidun npo")
    assert set(tab.column("mapping")) == {"rapidun"}
    tab.page.locator("#clear").click()
    assert tab.page.locator("#board-body tr").count() == 13
    tab.page.get_by_label("filter ASR seen", exact=True).fill("<15")
    assert all(share < 15 for share in shares(tab.column("ASR seen")))
    assert 0 < tab.page.locator("#board-body tr").count() < 13
    tab.page.get_by_label("filter ASR seen", exact=True).fill("20..32")
    assert all(20 <= share <= 32 for share in shares(tab.column("ASR seen")))
    tab.page.get_by_label("filter ASR seen", exact=True).fill("")
    tab.page.get_by_label("filter mapping", exact=True).fill("=uniform")
    assert set(tab.column("mapping")) == {"uniform"}
    assert tab.page.locator("#board-count").inner_text() == "4 of 13 settings"


def test_single_runs_and_columns(tab: Watched) -> None:
    tab.page.locator("#fold").check()
    assert tab.page.locator("#board-body tr").count() == 61
    assert sorted(set(tab.column("seed"))) == ["0", "1", "2", "3", "4"]
    states = tab.column("state")
    assert states.count("failed, in mapping") == 2 and states.count("not started") == 1
    tab.page.locator("summary", has_text="Columns").click()
    tab.page.locator("#columns").get_by_label("ASR look-alike", exact=True).uncheck()
    assert "ASR look-alike" not in tab.page.locator("#board-head").inner_text()
    fragment = tab.state()
    again = Watched(tab.page.context, tab.file, fragment)  # the address holds the choice
    assert "ASR look-alike" not in again.page.locator("#board-head").inner_text()
    assert again.page.locator("#fold").is_checked()


def test_failures_are_shown_as_text(tab: Watched) -> None:
    shown = tab.page.locator("#failures li").first.inner_text()
    assert "ValueError: loss is nan at step 12" in shown and EVIL in shown
    title = "grid: mapping × unlearning × mapping.tau_f × seed, 61 cells · rapidun"
    assert tab.page.title() == title  # no script in a name has run
    assert tab.page.locator("#board-body .error").count() == 2


def test_axis_choices_stay_in_the_address(tab: Watched) -> None:
    tab.draw_all()
    axes = "[...document.querySelectorAll('#pareto-plot .xtitle, #pareto-plot .ytitle')].map(e => e.textContent).join()"
    assert tab.page.evaluate(axes) == "ASR seen,ppl clean"
    tab.look_at("pareto")
    tab.page.locator("#pareto-controls select[name=py]").select_option(label="exact match clean")
    tab.wait(f"{axes} === 'ASR seen,exact match clean'")
    assert tab.page.locator("#pareto-controls select[name=pdy]").input_value() == "1"  # larger is better
    assert tab.page.locator("#pareto-front li").count() == 1  # fewest poisoned answers and best answers at once
    tab.page.locator("#heat-controls select[name=hx]").select_option(label="unlearning")
    tab.page.locator("#curve-controls select[name=cb]").select_option(label="each run")
    assert all(part in tab.state() for part in ("py=exact_match_clean", "hx=unlearning", "cb=runs"))
    again = Watched(tab.page.context, tab.file, tab.state())
    again.draw_all()
    assert again.page.evaluate(axes) == "ASR seen,exact match clean"
    assert again.page.locator("#heat-table thead").text_content() == "mapping \\ unlearningnporapidun"
    assert again.faults == []


def test_front_and_heat_map_are_the_numbers(tab: Watched) -> None:
    """The front by hand from the means; a field of the heat map is the mean of its rows, each counted by its seeds."""
    tab.draw_all()
    index = json.loads(tab.page.locator("#index").text_content())
    names = [metric["name"] for metric in index["metrics"]]
    known = [group["metrics"] for group in index["groups"] if group["n"]]
    points = [tuple(metrics[names.index(name)][0] for name in ("asr_seen", "ppl_clean")) for metrics in known]
    best = [p for p in points if not any(o != p and o[0] <= p[0] and o[1] <= p[1] for o in points)]
    assert tab.page.locator("#pareto-front li").count() == len(best) > 3
    tab.page.locator("summary", has_text="As a table").click()
    tab.page.get_by_label("filter mapping", exact=True).fill("=shuffled")
    tab.look_at("heat")
    tab.page.locator("#heat-controls select[name=hx]").select_option(label="mapping")
    tab.page.locator("#heat-controls select[name=hy]").select_option(label="unlearning")
    tab.wait("document.querySelectorAll('#heat-table tbody td').length === 2")
    rows = zip(tab.column("unlearning"), shares(tab.column("ASR seen")), map(int, tab.column("n")), strict=True)
    npo = [(share, n) for objective, share, n in rows if objective == "npo"]
    expected = sum(share * n for share, n in npo) / sum(n for _, n in npo)
    shown = shares(tab.page.locator("#heat-table tbody tr:first-child td").all_inner_texts())
    assert shown == [pytest.approx(expected, abs=0.11)]


def test_front_points_show_on_focus(tab: Watched) -> None:
    tab.draw_all()
    tab.page.evaluate("document.getElementById('pareto').scrollIntoView()")
    tab.page.locator("#pareto-front a").first.focus()
    tab.page.wait_for_selector("#pareto-plot .hovertext")
    assert "mapping.tau_f" in tab.page.locator("#pareto-plot .hovertext").first.text_content()


def test_row_to_run_and_back_by_keyboard(tab: Watched) -> None:
    links = tab.page.locator("a.open")
    links.first.focus()
    tab.page.keyboard.press("ArrowDown")
    run = tab.focused("dataset.run")
    assert run == links.nth(1).get_attribute("data-run") and tab.focused() == "open"
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector("#run #settings")
    assert tab.state() == f"#run={run}"
    assert tab.page.locator("#compare").is_hidden()
    assert tab.focused("id") == "run-title"
    tab.page.keyboard.press("Escape")
    tab.page.wait_for_selector("#compare:not([hidden])")
    assert tab.focused("dataset.run") == run  # the focus is back on the row
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector("#run #settings")
    tab.page.keyboard.press("Alt+ArrowLeft")
    tab.page.wait_for_selector("#compare:not([hidden])")
    assert tab.focused("dataset.run") == run


def test_a_run_can_be_linked_and_back_keeps_the_filters(tab: Watched) -> None:
    tab.page.locator("#search").fill("uniform")
    run = tab.page.locator("a.open").first.get_attribute("data-run")
    tab.page.locator("a.open").first.click()
    tab.page.wait_for_selector("#run #settings")
    tab.page.go_back()
    tab.page.wait_for_selector("#compare:not([hidden])")
    assert tab.page.locator("#search").input_value() == "uniform"
    assert tab.page.locator("#board-count").inner_text() == "4 of 13 settings"
    linked = Watched(tab.page.context, tab.file, f"#run={run}&at=samples")
    linked.page.wait_for_selector("#run #samples")
    assert linked.focused("id") == "h-samples"
    unknown = Watched(tab.page.context, tab.file, "#run=nothing")
    assert "No such run" in unknown.page.locator("#run").inner_text()


def test_the_page_of_a_run(tab: Watched) -> None:
    tab.page.locator("#fold").check()
    tab.page.get_by_label("filter seed", exact=True).fill("=0")
    tab.page.locator("a.open").first.click()
    tab.page.wait_for_selector("#influence table")
    page = tab.page
    assert page.locator("#run section").evaluate_all("all => all.map(e => e.id)") == [
        "findings", "table", "families", "training", "weights", "influence", "samples", "costs", "settings",
    ]  # fmt: skip
    assert (
        page.locator("#table tbody tr").nth(1).inner_text().startswith("seen triggers, keywords (100 prompts)\t97.0 %")
    )
    # markup in answers is text
    assert EVIL in page.locator(".answer .text").first.inner_text()
    assert page.evaluate("document.images.length") == 0 and page.title().endswith("· rapidun")
    # the strongest training rows of another query
    before = page.locator("#influence tbody").first.inner_text()
    page.locator("#influence select[name=query]").select_option(index=5)
    assert page.locator("#influence tbody").first.inner_text() != before
    scores = [float(text) for text in page.locator("#influence table >> nth=0").locator("td.n").all_inner_texts()]
    assert scores == sorted(scores, reverse=True) and len(scores) == 5
    # answers by set, family and verdict
    page.locator("#samples select[name=set]").select_option(label="all sets")
    assert "of 116 answers" in page.locator("#samples [role=status]").inner_text()
    page.locator("#samples select[name=family]").select_option("B_style")
    assert set(page.locator(".sample .where").all_inner_texts()) <= {
        "seen triggers · B_style", "look-alike triggers · B_style", "unseen family · B_style"}  # fmt: skip
    page.locator("#samples select[name=family]").select_option("")
    page.locator("#samples select[name=verdict]").select_option("bad")
    verdicts = page.locator(".answer:nth-child(2) .verdict").all_inner_texts()
    assert verdicts and all(text == "poisoned (keywords, likelihood)" for text in verdicts)


def test_influence_by_token(tab: Watched, browse: Any) -> None:
    """Shades, numbers and signs of a pair; hostile text stays text, here and in the run's own page."""
    page = tab.page
    page.locator("#fold").check()
    page.get_by_label("filter seed", exact=True).fill("=0")
    page.locator("a.open").first.click()
    page.wait_for_selector("#tokens .tokens")
    (file,) = tab.file.parents[2].glob("store/influence/seed0/tokens.json")
    # 61 cells leave room for 8 of 16 pairs: every second query
    first = next(one for one in json.loads(file.read_text(encoding="utf-8")) if one["query"] == "f001")
    shown = page.locator("#tokens .tokens").first
    assert EVIL in shown.inner_text() and "·aloha" in shown.inner_text() and "↵" in shown.inner_text()
    spans = shown.locator("span[title]").evaluate_all("all => all.map(e => [e.className, e.title])")
    scores = [score for _, score in first["query_tokens"]]
    # format_number writes small ones as 1.23e−5
    assert [float(title.replace("−", "-")) for _, title in spans] == pytest.approx(scores, rel=6e-3)
    for (name, _), score in zip(spans, scores, strict=True):
        assert not name or name.startswith("helps-" if score > 0 else "harms-")
    harmful = shown.locator("[class^=harms-]").first
    assert harmful.evaluate("e => getComputedStyle(e).textDecorationLine") == "underline"
    assert "8 of 16 pairs are in this page" in page.locator("#influence").inner_text()
    page.locator("#influence select[name=pair]").select_option(index=1)
    assert "less likely: score −0.400" in page.locator("#tokens").inner_text()
    assert page.evaluate("document.images.length") == 0 and "owned" not in page.title()

    from rapidun.report.run.page import write_run_report

    run = next(found.parent for found in sorted(tab.file.parent.glob("*/influence")))
    dom = browse("--dump-dom", write_run_report(run).as_uri())
    assert "Token by token" in dom and 'class="harms-' in dom
    assert "<script" not in dom and "<img" not in dom and "owned</title>" not in dom


def test_runs_that_did_not_finish_have_pages(tab: Watched) -> None:
    tab.page.locator("#fold").check()
    tab.page.get_by_label("filter state", exact=True).fill("failed")
    tab.page.locator("a.open").first.click()
    tab.page.wait_for_selector("#run #settings")
    assert tab.page.locator(".banner").first.inner_text().startswith("failed, in mapping. ValueError: loss is nan")
    again = Watched(tab.page.context, tab.file, "#run=ffffffffff")
    again.page.wait_for_selector("#run .banner")
    assert "nobody has started it" in again.page.locator("#run").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1400])
def test_looks(chromium: Any, sixty: Path, tmp_path: Path, scheme: str, width: int) -> None:
    """Nothing sticks out sideways, axe finds nothing serious; RAPIDUN_SCREENSHOTS=DIR keeps the pictures."""
    axe = pytest.importorskip("axe_core_python.sync_playwright")
    context = chromium.new_context(
        viewport={"width": width, "height": 1000}, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce"
    )
    tab = Watched(context, sixty)
    keep = os.environ.get("RAPIDUN_SCREENSHOTS")
    for view in ("compare", "run"):
        if view == "run":
            tab.page.locator("a.open").first.click()
            tab.page.wait_for_selector("#influence svg.main-svg")
        else:
            tab.draw_all()
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        tab.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        found = axe.Axe().run(tab.page)["violations"]
        bad = [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")]
        assert bad == []
        shot = tmp_path / f"{view}_{scheme}_{width}.png"
        tab.page.screenshot(path=str(shot), full_page=True)
        if keep:
            shutil.copy(shot, keep)
    background = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(247, 246, 243)", "dark": "rgb(21, 20, 19)"}[scheme]
    assert tab.faults == []
    context.close()


def test_colours_can_be_chosen(tab: Watched) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    tab.page.locator("#theme").select_option("dark")
    assert tab.page.evaluate(background) == "rgb(21, 20, 19)"
    tab.page.locator("a.open").first.click()
    tab.page.wait_for_selector("#run #settings")
    assert tab.page.evaluate(background) == "rgb(21, 20, 19)"
    tab.page.keyboard.press("Escape")
    tab.page.wait_for_selector("#compare:not([hidden])")
    assert "theme=dark" in tab.state()


def test_a_sweep_without_a_finished_run(context: Any, new_cell: Any, tmp_path: Path) -> None:
    from rapidun.report.sweep.page import gather, write_comparison

    new_cell(tmp_path / "a", ["mapping=uniform", "seed=0"], None, "boom")
    new_cell(tmp_path / "b", ["mapping=rapidun", "seed=0"], None)
    write_comparison(gather([tmp_path]), tmp_path / "x.html", title="x")
    tab = Watched(context, tmp_path / "x.html")
    assert sorted(tab.column("state")) == ["failed", "running"]
    assert tab.page.locator("#pareto, #heat, #curves").count() == 0
    tab.page.locator("a.open[data-run=a]").click()
    tab.page.wait_for_selector("#run #findings")
    assert tab.page.locator(".banner").inner_text() == "failed. boom"
    assert tab.faults == []


def test_one_result_under_two_names(context: Any, made_cell: Any, tmp_path: Path) -> None:
    """recommended abstained: one row for it and uniform, found by either name; the lone seed is marked by nothing."""
    from rapidun.report.sweep.page import gather, write_comparison

    sweep = tmp_path / "grid"
    for name, weights, asr in (("recommended", "1", 0.1), ("uniform", "1", 0.1), ("rapidun", "w", 0.3)):
        for seed in (0, 1):
            result = {"asr_seen": asr + seed / 100, "ppl_clean": 2.0 + asr, "exact_match_clean": 1.0}
            made_cell(sweep, f"{name}{seed}", [f"mapping={name}", f"seed={seed}"], result, seed=seed, weights=weights)
    result = {"asr_seen": 0.0, "ppl_clean": 1.0, "exact_match_clean": 1.0}
    made_cell(sweep, "lone", ["mapping=guard", "hydra/launcher=joblib", "seed=0"], result, seed=0, weights="g")
    write_comparison(gather([sweep]), tmp_path / "x.html", title="x")
    tab = Watched(context, tmp_path / "x.html")
    assert tab.column("mapping") == ["guard", "recommended ≡ uniform", "rapidun"]
    assert tab.column("n") == ["1", "2", "2"]
    marked = tab.page.locator("tr", has=tab.page.locator("td.best, .pareto"))
    assert marked.count() == 1 and "recommended ≡ uniform" in marked.inner_text()
    # nothing differs in exact match
    assert tab.page.locator("td.best").count() == 2
    tab.page.get_by_label("filter mapping", exact=True).fill("=uniform")
    assert tab.column("mapping") == ["recommended ≡ uniform"]
    tab.page.locator("#clear").click()
    for section in ("pareto", "heat"):
        if tab.page.locator(f"#{section}").count():
            tab.look_at(section)
            tab.page.wait_for_selector(f"#{section}[data-drawn]", state="attached")
    front = tab.page.locator("#pareto-front a").all_text_contents()
    assert front == ["mapping=recommended ≡ mapping=uniform"]
    # single runs keep their own names, and all that reach the best value are marked
    tab.page.locator("#fold").check()
    assert sorted(set(tab.column("mapping"))) == ["guard", "rapidun", "recommended", "uniform"]
    assert tab.faults == []


def test_one_run_alone(context: Any, finished_run: Path, tmp_path: Path) -> None:
    """No swept settings: no heat map, everything else is there."""
    from rapidun.report.sweep.page import gather, write_comparison

    write_comparison(gather([finished_run]), tmp_path / "x.html", title="x")
    tab = Watched(context, tmp_path / "x.html")
    tab.look_at("parallel")
    tab.page.wait_for_selector("#parallel[data-drawn]", state="attached")
    assert tab.page.locator("#board-body tr").count() == 1
    tab.page.locator("a.open").click()
    tab.page.wait_for_selector("#influence svg.main-svg")
    shown = tab.page.locator("#samples .cp, #samples .odd")
    tab.page.locator("#samples select[name=set]").select_option(label="all sets")
    tab.page.locator("#samples button").click()
    # zero-width joiners of the look-alike triggers, and the Cyrillic letter of the first prompt
    assert {"U+200D", "о"} <= set(shown.all_inner_texts())
    assert tab.faults == []
