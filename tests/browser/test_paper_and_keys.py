"""Both pages on paper, in a picture of the whole page, on a phone, by keyboard; links between runs and their sweep."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rapidun.report.run.page import write_run_report

pytestmark = pytest.mark.browser

CHARTS = ("pareto-plot", "parallel-plot", "heat-plot", "curve-plot")
FOCUS = "document.activeElement"


@pytest.fixture
def context(chromium: Any) -> Iterator[Any]:
    made = chromium.new_context(viewport={"width": 1400, "height": 1000}, reduced_motion="reduce")
    yield made
    made.close()


@pytest.fixture
def page(context: Any, sixty: Path) -> Any:
    """The comparison page of 60 runs, loaded; nobody has scrolled."""
    made = context.new_page()
    made.set_default_timeout(60_000)
    made.goto(sixty.as_uri())
    return made


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def wide(page: Any, place: str) -> float:
    return float(page.evaluate(f"document.querySelector('#{place} svg.main-svg').getBoundingClientRect().width"))


def test_a_loaded_page_has_its_plots(page: Any) -> None:
    """Whoever takes a picture of the whole page when it has loaded finds no blank in it."""
    assert page.evaluate("scrollY") == 0
    assert [page.locator(f"#{chart} svg.main-svg").count() > 0 for chart in CHARTS] == [True] * 4
    assert page.locator("iframe").count() == 0


def test_a_run_that_is_opened_by_its_address_has_its_plots_too(context: Any, sixty: Path) -> None:
    run = next(path.parent.name for path in sorted(sixty.parent.glob("*/influence")))
    made = context.new_page()
    made.goto(f"{sixty.as_uri()}#run={run}", timeout=60_000)
    for section in ("training", "weights", "influence"):
        assert made.locator(f"#{section} svg.main-svg").count() >= 1


def test_paper_is_white_and_narrow_whatever_was_chosen(page: Any) -> None:
    page.locator("#theme").select_option("dark")
    page.wait_for_selector("html[data-charts=drawn]")
    on_screen = wide(page, "curve-plot")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert all(wide(page, chart) <= 660 for chart in CHARTS)
    # the ink of an axis is that of a light page
    ink = page.evaluate("getComputedStyle(document.querySelector('#curve-plot .xtitle')).fill")
    assert ink == "rgb(33, 31, 28)"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    until(lambda: abs(wide(page, "curve-plot") - on_screen) < 2)
    assert page.pdf(print_background=True).startswith(b"%PDF")


def test_the_tab_key_stops_once_in_each_part_of_the_leaderboard(page: Any) -> None:
    """13 rows of tick and link and 2 x 15 cells of the head were 56 stops; the arrow keys lead to all of them."""
    stops = page.evaluate(
        "[...document.querySelectorAll('#board button, #board input, #board a')].filter(e => e.tabIndex >= 0).length"
    )
    assert stops == 4  # a heading, its field, a row's tick and link
    page.locator("#board-head button.sort[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    column = page.evaluate(f"{FOCUS}.dataset.column")
    assert column == "m:asr_seen_likelihood"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(f"{FOCUS}.matches('input.filter') && {FOCUS}.dataset.column") == column
    page.keyboard.type("<90")
    assert page.evaluate(f"{FOCUS}.value") == "<90"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(f"{FOCUS}.matches('a.open')")
    page.keyboard.press("End")
    last = page.locator("#board-body tr").last.get_attribute("data-run")
    assert page.evaluate(f"{FOCUS}.dataset.run") == last
    # Tab leaves the table, and comes back to where one was
    page.keyboard.press("Tab")
    assert not page.evaluate(f"{FOCUS}.closest('#board')")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(f"{FOCUS}.dataset.run") == last
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    assert page.evaluate(f"{FOCUS}.dataset.column") == column


def test_skip_links_are_the_first_stops(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate(f"{FOCUS}.textContent") == "Skip to the rows of the leaderboard"
    page.keyboard.press("Enter")
    assert page.evaluate(f"{FOCUS}.matches('a.open')")
    page.evaluate("document.querySelectorAll('a.skip')[1].focus()")
    page.keyboard.press("Enter")
    assert page.evaluate(f"{FOCUS}.id") == "h-pareto"


@pytest.mark.parametrize(
    ("name", "value"),
    [("py", "exact match clean"), ("pdx", "larger is better"), ("hx", "unlearning"), ("pc", "unlearning")],
)
def test_a_choice_keeps_the_focus(page: Any, name: str, value: str) -> None:
    control = page.locator(f"select[name={name}]")
    control.focus()
    control.select_option(label=value)
    assert page.evaluate(f"{FOCUS}.name") == name
    page.wait_for_selector("html[data-charts=drawn]")
    assert page.evaluate(f"{FOCUS}.name") == name


def test_other_colours_keep_the_focus_in_a_run(page: Any) -> None:
    page.locator("a.open").first.click()
    page.wait_for_selector("#influence svg.main-svg")
    control, drawn = page.locator("#samples select[name=set]"), page.locator("#training .chart").count()
    control.focus()
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(300)
    assert page.evaluate(f"{FOCUS}.name") == "set"
    assert page.locator("#training .chart").count() == drawn


def test_escape_leaves_no_entry_in_the_history(page: Any, sixty: Path) -> None:
    """From the table: back over the runs that were looked at. From an address: the table takes the run's place."""
    page.locator("a.open").first.click()
    page.wait_for_selector("#run #settings")
    page.locator(".path a", has_text="→").click()
    page.wait_for_selector("#run #settings")
    length = page.evaluate("history.length")
    page.keyboard.press("Escape")
    page.wait_for_selector("#compare:not([hidden])")
    assert page.evaluate("history.length") == length
    page.go_back()
    assert page.url == "about:blank"  # before the page: no run in between
    other = page.context.new_page()
    run = next(path.parent.name for path in sorted(sixty.parent.glob("*/influence")))
    other.goto(f"{sixty.as_uri()}#run={run}", timeout=60_000)
    other.wait_for_selector("#run #settings")
    length = other.evaluate("history.length")
    other.keyboard.press("Escape")
    other.wait_for_selector("#compare:not([hidden])")
    assert other.evaluate("history.length") == length
    other.go_back()
    assert other.url == "about:blank"


def test_rows_have_words_and_no_ids(page: Any) -> None:
    page.locator("a.open").first.click()
    page.wait_for_selector("#influence svg.main-svg")
    shown = "\n".join(page.locator("#weights, #influence").all_inner_texts())
    assert "trade in?" in shown and "r010" not in shown and "f001" not in shown


def test_constants_have_axes(context: Any, new_cell: Callable[..., Path], tmp_path: Path) -> None:
    """Equal perplexities and one attack success: a tenth around the one, a half around zero."""
    from rapidun.report.sweep.page import gather, write_comparison

    for weights, asr in (("uniform", 0.0), ("oracle", 0.0)):
        new_cell(tmp_path / weights, [f"mapping={weights}"], {"asr_seen": asr, "ppl_clean": 2.0})
    write_comparison(gather([tmp_path]), tmp_path / "x.html", title="x")
    page = context.new_page()
    page.goto((tmp_path / "x.html").as_uri(), timeout=60_000)
    ranges = page.evaluate("['xaxis', 'yaxis'].map(a => document.getElementById('pareto-plot')._fullLayout[a].range)")
    assert ranges == [[-0.5, 0.5], [1.8, 2.2]]


def test_change_and_interval_can_be_read_on_a_phone(chromium: Any, sixty: Path, finished_run: Path) -> None:
    narrow = chromium.new_context(viewport={"width": 390, "height": 844})
    page = narrow.new_page()
    page.goto((finished_run / "report.html").as_uri(), timeout=60_000)
    row = page.locator("#table tbody tr", has_text="seen triggers, keywords").first
    assert "0.6–7.0 %" in row.inner_text() and "−95.0 pts" in row.inner_text()
    inside = "e => { const box = e.getBoundingClientRect(); return box.left >= 0 && box.right <= innerWidth; }"
    assert row.locator("td:visible").evaluate_all(f"all => all.every({inside})")
    assert page.locator("#answer").evaluate(inside) and page.locator(".tile").evaluate_all(
        f"all => all.every({inside})"
    )
    page.goto(sixty.as_uri(), timeout=60_000)
    page.evaluate("document.querySelectorAll('#methods details').forEach(one => { one.open = true; })")
    verdict = page.locator("table.verdicts tbody tr").first.locator("td:nth-child(4)")
    assert "points [" in verdict.inner_text() and verdict.evaluate(inside)
    narrow.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_pages_without_scripts(
    chromium: Any, finished_run: Path, sixty: Path, scheme: str
) -> None:
    axe = pytest.importorskip("axe_core_python.sync_playwright")
    narrow = chromium.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme, bypass_csp=True)
    for file in (finished_run / "report.html", sixty.with_name("sweep.html")):
        made = narrow.new_page()
        made.goto(file.as_uri(), timeout=60_000)
        found = axe.Axe().run(made)["violations"]
        bad = [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")]
        assert bad == [], file.name
    narrow.close()


def test_from_the_sweep_to_a_run_to_its_neighbour_and_back(context: Any, sixty: Path, tmp_path: Path) -> None:
    """The pages that runs wrote themselves, by their links alone."""
    shutil.copytree(sixty.parents[2], tmp_path / "copy", symlinks=True)
    sweep = tmp_path / "copy" / "sweeps" / "grid"
    first, second = sorted(path.parent.name for path in sweep.glob("*/influence"))[:2]
    for name in (first, second):
        write_run_report(sweep / name)
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto((sweep / "report.html").as_uri() + f"#run={first}")
    page.locator(".path a", has_text="its own page").click()
    page.wait_for_url(f"**/{first}/report.html")
    assert (
        "run " in page.locator("nav.beside").inner_text()
        and "of 61 of sweep grid" in page.locator("nav.beside").inner_text()
    )
    page.locator("nav.beside a[rel=up]").click()
    page.wait_for_selector("#run #settings")
    assert page.url.endswith(f"#run={first}")


def test_a_run_s_own_page_is_light_on_paper(chromium: Any, sixty: Path) -> None:
    """Shades of tokens too, which are colours of their own."""
    run = next(path.parent for path in sorted(sixty.parent.glob("*/influence")))
    dark = chromium.new_context(color_scheme="dark")
    page = dark.new_page()
    page.goto(write_run_report(run).as_uri(), timeout=60_000)
    ground = "getComputedStyle(document.querySelector('[class^=helps-5], [class^=harms-5]')).backgroundColor"
    on_screen = page.evaluate(ground)
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(33, 31, 28)"
    on_paper = page.evaluate(ground)
    assert sum(map(int, on_paper[4:-1].split(", "))) > sum(map(int, on_screen[4:-1].split(", ")))
    dark.close()
